"""Real brokers for tests: Redis and RabbitMQ from Debian's packages, on free ports, in folders of their own.

    with Redis(tmp_path) as broker:
        queue = Queue(broker.url("posts"))

`stop` ends a broker as an administrator would, `kill` as a power cut would, and `start` starts it again where it was,
with what it had on disk. A test that needs one that is not installed is skipped with the reason.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from lamson.queue import Queue
from processes import eventually, needs

RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the one on the path runs it as another user, elsewhere
STARTING = 120  # seconds; Erlang takes its time on a busy machine


def free_ports(number: int) -> list[int]:
    """Ports that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def done_by_threads(place: str | Path, number: int = 8) -> list[str]:
    """Claims all messages of a queue in so many threads at once. Returns the keys, as they were done."""
    done: list[str] = []

    def work() -> None:
        own = Queue(place)
        while True:
            with own.claim() as claim:
                if claim is None:
                    return
                done.append(claim.key)
                claim.done()

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


class Broker:
    """What both have in common: processes, the first of which is the broker itself.

    With a `certificate`, a file that has the key as well, it speaks TLS.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", certificate: Path | None = None):
        self.folder = folder
        self.host = host
        self.certificate = certificate
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = 0
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, queue: str, **options: str | float) -> str:
        """The URL of a queue, for `lamson.queue.Queue`."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts it, and returns when it takes connections."""
        raise NotImplementedError

    def run(self, *command: str, **environment: str) -> subprocess.Popen:
        """Starts a process, in a group of its own with all that it starts."""
        with open(self.folder / "output", "ab") as output:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"] + ":/usr/sbin", "HOME": str(self.folder), "LANG": "C", **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Waits until it takes connections."""

        def ready() -> bool:
            assert self.processes[0].poll() is None, (self.folder / "output").read_text()
            with socket.socket() as client:
                return client.connect_ex((self.host, self.port)) == 0

        eventually(ready, lambda: f"a broker\n{(self.folder / 'output').read_text()}", STARTING)

    def stop(self) -> None:
        """Ends it; what is written down is there at the next start."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it without a chance to do anything."""
        self._end(signal.SIGKILL)

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It is there and does nothing."""
        for process in self.processes:
            os.killpg(process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in self.processes:
                os.killpg(process.pid, signal.SIGCONT)

    def _end(self, number: int) -> None:
        for process in self.processes:
            os.killpg(process.pid, number)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.processes.clear()


class Redis(Broker):
    """redis-server, which has everything on disk before it answers."""

    def start(self) -> None:
        program = needs("redis-server")
        self.port = self.port or free_ports(1)[0]
        options = f"--bind {self.host} --port {self.port} --save  --appendonly yes --appendfsync always"
        if self.certificate:
            options = options.replace("--port", "--port 0 --tls-port") + " --tls-auth-clients no"
            options += "".join(f" --tls-{kind}-file {self.certificate}" for kind in ("cert", "key", "ca-cert"))
        self.processes = [self.run(program, *options.split(" "), "--dir", str(self.folder))]
        self.wait()

    def url(self, queue: str, **options: str | float) -> str:
        scheme = "rediss" if self.certificate else "redis"
        return f"{scheme}://{self.host}:{self.port}/0?" + urlencode({"queue": queue, **options})


class RabbitMQ(Broker):
    """RabbitMQ without plugins, and the name service (epmd) that its Erlang wants."""

    def start(self) -> None:
        if not RABBITMQ.exists():
            pytest.skip(f"{RABBITMQ} is missing")
        epmd = shutil.which("epmd") or pytest.skip("the program epmd is missing")
        if not self.port:
            self.port, self._names, self._distribution = free_ports(3)
            (self.folder / "plugins").write_text("[].\n")
            lines = [f"listeners.tcp.1 = {self.host}:{self.port}"]
            if self.certificate:
                lines = [
                    "listeners.tcp = none",
                    f"listeners.ssl.1 = {self.host}:{self.port}",
                    *(f"ssl_options.{kind} = {self.certificate}" for kind in ("certfile", "keyfile")),
                ]
            lines.append("loopback_users = none")
            (self.folder / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in lines))
        output = self.folder / "output"
        self._before = output.stat().st_size if output.exists() else 0
        names = {"ERL_EPMD_PORT": str(self._names), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        naming = self.run(epmd, **names)
        server = self.run(
            str(RABBITMQ),
            RABBITMQ_NODENAME=f"lamson{self.port}@localhost",
            RABBITMQ_MNESIA_BASE=str(self.folder / "data"),
            RABBITMQ_LOG_BASE=str(self.folder / "logs"),
            RABBITMQ_NODE_PORT=str(self.port),
            RABBITMQ_NODE_IP_ADDRESS=self.host,
            RABBITMQ_DIST_PORT=str(self._distribution),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.folder / "plugins"),
            RABBITMQ_CONFIG_FILE=str(self.folder / "rabbitmq.conf"),
            RABBITMQ_CONF_ENV_FILE=os.devnull,
            # Erlang takes the script's place, so that its end is the process's end; it reads no commands all the same.
            RABBITMQ_ALLOW_INPUT="true",
            # Loopback alone, and no spinning while there is nothing to do.
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-noinput +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            **names,
        )
        self.processes = [server, naming]
        self.wait()

    def control(self, *arguments: str) -> None:
        """Does what an administrator does with rabbitmqctl."""
        names = {"ERL_EPMD_PORT": str(self._names), "RABBITMQ_CONF_ENV_FILE": os.devnull}
        node = f"lamson{self.port}@localhost"
        command = self.run(str(RABBITMQ.with_name("rabbitmqctl")), "-n", node, *arguments, **names)
        assert command.wait() == 0, (self.folder / "output").read_text()

    def wait(self) -> None:
        """Waits until it says that it is all there.

        It takes connections some time before that, while it still rewrites its tables: it was seen to forget a queue
        that was made then, with all the messages that it had confirmed, when it was killed in the next moment.
        """
        super().wait()
        eventually(lambda: b"completed with" in self._said(), lambda: self._said().decode(), STARTING)

    def _said(self) -> bytes:
        return (self.folder / "output").read_bytes()[self._before :]

    def url(self, queue: str, **options: str | float) -> str:
        scheme = "amqps" if self.certificate else "amqp"
        return f"{scheme}://guest:guest@{self.host}:{self.port}//?" + urlencode({"queue": queue, **options})
