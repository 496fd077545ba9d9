"""The handlers of the two machines in tests/test_two_machines.py.

Each message moves its sender one state further, round and round, and leaves a row and a piece of work for later.
"""

import os
import random
import time

from app.model.tables import Handled
from config import settings

from lamson.queue import Queue
from lamson.routing import route, route_like

MACHINE = os.environ["LAMSON_MACHINE"]
WORK = Queue(settings.work_queue)


def handle(message, state):
    time.sleep(random.uniform(0, 0.03))  # so that a machine that dies has something in hand
    settings.database.session.add(
        Handled(sender=message.route_from, state=state, number=int(message["X-Number"]), machine=MACHINE)
    )
    WORK.push(message)


@route("(address)@(host)", address=".+")
def START(message, address=None, host=None):
    handle(message, 0)
    return FIRST


@route_like(START)
def FIRST(message, address=None, host=None):
    handle(message, 1)
    return SECOND


@route_like(START)
def SECOND(message, address=None, host=None):
    handle(message, 2)
    return START
