"""A PostgreSQL of the tests' own: on a free port, with its data in a folder of its own, and not as root.

    with running() as server:
        url = server.new_database()     # postgresql+psycopg://lamson@127.0.0.1:41233/db1

`running` skips the test, with the reason, where PostgreSQL or its driver is not installed.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from glob import glob
from pathlib import Path

import pytest


def folder_of_programs():
    """Where initdb and postgres are; None when there is no PostgreSQL. Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found:
        return os.path.dirname(os.path.realpath(found))
    folders = sorted(glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(path.split("/")[-2]))
    return folders[-1] if folders else None


def account():
    """Arguments of `subprocess` that make a program run as nobody when we are root, whom PostgreSQL refuses."""
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Postgres:
    """A server that runs. `host` and `port` are where; everybody may log in as the superuser ``lamson``."""

    host = "127.0.0.1"

    def __init__(self, folder, programs, host="127.0.0.1", settings=()):
        self.folder = Path(folder)
        self.programs = programs
        self.host = host
        self.settings = list(settings)
        self.port = 0
        self._names = itertools.count(1)
        arguments = ["-D", self.folder / "data", "-U", "lamson", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [os.path.join(programs, "initdb"), *arguments], check=True, capture_output=True, cwd="/", **account()
        )
        with open(self.folder / "data/pg_hba.conf", "a") as file:
            file.write(f"host all lamson {host}/24 trust\n")  # those that have a network with it

    def start(self):
        """Starts it; after `stop`, with the same data and on the same port."""
        for _ in range(5):
            # Somebody else may take the port before the server does.
            self.port = self.port or free_port()
            options = [f"listen_addresses={self.host}", f"unix_socket_directories={self.folder}", *self.settings]
            with open(self.folder / "log", "ab") as log:
                self.process = subprocess.Popen(
                    [os.path.join(self.programs, "postgres"), "-D", self.folder / "data", "-p", str(self.port)]
                    + [argument for option in options for argument in ("-c", option)],
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    **account(),
                )
            while self.process.poll() is None:
                if self._answers():
                    return
                time.sleep(0.02)
            self.port = 0
        raise RuntimeError((self.folder / "log").read_text())

    def _answers(self):
        ready = subprocess.run(
            [os.path.join(self.programs, "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)], check=False
        )
        return ready.returncode == 0

    def stop(self):
        """Stops it, and ends its connections."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait()

    def kill(self):
        """Ends it at once, as a crash does. `start` repairs its data."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def url(self, name="postgres"):
        """The URL of a database, as SQLAlchemy writes it."""
        return f"postgresql+psycopg://lamson@{self.host}:{self.port}/{name}"

    def new_database(self):
        """Makes a database with nothing in it. Returns its URL."""
        name = f"db{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement, name="postgres"):
        """Carries out a statement as the superuser. Returns the rows, when there are any."""
        import psycopg

        with psycopg.connect(host=self.host, port=self.port, user="lamson", dbname=name, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def running(host="127.0.0.1", settings=("fsync=off",)):
    """A server that listens on `host`, which ends with the block. `settings` are lines of postgresql.conf."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install lamson[postgresql]")
    programs = folder_of_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with in_own_folder("lamson-pg-", lambda folder: Postgres(folder, programs, host, settings)) as server:
        yield server


@contextlib.contextmanager
def in_own_folder(prefix, make):
    """A server that `make` makes for a folder, which belongs to whoever it runs as. Both are gone after the block."""
    # Not in pytest's own folder: nobody may look into that. Its name is short, as those of sockets have to be.
    folder = tempfile.mkdtemp(prefix=prefix)
    try:
        if not os.geteuid():
            os.chown(folder, account()["user"], account()["group"])
        server = make(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
