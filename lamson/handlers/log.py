"""Logs every message that arrives: who sent it, to whom, and what it looks like (the text at DEBUG only)."""

import logging

from lamson.routing import route, stateless

log = logging.getLogger(__name__)


@route("(to)@(host)", to=".+", host=".+")
@stateless
def START(message, to=None, host=None):
    log.info("MESSAGE to %s@%s from %s: %s", to, host, message.route_from, message["subject"])
    log.debug("%s", message)
