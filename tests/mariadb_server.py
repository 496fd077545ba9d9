"""A MariaDB of the tests' own: on a free port of 127.0.0.1, with its data in a folder of its own, and not as root.

    with running() as server:
        url = server.new_database()     # mysql+pymysql://root@127.0.0.1:41233/db1?charset=utf8mb4

`running` skips the test, with the reason, where MariaDB or its driver is not installed.
"""

import contextlib
import itertools
import socket
import subprocess
from pathlib import Path

import pytest

from postgres import account, free_port, in_own_folder
from processes import eventually, needs


class MariaDB:
    """A server that runs, into which everybody may log in as root without a password."""

    host = "127.0.0.1"

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        self._names = itertools.count(1)
        self._run("mariadb-install-db", "--auth-root-authentication-method=normal", "--skip-test-db").wait()

    def _run(self, program: str, *options: str) -> subprocess.Popen:
        command = [needs(program), "--no-defaults", f"--datadir={self.folder}/data", *options]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **account())

    def start(self) -> None:
        """Starts it; after `stop`, with the same data and on the same port."""
        listen = [f"--bind-address={self.host}", f"--port={self.port}", f"--socket={self.folder}/socket"]
        self.process = self._run("mariadbd", *listen, f"--pid-file={self.folder}/pid")
        eventually(self._answers, lambda: (self.folder / "log").read_text())

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as client:
            return client.connect_ex((self.host, self.port)) == 0

    def stop(self) -> None:
        """Stops it, and ends its connections."""
        self.process.terminate()
        self.process.wait()

    def url(self, name: str) -> str:
        """The URL of a database, as SQLAlchemy writes it."""
        return f"mysql+pymysql://root@{self.host}:{self.port}/{name}?charset=utf8mb4"

    def new_database(self, options: str = "CHARACTER SET utf8mb4") -> str:
        """Makes a database with nothing in it. Returns its URL."""
        name = f"db{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def execute(self, statement: str, name: str | None = None) -> list:
        """Carries out a statement as root. Returns the rows."""
        import pymysql

        where = {"host": self.host, "port": self.port, "user": "root", "database": name, "autocommit": True}
        with contextlib.closing(pymysql.connect(**where)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())


@contextlib.contextmanager
def running():
    """A server that ends with the block."""
    pytest.importorskip("pymysql", reason="PyMySQL is not installed: pip install PyMySQL")
    for program in ("mariadb-install-db", "mariadbd"):
        needs(program)
    with in_own_folder("lamson-mariadb-", lambda folder: MariaDB(Path(folder))) as server:
        yield server
