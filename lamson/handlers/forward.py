"""Relays every message that arrives through `config.settings.relay`, with its envelope and its bytes untouched.

Made for moving to Lamson step by step: let Lamson answer what your handlers know, queue the rest
(``unknown_recipients: 'queue'``), and run this over the undeliverable queue to give it to the old mail server.
"""

from config import settings

from lamson.routing import nolocking, route, stateless


@route("(to)@(host)", to=".+", host=".+")
@stateless
@nolocking
def START(message, to=None, host=None):
    settings.relay.deliver(message)
