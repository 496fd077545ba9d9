"""Servers of the tests' own, each on a free port with its data in a folder of its own: for the examples of stores.

Each of them is a context manager, ends its server with the block, and skips the test with the reason where the server
is not installed.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

NPM_SECONDS = 180  # after which the installation of pouchdb-server is given up


class Server:
    """A process that listens on `port`. `stop` and `start` again make it what a restart of the machine would."""

    def __init__(self, command, folder, port, answers=None):
        self.command = [str(each) for each in command]
        self.folder = folder
        self.port = port
        self._answers = answers or self._is_open
        self.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not self._answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.command[0]} ended: " + (self.folder / "server.log").read_text())
            time.sleep(0.02)

    def _is_open(self):
        with socket.socket() as client:
            return not client.connect_ex(("127.0.0.1", self.port))

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()

    def kill(self):
        self.stop(signal.SIGKILL)


def free_ports(count, most=65535):
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        ports = []
        while len(ports) < count:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            if listener.getsockname()[1] <= most:
                ports.append(listener.getsockname()[1])
        return ports


@contextlib.contextmanager
def _running(make, answers=None):
    """A server that ``make(folder, port)`` gives the command of. Somebody else may take its port first: tried again."""
    with tempfile.TemporaryDirectory(prefix="lamson-store-") as name:
        for attempt in range(3):
            (port,) = free_ports(1)
            folder = Path(name) / str(attempt)
            folder.mkdir()
            try:
                server = Server(make(folder, port), folder, port, answers and (lambda port=port: answers(port)))
                break
            except RuntimeError:
                if attempt == 2:
                    raise
        try:
            yield server
        finally:
            server.kill()


def _program(name, package):
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install {package}")
    return found


def memcached():
    """Debian's memcached. It answers to 127.0.0.1 alone, and not by UDP."""
    program = _program("memcached", "memcached")
    user = [] if os.geteuid() else ["-u", "nobody"]
    return _running(lambda folder, port: [program, "-l", "127.0.0.1", "-p", port, "-U", "0", *user])


REDIS_SETTINGS = ["--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always", "--save", ""]


def redis():
    """Debian's Redis, which writes each change to the disk before it answers."""
    program = _program("redis-server", "redis-server")
    return _running(lambda folder, port: [program, "--port", port, "--dir", folder, *REDIS_SETTINGS], _answers_ping)


def _answers_ping(port):
    """Whether Redis has read its file, and not only opened its port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"PING\r\n")
        return client.recv(100).startswith(b"+PONG")
    return False


@contextlib.contextmanager
def redis_cluster():
    """Three nodes of Redis that have agreed to be a cluster. Gives the list of them."""
    program, client = _program("redis-server", "redis-server"), _program("redis-cli", "redis-tools")

    def node(folder, port):
        (bus,) = free_ports(1)
        cluster = ["--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-config-file", folder / "nodes.conf"]
        return [program, "--port", port, "--dir", folder, *REDIS_SETTINGS, *cluster]

    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(_running(node, _answers_ping)) for _ in range(3)]
        create = [client, "--cluster", "create", *[each.address for each in nodes], "--cluster-yes"]
        done = subprocess.run(create, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        for each in nodes:
            while "cluster_state:ok" not in subprocess.check_output(
                [client, "-p", str(each.port), "cluster", "info"], text=True
            ):
                time.sleep(0.05)
        yield nodes


def mongodb():
    """nx-27017: MongoDB's protocol over SQLite. There is no mongod to be had in Debian, nor in a Python package."""
    pytest.importorskip("nx_27017", reason="nx-27017 is not installed: pip install lamson[test]")

    def command(folder, port):
        own = ["--db", folder / "data.db", "--log-file", folder / "log", "--pid-file", folder / "pid"]
        return [Path(sys.executable).parent / "nx-27017", "--host", "127.0.0.1", "-p", port, *own]

    return _running(command)


def couchdb():
    """pouchdb-server, from npm: CouchDB's HTTP API over LevelDB. There is no couchdb in Debian 12.

    As in CouchDB 3 one has to log in: the name is ``admin``, the password ``sec@ret``.
    """
    node, script = _program("node", "nodejs"), _pouchdb_server()

    def command(folder, port):
        (folder / "config.json").write_text(json.dumps({"admins": {"admin": "sec@ret"}}))
        return [node, script, "--host", "127.0.0.1", "--port", port, "--dir", folder, "--no-stdout-logs"]

    return _running(command, _answers_http)


def _answers_http(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            return answer.status == 200
    except OSError:
        return False


def _pouchdb_server():
    """The script of pouchdb-server, which npm installs into a cache folder the first time, in CI or when asked to."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamson-tests/pouchdb-server"
    script = cache / "node_modules/pouchdb-server/bin/pouchdb-server"
    if script.exists():
        return script
    if not (os.environ.get("CI") or os.environ.get("LAMSON_TEST_NPM")):
        pytest.skip("pouchdb-server is not installed: run with LAMSON_TEST_NPM=1, which has npm install it (60 MB)")
    reason = _install_pouchdb_server(_program("npm", "npm"), cache)
    if reason:
        pytest.skip(reason)
    return script


@functools.cache  # not once more for each test when it cannot be
def _install_pouchdb_server(npm, cache):
    """Has npm install it. Returns why it did not."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
        # Without scripts: they would compile what nobody needs here. LevelDB comes compiled.
        options = ["--prefix", folder, "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"]
        try:
            done = subprocess.run(
                [npm, "install", *options, "pouchdb-server@4.2.0"],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=NPM_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"npm did not install pouchdb-server in {NPM_SECONDS} seconds"
        if done.returncode:
            return f"npm could not install pouchdb-server: {done.stderr.strip().splitlines()[:1]}"
        with contextlib.suppress(OSError):  # another test run came first
            os.rename(folder, cache)
        os.makedirs(folder, exist_ok=True)  # for its removal
    return None
