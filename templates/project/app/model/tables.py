"""The tables of your application. `lamson syncdb` makes those that are missing in the database of config/settings.py.

You do not have to use this: Lamson does not care how you store things. To use it, take the comment signs off the
example and change it. A handler then writes:

    from app.model.tables import Subscription
    from config.settings import database

    with database.session() as session, session.begin():        # saved at the end, undone by an error
        session.add(Subscription(list_name="cats", address=message.route_from))

and reads:

    with database.session() as session:
        everybody = session.scalars(select(Subscription).filter_by(list_name="cats")).all()
"""

from sqlalchemy import MetaData

metadata = MetaData()

# from sqlalchemy import UniqueConstraint, select
# from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
#
#
# class Base(DeclarativeBase):
#     metadata = metadata
#
#
# class Subscription(Base):
#     __tablename__ = "subscription"
#     __table_args__ = (UniqueConstraint("list_name", "address"),)
#
#     id: Mapped[int] = mapped_column(primary_key=True)
#     list_name: Mapped[str]
#     address: Mapped[str]
