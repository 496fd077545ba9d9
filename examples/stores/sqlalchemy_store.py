"""States in a table of your own, beside a project's other models.

    Router.STATE_STORE = ModelStorage(settings.database.engine)

A row also tells since when its sender is in the state. `lamson.database.SQLAlchemyStorage` does not, and is faster.
"""

from datetime import UTC, datetime

from sqlalchemy import delete, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, declarative_base, mapped_column

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest, storable

Base = declarative_base()  # in a project: that of app/model/tables.py


class Conversation(Base):
    __tablename__ = "conversation"
    id: Mapped[bytes] = mapped_column(primary_key=True)
    key: Mapped[str]
    sender: Mapped[str]
    state: Mapped[str]
    since: Mapped[datetime]


class ModelStorage(StateStorage):
    def __init__(self, engine):
        self.engine = engine

    def prepare(self):
        Base.metadata.create_all(self.engine)

    def get(self, key, sender):
        with Session(self.engine) as session:
            row = session.get(Conversation, digest(key, sender))
            return row.state if row else ROUTE_FIRST_STATE

    def set(self, key, sender, state):
        if state == ROUTE_FIRST_STATE:
            return self.delete(Conversation.id == digest(key, sender))
        row = digest(key, sender), storable(key), storable(sender), state
        try:
            self.save(*row)
        except IntegrityError:  # somebody else inserted it since we looked for it
            self.save(*row)

    def save(self, id, key, sender, state):
        with Session(self.engine) as session, session.begin():
            session.merge(Conversation(id=id, key=key, sender=sender, state=state, since=datetime.now(UTC)))

    def clear(self):
        self.delete(true())

    def delete(self, which):
        with self.engine.begin() as connection:
            connection.execute(delete(Conversation).where(which))
