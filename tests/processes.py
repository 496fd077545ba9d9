"""Real processes for tests: command lines, a terminal that is typed into, and nothing left running at the end.

with Shell(tmp_path) as shell:
    shell.run("lamson gen -project mymailserver")
    shell.run("cd mymailserver")
    with shell.terminal("mutt -F muttrc") as mutt:
        mutt.shows("My test.")
        mutt.type("q")
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 30  # seconds for what happens at once on a machine that has nothing else to do


def eventually(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = PATIENCE) -> Any:
    """Returns what `condition` returns, once that is true. Fails with `what` when it does not get there in time."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"It did not come true in {seconds} seconds: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)
    return result


def needs(program: str) -> str:
    """Returns where the program is; skips the test when it is missing. Debian keeps Postfix's tools from users."""
    found = shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"the program {program} is missing")
    return found


def taken(port: int) -> bool:
    """Whether somebody listens on this port, at any address of localhost."""
    for family, _, _, _, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
        with socket.socket(family, socket.SOCK_STREAM) as client:
            if client.connect_ex(address) == 0:
                return True
    return False


def alive(pid: int) -> bool:
    """Whether the process runs. One that has ended and that nobody has asked about yet (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stand_still(pid: int) -> None:
    """Stops a process, and returns once none of its threads does anything: on a busy machine some go on for a while."""
    os.kill(pid, signal.SIGSTOP)
    for stat in list(Path(f"/proc/{pid}/task").glob("*/stat")):
        eventually(lambda stat=stat: stat.read_text().rpartition(")")[2].split()[0] == "T", f"{stat} says so")


def states_read_at_once(url: str, number: int) -> list[str]:
    """What so many processes print that open a database in the same moment, and read the state of one sender."""
    code = (
        "import sys; from lamson.database import *; s = SQLAlchemyStorage(sys.argv[1]); input(); "
        "print(s.get('app.handlers.list', 'zed@example.com'))"
    )
    command = [sys.executable, "-c", code, url]
    where = Path(__file__).parent.parent
    processes = [
        subprocess.Popen(command, cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(number)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate()[0] for process in processes]


class Shell:
    """Runs command lines, in a folder that ``cd`` changes, with Lamson's commands on the path and an empty home.

    What it starts carries a mark in its environment, daemons too, so that they are found again and ended at the end.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.mark = f"STARTED_BY_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "LANG": "C.UTF-8",
            name: value,
        }

    def __enter__(self) -> "Shell":
        return self

    def __exit__(self, *_: object) -> None:
        eventually(self._none_left_but_killed, lambda: f"the end of {self.left()}")

    def _none_left_but_killed(self) -> bool:
        left = self.left()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(pid, signal.SIGKILL)
        return not left

    def run(self, line: str, code: int = 0) -> str:
        """Runs a line as /bin/sh does, checks its exit code, and returns all that it printed."""
        if line.startswith("cd "):
            self.folder /= line.removeprefix("cd ")
            assert self.folder.is_dir(), self.folder
            return ""
        with self.popen(line) as process:
            try:
                said, _ = process.communicate(timeout=60)
            except BaseException:
                process.kill()
                raise
        assert process.returncode == code, f"{line} ended with {process.returncode}:\n{said}"
        return said

    def popen(self, line: str) -> subprocess.Popen:
        """Runs a line beside the test, which reads what it prints."""
        return subprocess.Popen(
            line,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def terminal(self, line: str) -> "Terminal":
        """Runs a line in a terminal of its own."""
        return Terminal(line, self.folder, self.environment)

    def left(self) -> dict[int, str]:
        """The processes that were started here and still run: their numbers and command lines."""
        mark = self.mark.encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it ended just now, or is another user's
        return found


class Terminal:
    """A terminal with a program in it, which sees keys and shows a screen as it does for people (tmux)."""

    def __init__(self, line: str, folder: Path, environment: dict[str, str]):
        # The name of a socket may have a hundred characters, and pytest's folders get longer.
        self.socket = tempfile.mkdtemp(prefix="lamson-terminal-")
        self.environment = environment
        # Without a configuration of the user's; a terminal large enough for a mail with its headers.
        started = self._tmux("-f", os.devnull, "new-session", "-d", "-x", "120", "-y", "50", "-c", str(folder), line)
        assert started.returncode == 0, started.stderr

    def _tmux(self, *words: str) -> subprocess.CompletedProcess:
        command = [needs("tmux"), "-u", "-S", f"{self.socket}/tmux", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._tmux("kill-server")
        shutil.rmtree(self.socket)

    def screen(self) -> str:
        """What is on the screen; nothing once the program has ended."""
        return self._tmux("capture-pane", "-p").stdout.rstrip()

    def shows(self, *texts: str) -> None:
        """Waits until all of these are on the screen at once."""
        eventually(
            lambda: all(map(self.screen().__contains__, texts)), lambda: f"{texts} on the screen\n{self.screen()}"
        )

    def type(self, text: str) -> None:
        """Types characters."""
        assert self._tmux("send-keys", "-l", text).returncode == 0, f"it has ended before {text!r} was typed"

    def press(self, *keys: str) -> None:
        """Presses keys that have names in tmux: Enter, C-u, Escape."""
        assert self._tmux("send-keys", *keys).returncode == 0, f"it has ended before {keys} were pressed"

    def ends(self) -> None:
        """Waits until the program has ended."""
        eventually(lambda: self._tmux("has-session").returncode, lambda: f"the end of\n{self.screen()}")
