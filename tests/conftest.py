"""What the tests share: a Router as fresh as in a new process, places to write, a project, a certificate."""

import signal
import ssl
import subprocess
import sys

import pytest

from commandline import kill_servers, make_project
from lamson.handlermodules import HandlerModules
from lamson.routing import MemoryStorage, Router
from processes import Shell, needs
from sink import NameServer

# A shell lets what it runs in the background ignore ctrl-c, and so would all servers that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_router():
    """Give every test the Router as it is in a new process; it is the one global there is."""
    saved = dict(vars(Router))
    Router._modules = HandlerModules()
    Router.STATE_STORE = MemoryStorage()
    Router.DEFAULT_CAPTURES = {}
    Router.UNDELIVERABLE_QUEUE = None
    Router.AROUND = []
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
    sys.modules.pop("lamson.handlers.forward", None)  # it has the settings of the test's project


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of a test."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    kill_servers(tmp_path)


@pytest.fixture
def project(folder, monkeypatch):
    """A new project whose server takes any free port, and which is the current folder."""
    return make_project(folder, monkeypatch)


@pytest.fixture
def shell(tmp_path):
    """A shell in a folder of its own; what it has started ends with the test."""
    with Shell(tmp_path) as shell:
        yield shell


@pytest.fixture
def names():
    """A name service that knows what the test puts into its zone."""
    with NameServer() as names:
        yield names


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost and 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(needs("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture
def tls(certificate):
    """What a server on localhost needs for TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context
