"""Logs every message that arrives: who sent it, to whom, and what it looks like (the text at DEBUG only)."""

import logging

from lamson.logs import printable
from lamson.routing import route, stateless

log = logging.getLogger(__name__)


@route("(to)@(host)", to=".+", host=".+")
@stateless
def START(message, to=None, host=None):
    recipient, sender = printable(f"{to}@{host}"), printable(message.route_from)
    log.info("MESSAGE to %s from %s: %s", recipient, sender, printable(message["subject"]))
    log.debug("%s", message)
