"""The tables. `lamson syncdb` makes those that are missing."""

from datetime import UTC, datetime

from sqlalchemy import ForeignKey, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

metadata = MetaData()


class Base(DeclarativeBase):
    metadata = metadata


class Post(Base):
    """A post. `id` is its name on the web; `author` and `name` are the addresses it was sent from and to."""

    __tablename__ = "post"
    __table_args__ = (UniqueConstraint("author", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    author: Mapped[str]
    name: Mapped[str]
    author_name: Mapped[str]
    title: Mapped[str]
    html: Mapped[str]
    written: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
    comments: Mapped[list["Comment"]] = relationship(
        order_by="Comment.id", cascade="all, delete-orphan", lazy="selectin"
    )


class Comment(Base):
    """A comment on a post: plain text."""

    __tablename__ = "comment"

    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[str] = mapped_column(ForeignKey("post.id"), index=True)
    author: Mapped[str]
    author_name: Mapped[str]
    text: Mapped[str]
    written: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
