"""The tables of your application. `lamson syncdb` makes those that are missing in the database of config/settings.py.

You do not have to use this: Lamson does not care how you store things. To use it, take the comment signs off the
example, here and in tests/model/tables_tests.py, and change it. A handler then writes

    from app.model.tables import Subscription
    from config.settings import database

    database.session.add(Subscription(list_name="cats", address=message.route_from))

and reads

    everybody = database.session.scalars(select(Subscription).filter_by(list_name="cats")).all()

What a handler adds is saved when it returns, and undone when it raises an error.
"""

from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    """What the classes of your tables have in common."""


metadata = Base.metadata

# from sqlalchemy import UniqueConstraint, select
# from sqlalchemy.orm import Mapped, mapped_column
#
#
# class Subscription(Base):
#     __tablename__ = "subscription"
#     __table_args__ = (UniqueConstraint("list_name", "address"),)  # nobody subscribes twice
#
#     id: Mapped[int] = mapped_column(primary_key=True)
#     list_name: Mapped[str]
#     address: Mapped[str]
#
#
# def subscribers(session, list_name):
#     """The addresses on a list, in their order."""
#     wanted = select(Subscription.address).filter_by(list_name=list_name).order_by(Subscription.address)
#     return session.scalars(wanted).all()
