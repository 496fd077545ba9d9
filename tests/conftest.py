"""What the tests share: a Router as fresh as in a new process, and a place to write."""

import signal
import sys

import pytest

from lamson.routing import MemoryStorage, Router, RouteTable

# A shell lets what it runs in the background ignore ctrl-c, and so would all servers that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_router():
    """Give every test the Router as it is in a new process; it is the one global there is."""
    saved = dict(vars(Router))
    Router._table = RouteTable()
    Router.STATE_STORE = MemoryStorage()
    Router.HANDLERS = {}
    Router._stamps = {}
    Router._known = {}
    Router.DEFAULT_CAPTURES = {}
    Router.UNDELIVERABLE_QUEUE = None
    yield Router
    vars(Router).clear()
    vars(Router).update(saved)


@pytest.fixture
def app(tmp_path, monkeypatch):
    """An empty folder that is the current one and on the import path; modules imported from it are forgotten after."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
