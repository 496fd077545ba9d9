"""Clients of three kinds that send to a server, and what servers do while they send.

    from load import measure, measure_in_turn

    measure(port, seconds=2).rate  # messages a second
    measure_in_turn({"one": 8823, "other": 8824}, "20 clients", rounds=30, seconds=0.4)["one"].cost  # microseconds

The speed of a machine that is shared with others changes by half from one second to another. So servers that are to be
set beside each other are measured in turn, for moments, and what counts is the sum of these: clients of all of them are
connected, and stand still (SIGSTOP) but for those of one.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pipelining

SESSIONS = 20
CONNECT = 0.7  # seconds for all clients of a server to connect and send
SETTLE = 0.1  # seconds after which clients that go on send as before


@dataclass
class Clients:
    """Those of one server: their processes, and what says how many messages they have sent by now."""

    processes: list[subprocess.Popen]
    count: Callable[[], int]

    def tell(self, number: signal.Signals) -> None:
        for process in self.processes:
            process.send_signal(number)

    def check(self) -> None:
        codes = [process.poll() for process in self.processes]
        if any(code is not None for code in codes):
            raise SystemExit(f"clients ended with {codes}")


class Measured:
    """What a server has done in all moments that were measured."""

    def __init__(self, port: int):
        self._servers = listeners(port)
        self._moments: list[tuple[float, ...]] = []  # how much each of `_readings` has grown

    def measure(self, clients: Clients, seconds: float) -> None:
        """Measure while the clients send."""
        before = self._readings(clients)
        time.sleep(seconds)
        after = self._readings(clients)
        self._moments.append(tuple(now - then for now, then in zip(after, before, strict=True)))

    def _readings(self, clients: Clients) -> tuple[float, ...]:
        return (time.perf_counter(), clients.count(), cpu(self._servers), *processors())

    @property
    def rates(self) -> list[float]:
        """Messages a second in each moment."""
        return [messages / seconds for seconds, messages, *_ in self._moments]

    @property
    def rate(self) -> float:
        """Messages a second in all of them."""
        return self._sum(1) / self._sum(0)

    @property
    def cost(self) -> float:
        """Microseconds of processor time that the server's processes had for each message."""
        return self._sum(2) / self._sum(1) * 1e6

    @property
    def busy(self) -> float:
        """How much of all processors was in use, by whomever, in percent."""
        return 100 - 100 * self._sum(3) / self._sum(4)

    def _sum(self, reading: int) -> float:
        return sum(moment[reading] for moment in self._moments)


def measure(port: int, seconds: float, who: str = "20 clients") -> Measured:
    measured = Measured(port)
    with WHO[who](port) as clients:
        time.sleep(CONNECT)
        measured.measure(clients, seconds)
        clients.check()
    return measured


def measure_in_turn(ports: dict[str, int], who: str, rounds: int, seconds: float) -> dict[str, Measured]:
    """Measure the servers, by their names, for so many seconds in each round."""
    measured = {name: Measured(port) for name, port in ports.items()}
    with contextlib.ExitStack() as running:
        of_all = {}
        for name, port in ports.items():
            of_all[name] = running.enter_context(WHO[who](port))
            time.sleep(CONNECT)
            of_all[name].tell(signal.SIGSTOP)
        for _ in range(rounds):
            for name, clients in of_all.items():
                clients.tell(signal.SIGCONT)
                time.sleep(SETTLE)
                measured[name].measure(clients, seconds)
                clients.check()
                clients.tell(signal.SIGSTOP)
    return measured


def cpu(processes: list[int]) -> float:
    """Seconds of processor time that they have had."""
    stats = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in processes]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def listeners(port: int) -> list[int]:
    """The processes that listen on a port."""
    wanted = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if _is_at(line, port)}
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(file)[8:-1] in wanted for file in folder.iterdir() if file.is_symlink()):
                found.add(int(folder.parent.name))
    if not found:
        raise SystemExit(f"nobody listens on port {port}")
    return sorted(found)


def _is_at(line: str, port: int) -> bool:
    columns = line.split()
    return columns[3] == "0A" and int(columns[1].partition(":")[2], 16) == port


def processors() -> tuple[int, int]:
    """The time that all processors together had nothing to do, and all of their time (proc_stat(5))."""
    # The two columns behind these are parts of the first two.
    columns = [int(number) for number in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return columns[3] + columns[4], sum(columns)


@contextlib.contextmanager
def all_send(port: int, clients: int) -> Iterator[Clients]:
    """Twenty connections of so many smtp-sources."""
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        counts = [folder / str(number) for number in range(clients)]
        processes = []
        for path in counts:
            command = smtp_source(port, SESSIONS // clients, 10**9, "-c", name=path.name)
            file = running.enter_context(path.open("wb"))
            processes.append(running.enter_context(until_done(subprocess.Popen(command, stdout=file))))
        yield Clients(processes, lambda: sum(map(counted, counts)))


@contextlib.contextmanager
def all_pipeline(port: int) -> Iterator[Clients]:
    """The same of one pipelining.py."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(pipelining.COUNT.pack(0))
        file.flush()
        command = [sys.executable, pipelining.__file__, str(port), str(SESSIONS), file.name]
        with until_done(subprocess.Popen(command)) as process:
            yield Clients([process], lambda: pipelining.COUNT.unpack(Path(file.name).read_bytes())[0])


WHO = {
    "20 sessions": lambda port: all_send(port, 1),
    "20 clients": lambda port: all_send(port, SESSIONS),
    "20 sessions that pipeline": all_pipeline,
}


def smtp_source(port: int, sessions: int, messages: int, *options: str, name: str = "0") -> list[str]:
    """The command of a client of so many connections. `name` makes its addresses."""
    return (
        ["smtp-source", *options, "-d", "-s", str(sessions), "-m", str(messages), "-l", "1024"]
        + ["-f", f"sender{name}@example.org", "-t", f"list{name}@example.com"]
        + [f"127.0.0.1:{port}"]
    )


def start_to_end(port: int, messages: int) -> float:
    """Messages a second of one client of twenty connections, with all that it does to open and close them."""
    start = time.perf_counter()
    subprocess.run(smtp_source(port, SESSIONS, messages), check=True)
    return messages / (time.perf_counter() - start)


@contextlib.contextmanager
def until_done(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Kill it afterwards."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def counted(count: Path) -> int:
    """The last number in the file."""
    with count.open("rb") as file:
        file.seek(max(0, count.stat().st_size - 40))
        numbers = file.read().rpartition(b"\r")[0].split()
    return int(numbers[-1]) if numbers else 0
