"""The tables of the two machines."""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Handled(Base):
    __tablename__ = "handled"
    id: Mapped[int] = mapped_column(primary_key=True)
    sender: Mapped[str]
    state: Mapped[int]
    number: Mapped[int]
    machine: Mapped[str]


class Done(Base):
    __tablename__ = "done"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    machine: Mapped[str]


metadata = Base.metadata
