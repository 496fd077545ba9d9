"""Pushes every message that arrives into a queue, `run/queue`: what the log server catches mail with.

Set `QUEUE` to put it elsewhere.
"""

from lamson import queue
from lamson.routing import nolocking, route, stateless

QUEUE = "run/queue"


@route("(to)@(host)", to=".+", host=".+")
@stateless
@nolocking
def START(message, to=None, host=None):
    queue.Queue(QUEUE).push(message)
