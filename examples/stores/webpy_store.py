"""States through web.py's database module.

    Router.STATE_STORE = WebPyStorage(web.database(dbn="sqlite", db="run/states.db", timeout=30))
    Router.STATE_STORE = WebPyStorage(web.database(dbn="postgres", db="lamson", user="lamson"))

web.py gives each thread a connection of its own.
"""

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest, storable

TABLE = "CREATE TABLE IF NOT EXISTS state (id VARCHAR(64) PRIMARY KEY, state_key TEXT, sender TEXT, state TEXT)"
SAVE = (
    "INSERT INTO state (id, state_key, sender, state) VALUES ($id, $key, $sender, $state) "
    "ON CONFLICT (id) DO UPDATE SET state = excluded.state"
)


class WebPyStorage(StateStorage):
    def __init__(self, database):
        self.database = database
        self.database.printing = False

    def prepare(self):
        self.database.query(TABLE)

    def get(self, key, sender):
        rows = list(self.database.select("state", what="state", where="id = $id", vars=name(key, sender)))
        return rows[0].state if rows else ROUTE_FIRST_STATE

    def set(self, key, sender, state):
        if state == ROUTE_FIRST_STATE:
            self.database.delete("state", where="id = $id", vars=name(key, sender))
        else:
            row = {**name(key, sender), "key": storable(key), "sender": storable(sender), "state": state}
            self.database.query(SAVE, vars=row)

    def clear(self):
        self.database.delete("state", where="1 = 1")


def name(key, sender):
    return {"id": digest(key, sender).hex()}
