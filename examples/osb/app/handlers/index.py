"""The index, written by a server of its own, which takes messages out of run/posts: see config/queue.py.

Whoever posts does not have to wait until it is written, and it can be restarted without a mail being refused.
"""

from app.model import pages
from lamson.routing import route, stateless


@route("(anything)@(host)", anything=".+", host=".+")
@stateless
def START(message, anything=None, host=None):
    pages.write_index()
