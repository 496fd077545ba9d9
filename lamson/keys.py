"""The keys of messages in queues, which are file names in a Maildir: https://cr.yp.to/proto/maildir.html

>>> key = new_key("example.com")
>>> key                                             # the time, the process, a number, the host
'1790000000.M123456P4711Q0.example.com'
>>> key_of(f"run/queue/cur/{key}:2,S") == key, born(key)
(True, 1790000000.0)
"""

import itertools
import os
import secrets
import socket
import time

# What stands for the host's name in keys that strangers get to see.
SAFE_NAME = secrets.token_hex(8)

# One for the process, since two objects may write into one folder within the same microsecond.
_counter = itertools.count()


def host_name() -> str:
    """The host's name, fit for a file name in a Maildir."""
    return socket.gethostname().replace("/", "\\057").replace(":", "\\072")


def new_key(host: str) -> str:
    """A key that nobody else makes. Keys sort by the time of their making."""
    now = time.time()
    return f"{int(now)}.M{int(now % 1 * 1e6):06}P{os.getpid()}Q{next(_counter)}.{host}"


def key_of(name: str | os.PathLike) -> str:
    """The key in a file's name: what stands before the flags."""
    return os.fspath(name).rpartition("/")[2].partition(":")[0]


def born(key: str) -> float:
    """When a message came in, in seconds since 1970. One whose name does not tell is very old: 0."""
    seconds = key.partition(".")[0]
    return float(seconds) if seconds.isdecimal() else 0.0
