"""`Workers`: several processes that serve together, and one that looks after them.

    Workers(2, serve, close, reload).run(ready=print)   # in the parent; serve(ready) runs in each worker

What is promised:

* `ready` is called when every worker serves. When one cannot, the others are stopped, and `run` raises its reason.
* A worker that dies is replaced: at once when it has lived for a while, and after a growing pause when it has not. What
  it had in hand was not acknowledged, and its clients send it again.
* SIGTERM and SIGINT to the parent stop all workers, each after it has finished what it has in hand.
  Nothing is in hand while they start, so nothing is waited for.
* SIGHUP goes to all, also to one that is just starting. Those that start later have what the parent has read then.
* When the parent is killed, the workers notice, and stop in the same way.

The parent does nothing but wait: no thread runs in it, so that it may fork at any time.
"""

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from lamson.pidfile import STOP_TIME, ServerError

log = logging.getLogger(__name__)

Ready = Callable[[str], None]

# Seconds.
LONG_LIFE = 10  # a worker that lived so long had not died of its start
FIRST_PAUSE = 1
LONGEST_PAUSE = 30
END_TIME = STOP_TIME - 5  # for all to end: longer than their handlers get, shorter than `lamson stop` waits

_SIGNALS = {signal.SIGTERM: b".", signal.SIGINT: b".", signal.SIGHUP: b"h", signal.SIGCHLD: b"c"}


class Workers:
    """`serve` is called in each of `count` processes, with a function to call when it serves; it returns after SIGTERM.

    It finds SIGHUP blocked, so that none is lost, and unblocks it once it can take it. `close` is called in the parent
    before it stops them, to close the sockets that they share, and `reload` when SIGHUP has come: what it reads again
    in the parent, later workers are born with. Only for the main thread of a process without others.
    """

    def __init__(
        self, count: int, serve: Callable[[Ready], object], close: Callable[[], None], reload: Callable[[], None]
    ):
        self.count = count
        self.serve = serve
        self.close = close
        self.reload = reload
        self._heard = b""  # signals that have come and were not acted on
        self._born: dict[int, float] = {}  # pid -> when
        self._due: list[float] = []  # when to start a worker in the place of one that has died
        self._pause = 0.0
        # Of the first pipe, what signals have come. The second one ends when the parent does.
        self._woken, self._waking = os.pipe()
        self._orphaned, self._alive = os.pipe()
        os.set_blocking(self._waking, False)

    def run(self, ready: Ready) -> str:
        """Start the workers, look after them until a signal comes, and stop them. Returns where they served."""
        if os.getpid() != os.getpgrp():
            os.setpgrp()  # so that whoever kills this one can kill them all
        handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            where = self._start_all()
            ready(where)
            log.info("started: %d workers on %s, pid %d", self.count, where, os.getpid())
            self._look_after()
            log.info("stopping: %d workers finish what they are handling", len(self._born))
            self._stop_all()
            log.info("stopped: all workers on %s", where)
            return where
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        with contextlib.suppress(BlockingIOError):  # so full that it will be read in any case
            os.write(self._waking, _SIGNALS[signal.Signals(number)])

    # starting

    def _start_all(self) -> str:
        words = []
        for _ in range(self.count):
            serves, text = self._listen(self._fork())
            if not serves:
                self._stop_all()
                raise ServerError(text)
            words.append(text)
        return words[0]

    def _listen(self, reading: int) -> tuple[bool, str]:
        """Wait for what a worker says. Returns whether it serves, and where; or else why not."""
        with open(reading, encoding="utf-8") as report:
            readable: list[int] = []
            while reading not in readable:
                readable = select.select([reading, self._woken], [], [])[0]
                if self._woken in readable:
                    self._heard += os.read(self._woken, 100)
                if b"." in self._heard:  # it may wait for a database that does not answer
                    return False, "It was told to stop before it served."
            word, _, text = report.readline().strip().partition(" ")
        if word == "listening":
            return True, text
        return False, text or "A worker's process ended before it listened, without a word."

    def _fork(self) -> int:
        """Start a worker. Returns the pipe on which it says that it serves, or why it cannot."""
        sys.stdout.flush()
        sys.stderr.flush()
        reading, writing = os.pipe()
        # What comes for the child meanwhile waits until it has handlers of its own: the parent's would tell the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            os.close(reading)
            self._work(writing)
        self._born[pid] = time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(writing)
        return reading

    # in the worker

    def _work(self, writing: int) -> NoReturn:
        code = 1
        try:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS.keys() - {signal.SIGHUP})
            for end in (self._alive, self._woken, self._waking):
                os.close(end)
            threading.Thread(target=self._end_with_parent, name="lamson-parent", daemon=True).start()
            self.serve(lambda where: _say(writing, f"listening {where}"))
            code = 0
        except ServerError as error:
            log.critical("failed: %s", error, exc_info=error.__cause__)
            with contextlib.suppress(OSError):
                _say(writing, f"failed {error}")
        except BaseException:
            log.critical("failed: a worker ends", exc_info=True)
        finally:
            # Not by way of the parent's exits: the pid file is the parent's.
            logging.shutdown()
            os._exit(code)

    def _end_with_parent(self) -> None:
        os.read(self._orphaned, 1)  # nobody writes there; it ends when the parent does
        log.error("stopping: the parent of this worker has died")
        os.kill(os.getpid(), signal.SIGTERM)

    # looking after them

    def _look_after(self) -> None:
        while True:
            pause = max(min(self._due) - time.monotonic(), 0) if self._due else None
            if self._heard:  # while they started
                pause = 0
            if select.select([self._woken], [], [], pause)[0]:
                self._heard += os.read(self._woken, 100)
            signals, self._heard = self._heard, b""
            if b"." in signals:
                return
            if b"h" in signals:
                self.reload()
                self._tell(signal.SIGHUP)
            for pid, status in self._ended():
                self._replace(pid, status)
            while self._due and min(self._due) <= time.monotonic():
                self._due.remove(min(self._due))
                os.close(self._fork())  # whether it serves shows: it lives, or it ends

    def _ended(self) -> list[tuple[int, int]]:
        ended = []
        for pid in list(self._born):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended.append((pid, status))
        return ended

    def _replace(self, pid: int, status: int) -> None:
        now = time.monotonic()
        if now - self._born.pop(pid) > LONG_LIFE:
            self._pause = 0.0
        log.error(
            "died: the worker with pid %d, by %s; another one starts in %.0f seconds", pid, _end(status), self._pause
        )
        self._due.append(now + self._pause)
        self._pause = min(max(self._pause * 2, FIRST_PAUSE), LONGEST_PAUSE)

    # stopping

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._born:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _stop_all(self) -> None:
        """Let all finish what they have in hand, at the same time; kill those that do not end."""
        self.close()
        self._tell(signal.SIGTERM)
        deadline = time.monotonic() + END_TIME
        while self._born and time.monotonic() < deadline:
            for pid, _ in self._ended():
                del self._born[pid]
            time.sleep(0.02)
        if self._born:
            log.error("killed: the workers with pids %s did not end", ", ".join(map(str, self._born)))
            self._tell(signal.SIGKILL)
            for pid in self._born:
                os.waitpid(pid, 0)
        self._born.clear()


def _say(writing: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # of one that replaces another nobody wants to know
        os.write(writing, " ".join(text.split()).encode("utf-8", "backslashreplace") + b"\n")
    os.close(writing)


def _end(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
