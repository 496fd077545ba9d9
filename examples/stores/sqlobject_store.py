"""States through SQLObject.

    Router.STATE_STORE = SQLObjectStorage("sqlite:///home/me/project/run/states.db?timeout=30")

On Python 3.13, which has no `cgi` any more, it needs FormEncode 2.1.1 or newer: older ones import that.
"""

from sqlobject import SQLObject, StringCol, UnicodeCol, connectionForURI
from sqlobject.dberrors import DuplicateEntryError

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest, storable


class Conversation(SQLObject):
    class sqlmeta:
        cacheValues = False  # another process may have changed them

    digest = StringCol(alternateID=True, length=64)
    key = UnicodeCol()
    sender = UnicodeCol()
    state = UnicodeCol()


class SQLObjectStorage(StateStorage):
    def __init__(self, uri):
        self.connection = connectionForURI(uri)

    def prepare(self):
        Conversation.createTable(ifNotExists=True, connection=self.connection)

    def get(self, key, sender):
        found = self.find(key, sender).getOne(None)
        return found.state if found else ROUTE_FIRST_STATE

    def set(self, key, sender, state):
        if state == ROUTE_FIRST_STATE:
            Conversation.deleteBy(digest=digest(key, sender).hex(), connection=self.connection)
            return
        found = self.find(key, sender).getOne(None)
        if found is None:
            row = {"digest": digest(key, sender).hex(), "key": storable(key), "sender": storable(sender)}
            try:
                Conversation(**row, state=state, connection=self.connection)
                return
            except DuplicateEntryError:  # somebody else inserted it since
                found = self.find(key, sender).getOne()
        found.state = state

    def clear(self):
        Conversation.clearTable(connection=self.connection)

    def find(self, key, sender):
        return Conversation.selectBy(digest=digest(key, sender).hex(), connection=self.connection)
