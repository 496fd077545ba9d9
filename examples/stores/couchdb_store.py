"""States in CouchDB, one document for each sender, by plain HTTP.

    Router.STATE_STORE = CouchDBStorage("http://admin:secret@localhost:5984/lamson")

CouchDB refuses a change (409) to what is not the present revision of a document. Then `set` reads it once more.
"""

import base64
import json
import urllib.error
import urllib.parse
from urllib.request import Request, urlopen

from lamson.routing import ROUTE_FIRST_STATE, StateStorage
from lamson.states import digest, storable


class CouchDBStorage(StateStorage):
    def __init__(self, url):
        scheme, place, path, _, _ = urllib.parse.urlsplit(url)
        login, _, host = place.rpartition("@")
        self.url = f"{scheme}://{host}{path}"
        self.headers = {"Content-Type": "application/json"}
        if login:
            self.headers["Authorization"] = "Basic " + base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()

    def prepare(self):
        self.ask("PUT", "", expected=(201, 202, 412))  # 412: it is there

    def get(self, key, sender):
        return self.document(key, sender).get("state", ROUTE_FIRST_STATE)

    def set(self, key, sender, state):
        status = 409
        while status == 409:
            document = self.document(key, sender)
            if state != ROUTE_FIRST_STATE:
                document.update(key=storable(key), sender=storable(sender), state=state)
            elif document:
                document = {"_rev": document["_rev"], "_deleted": True}
            else:
                return
            status, _ = self.ask("PUT", f"/{digest(key, sender).hex()}", document, (200, 201, 202, 409))

    def clear(self):
        self.ask("DELETE", "", expected=(200, 202, 404))
        self.prepare()

    def document(self, key, sender):
        return self.ask("GET", f"/{digest(key, sender).hex()}", expected=(200, 404))[1]

    def ask(self, method, path, document=None, expected=()):
        data = document and json.dumps(document).encode()
        try:
            with urlopen(Request(self.url + path, data, self.headers, method=method), timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in expected:
                return error.code, {}
            raise
