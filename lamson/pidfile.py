"""The pid file: how a server that is started is found again, and how two of them are kept apart.

    with PidFile("run/smtp.pid"):               # in the server: ServerError when another one has it
        serve()

    server = find_server("run/smtp.pid")        # elsewhere: None when no server lives
    server.signal()
    server.wait(40)

The server locks its file (flock) for as long as its process lives. The lock, and not the number in it, tells whether it
lives: numbers are given again to other processes, and a file stays behind after a power cut.
"""

import fcntl
import os
import signal
import time

from lamson.errors import LamsonError

STOP_TIME = 40  # seconds to wait for a server to end; it gives its handlers 30 of them


class ServerError(LamsonError):
    """A server could not be started or stopped. The text is one line that says why."""


class PidFile:
    """The server's side of its pid file: locked from `hold` until the process ends, with its number in it.

    A context manager, as `daemon.DaemonContext` wants it: entered by the daemon, left when its process ends. Works
    after chroot and without root's privileges as well.
    """

    def __init__(self, path: str):
        self.path = os.path.abspath(path)
        self.files: list[int] = []  # the pid file, and the folder it is in
        self.made_folder = False

    def hold(self) -> None:
        """Lock the file, which is made when it is missing; its folder too. Raises ServerError when a server has it."""
        if self.files:
            return
        self.made_folder = not os.path.isdir(os.path.dirname(self.path))
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        patience = time.monotonic() + 1  # `lamson status` shares the lock for a moment
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(self.path, file):
                    break  # and not a file that was removed after it was opened
            except BlockingIOError:
                if time.monotonic() > patience:
                    os.close(file)
                    raise ServerError(f"A server is running already, see {self.path}.") from None
                time.sleep(0.01)
            os.close(file)
        os.ftruncate(file, 0)
        self.files = [file, os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY)]

    def __enter__(self) -> "PidFile":
        self.hold()
        os.pwrite(self.files[0], b"%d\n" % os.getpid(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file. The lock stays until the process ends, so that nobody takes it for gone too early."""
        if not self.files:
            return
        file, folder = self.files
        name = os.path.basename(self.path)
        if _is_at(name, file, folder):  # and not another server's, which -FORCE has started
            try:
                os.unlink(name, dir_fd=folder)
            except PermissionError:  # privileges are dropped, and the folder is root's
                os.ftruncate(file, 0)

    def hand_over(self, user: int, group: int) -> None:
        """Make the file another user's (-1 keeps one of the two), and its folder too, when `hold` has made that."""
        for file in self.files if self.made_folder else self.files[:1]:
            os.fchown(file, user, group)

    def leave_to_child(self) -> None:
        """Close the files and keep the lock, which the processes forked from this one share."""
        while self.files:
            os.close(self.files.pop())


class RunningServer:
    """The other side: the live process that holds a pid file. Made by `find_server`."""

    def __init__(self, path: str, file: int, number: int):
        self.path = path
        self.number = number
        self._file = file

    def signal(self, KILL: bool = False) -> None:
        """Ask the process to end (SIGTERM), or end it (SIGKILL). Raises ServerError when it is not ours to end."""
        try:
            if KILL and self._leads_a_group():
                os.killpg(self.number, signal.SIGKILL)  # its workers as well
            else:
                os.kill(self.number, signal.SIGKILL if KILL else signal.SIGTERM)
        except ProcessLookupError:
            pass  # it ended just now
        except PermissionError:
            raise ServerError(f"The server with pid {self.number} belongs to another user: stop it as root.") from None

    def _leads_a_group(self) -> bool:
        try:
            return os.getpgid(self.number) == self.number
        except ProcessLookupError:
            # It has died, and workers of its group hold its lock. As long as they live, nobody else gets the number.
            return True

    def wait(self, seconds: float) -> bool:
        """Wait until the process is gone, and return whether it is."""
        deadline = time.monotonic() + seconds
        while not _free(self._file):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        if _is_at(self.path, self._file):  # one that was killed could not remove it
            os.unlink(self.path)
        return True


def find_server(pid: str) -> RunningServer | None:
    """Return the server that holds the pid file `pid`; None when the file is missing or nobody holds it.

    Raises ServerError when the file may not be read.
    """
    try:
        file = os.open(pid, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise ServerError(f"You may not read {pid}.") from None
    patience = time.monotonic() + 5
    while not _free(file):
        number = os.pread(file, 20, 0).strip()
        if number.isdigit():
            return RunningServer(pid, file, int(number))
        if time.monotonic() > patience:
            os.close(file)
            raise ServerError(f"Some process holds {pid} and has not written its number there.")
        time.sleep(0.02)
    os.close(file)
    return None


def _is_at(path: str, file: int, folder: int | None = None) -> bool:
    """Whether `path` names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, dir_fd=folder))
    except FileNotFoundError:
        return False


def _free(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(file, fcntl.LOCK_UN)
    return True


def check_for_pid(pid: str, force: bool) -> None:
    """Raise ServerError when a live server holds the pid file `pid`. With `force` the file is removed instead.

    A pid file that nobody holds is no obstacle.
    """
    server = find_server(pid)
    if server is None:
        return
    if not force:
        raise ServerError(f"A server is running already, pid {server.number} in {pid}. Stop it: lamson stop -pid {pid}")
    os.unlink(pid)
