"""Messages a second for the whole way: SMTP, parsing, routing, handler, state, reply; beside Salmon and Haraka.

    python benchmarks/whole.py [--rounds 30] [--scale 1.0] [--workers 2] [--salmon PYTHON] [--haraka]

Lamson's server is a generated project as `lamson start` runs it: states in SQLite, a log at INFO in a file. Its handler
either keeps each sender in a state, or moves them to another one with every message, which is a write to the disk each
time. Both there are once more with a handler that computes for a millisecond or so, as handlers do that parse a message
and write an answer. Salmon has the same handler, keeps its states in memory, and logs no message. PYTHON is an
interpreter with the package salmon-mail. Haraka (see peers.py) throws the messages away.

The client is `smtp-source` (Debian's package postfix), messages are of 1 KB, and connections are kept: "20 sessions"
is one client with twenty connections and one sender, "20 clients" are twenty with a sender each. "20 sessions that
pipeline" are those of `pipelining.py`, with a sender each: it leaves more of the processors to the servers than
smtp-source does, and so comes nearer to clients elsewhere. What is counted are messages of moments in which all of
them send, for one server after the other and again (see `load.py`), so that it is not about clients that start, or
that end as the last one. Beside Salmon, how long the client with twenty connections takes for a number of messages is
measured as well ("start to end"): Salmon lets five connections wait, and the others try again a second later, or
three. There the median of the rounds counts. Clients and servers share the processors: where none is left idle, it is
the machine that carries no more. "By processor time" is what as many processors as processes could do, with clients
elsewhere: a second for each, by what a message costs them. Waiting is not in it.
"""

import argparse
import contextlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peers
from frame import missing, ratio
from load import SESSIONS, WHO, Measured, measure_in_turn, start_to_end

SECONDS = 0.4  # of a round
MESSAGES = 6000
WHOLE_RUNS = 5  # rounds for one of start to end

HANDLER = """
from lamson.routing import route, route_like

@route("(address)@(host)", address=".+")
def START(message, address=None, host=None):
    {work}
    return {first}

@route_like(START)
def NEXT(message, address=None, host=None):
    {work}
    return {second}
"""
WORK = "sum(range(50_000))"
KINDS = {  # what the names of servers end in, and what that means
    "": "",
    ", moving": ", each message a new state",
    ", working": ", a millisecond's work",
    ", working, moving": ", each message a new state and a millisecond's work",
}

SALMON = """
import logging, sys, time
logging.basicConfig(filename=sys.argv[2], level=logging.INFO)
from salmon.routing import Router
from salmon.server import SMTPReceiver
sys.path.insert(0, sys.argv[3])
Router.defaults(host="example[.]com")
Router.load(["salmon_handler"])
receiver = SMTPReceiver("127.0.0.1", int(sys.argv[1]))
receiver.start()
while True:
    time.sleep(3600)
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextlib.contextmanager
def lamson(moves: bool, workers: int, database: str = "", work: str = "pass"):
    """A project that runs; yields its port. `database` is the URL of one to use in place of SQLite.

    `work` is a line that its handler runs for each message.
    """
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

    def run(*words: str, where: Path) -> None:
        command = [sys.executable, "-m", "lamson", *words]
        subprocess.run(command, cwd=where, env=environment, check=True, stdout=subprocess.DEVNULL)

    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        run("gen", "-project", "project", where=Path(folder))
        first, second = ("NEXT", "START") if moves else ("NEXT", "NEXT")
        (project / "app/handlers/sample.py").write_text(HANDLER.format(first=first, second=second, work=work))
        settings = project / "config/settings.py"
        text = re.sub(r'"port": 8823\b', f'"port": {port}, "message_limit": 0', settings.read_text())
        text = text.replace("sqlite:///app/data/lamson.db", database) if database else text
        settings.write_text(text.replace("test\\.com", "example\\.com"))
        run("start", *(["-workers", str(workers)] if workers > 1 else []), where=project)
        try:
            yield port
        finally:
            run("stop", where=project)


@contextlib.contextmanager
def salmon(python: str):
    """Salmon with the same handler; yields its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        handler = HANDLER.format(first="NEXT", second="NEXT", work="pass").replace("lamson", "salmon")
        (Path(folder) / "salmon_handler.py").write_text(handler)
        log = str(Path(folder) / "log")
        yield from serving([python, "-c", SALMON, str(port), log, folder], port)


@contextlib.contextmanager
def haraka():
    """Haraka, which throws away what it gets; yields its port."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = peers.haraka_command(port, Path(folder))
        yield from serving(command, port)


def serving(command: list[str], port: int):
    """Yield the port while the command serves there."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_server(port)
        yield port
    finally:
        server.terminate()
        server.wait()


def await_server(port: int) -> None:
    for _ in range(400):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise SystemExit(f"nobody listens on port {port}")


def is_measured(name: str, who: str) -> bool:
    if "working" in name:
        return who == "20 clients"  # messages of one sender are handled one after the other
    return who != "20 sessions that pipeline" or name not in ("Salmon", "Haraka")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2, help="of the servers with workers (2)")
    parser.add_argument("--salmon", metavar="PYTHON", help="an interpreter that has Salmon")
    parser.add_argument("--haraka", action="store_true", help="measure Haraka as well")
    options = parser.parse_args()
    os.environ["PATH"] += peers.SYSTEM
    seconds = SECONDS * options.scale
    servers = {
        "one": lambda: lamson(moves=False, workers=1),
        "workers": lambda: lamson(moves=False, workers=options.workers),
        "one, moving": lambda: lamson(moves=True, workers=1),
        "workers, moving": lambda: lamson(moves=True, workers=options.workers),
        "one, working": lambda: lamson(moves=False, workers=1, work=WORK),
        "workers, working": lambda: lamson(moves=False, workers=options.workers, work=WORK),
        "one, working, moving": lambda: lamson(moves=True, workers=1, work=WORK),
        "workers, working, moving": lambda: lamson(moves=True, workers=options.workers, work=WORK),
    }
    if options.salmon:
        servers["Salmon"] = lambda: salmon(options.salmon)
    if options.haraka:
        servers["Haraka"] = haraka
    whole_runs = {"one": MESSAGES, "one, moving": MESSAGES, "Salmon": MESSAGES // 5}
    found: dict[tuple[str, str], Measured] = {}
    ended: dict[str, list[float]] = {}
    with contextlib.ExitStack() as running:
        ports = {name: running.enter_context(start()) for name, start in servers.items()}
        for _ in range(max(1, options.rounds // WHOLE_RUNS)):
            for name in whole_runs.keys() & ports.keys():
                number = max(SESSIONS, int(whole_runs[name] * options.scale))
                ended.setdefault(name, []).append(start_to_end(ports[name], number))
        for who in WHO:
            wanted = {name: port for name, port in ports.items() if is_measured(name, who)}
            for name, measured in measure_in_turn(wanted, who, options.rounds, seconds).items():
                found[name, who] = measured
    for (name, who), measured in found.items():
        moments = f"{measured.rate:6.0f} messages a second ({min(measured.rates):.0f} to {max(measured.rates):.0f}),"
        used = f"processors {measured.busy:3.0f} % in use, {measured.cost:5.0f} us a message"
        print(f"{name:24} {who:25}", moments, used)
    for name, values in ended.items():
        print(f"{name:24} start to end", *(f"{value:7.0f}" for value in sorted(values)))
    speed = {key: measured.rate for key, measured in found.items()}
    cost = {key: measured.cost for key, measured in found.items()}
    if options.salmon:
        one, moving, theirs = (statistics.median(ended[name]) for name in ("one", "one, moving", "Salmon"))
        what = "the whole way, 20 sessions, start to end"
        ratio(what, one, "Salmon, states in memory", theirs, ">= 3")
        ratio(f"{what}, each message a new state", moving, "Salmon in memory", theirs, ">= 3")
    for who in WHO:
        one, moving = speed["one", who], speed["one, moving", who]
        if ("Salmon", who) in speed:
            theirs = speed["Salmon", who]
            ratio(f"the whole way, {who}", one, "Salmon, states in memory", theirs)
            ratio(f"the whole way, {who}, each message a new state", moving, "Salmon in memory", theirs)
        workers = f"{options.workers} workers"
        for kind, what in KINDS.items():
            if (f"one{kind}", who) not in speed:
                continue
            two, alone = (f"workers{kind}", who), (f"one{kind}", who)
            # What comes from one sender is handled one after the other, whoever handles it.
            bar = ">= 1.6" if options.workers == 2 and who != "20 sessions" else ""
            ratio(f"{workers}, {who}{what}", speed[two], "one process", speed[alone], bar)
            by_time = options.workers * 1e6 / cost[two], "one process", 1e6 / cost[alone]
            ratio(f"{workers}, {who}{what}, by processor time", *by_time)
        if ("Haraka", who) in speed:
            theirs = speed["Haraka", who]
            ratio(f"{workers}, {who}", speed["workers", who], "Haraka, which throws away", theirs, ">= 1")
    for name, given in (("Salmon", options.salmon), ("Haraka", options.haraka)):
        if not given:
            missing(f"the whole way beside {name}", "it was not named")


if __name__ == "__main__":
    main()
