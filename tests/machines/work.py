"""What is done later, by whichever machine comes to it."""

import os

from app.model.tables import Done
from config import settings

from lamson.routing import route, stateless


@route("(address)@(host)", address=".+")
@stateless
def START(message, address=None, host=None):
    settings.database.session.add(Done(number=int(message["X-Number"]), machine=os.environ["LAMSON_MACHINE"]))
