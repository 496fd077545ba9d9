"""The handlers of the projects that tests/test_crashes.py makes, and kills.

What becomes of a copy is said by its recipient: record-7@test.com is recorded. The number is that of the message.
"""

import hashlib
import os
import random
import threading
import time

from config import settings

from lamson.errors import SMTPError
from lamson.queue import Queue
from lamson.routing import route, route_like

KEPT = Queue("run/kept")


@route("(action)-(number)@(host)", action="record|keep|relay|fail|busy|hang", number="[0-9]+")
def START(message, action=None, number=None, host=None):
    act(message, action)
    return KNOWN


@route_like(START)
def KNOWN(message, action=None, number=None, host=None):
    act(message, action)
    return KNOWN


def act(message, action):
    """Do what the recipient says. A kill before it is done, and one after that, both have to find their moment."""
    linger()
    if action == "keep":
        KEPT.push(message)
    elif action == "relay":
        settings.relay.deliver(message)
    elif action == "fail":
        raise RuntimeError("This handler always fails.")
    elif action == "hang":
        threading.Event().wait()
    elif action == "busy" and random.random() < 0.5:
        raise SMTPError(451, "4.3.2 Not now")
    else:
        record(message)
    linger()


def linger():
    time.sleep(random.uniform(0, 0.005))


def record(message):
    """Add a line to the journal, and return when it is on disk."""
    digest = hashlib.sha256(message.original.partition(b"\r\n\r\n")[2]).hexdigest()
    journal = os.open("run/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(journal, f"{message['X-Number']} {message.recipient} {digest}\n".encode())
        os.fsync(journal)
    finally:
        os.close(journal)
