"""States in MongoDB, one document for each sender.

    Router.STATE_STORE = MongoDBStorage(pymongo.MongoClient("mongodb://localhost").lamson.state)

`set` returns when the state is in the journal (``j=True``) of a majority of the servers (``w="majority"``).
"""

from pymongo import WriteConcern

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest, storable


class MongoDBStorage(StateStorage):
    def __init__(self, collection):
        self.collection = collection.with_options(write_concern=WriteConcern(w="majority", j=True))

    def get(self, key, sender):
        found = self.collection.find_one({"_id": digest(key, sender).hex()})
        return found["state"] if found else ROUTE_FIRST_STATE

    def set(self, key, sender, state):
        here = {"_id": digest(key, sender).hex()}
        if state == ROUTE_FIRST_STATE:
            self.collection.delete_one(here)
        else:
            row = {"key": storable(key), "sender": storable(sender), "state": state}
            self.collection.update_one(here, {"$set": row}, upsert=True)

    def clear(self):
        self.collection.delete_many({})
