"""What turns a project into a running server: its settings, the daemon process, its privileges and its pid file.

    where = start_server("run/smtp.pid", False, None, ".", None, None, None, lambda: import_settings(True), False)

What is promised:

* `start_server` returns when clients can connect, or raises `ServerError` with the reason, one line for people.
* Of two servers with one pid file only the first one starts. A file that a dead one has left is no obstacle.
* A server that gets SIGTERM or SIGINT finishes what it is handling before it ends.
* Privileges are dropped after the port is bound and before the first byte is read from it.

Heavy modules (the server, SQLAlchemy) are imported where they are used: `lamson stop` needs none of them.
"""

import grp
import importlib
import logging
import os
import pwd
import signal
import stat
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lamson.pidfile import STOP_TIME, PidFile, ServerError, check_for_pid, find_server
from lamson.startup import explained

if TYPE_CHECKING:
    from daemon import DaemonContext

log = logging.getLogger(__name__)

_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


# --- settings ----------------------------------------------------------------------------------------------------


def import_settings(boot_also: bool, from_dir: str | None = None, boot_module: str = "config.boot") -> Any:
    """Return the module ``config.settings`` of the project in `from_dir` (the current folder when None).

    With `boot_also`, `boot_module` is imported too, which loads the handlers and makes ``settings.receiver`` and
    ``settings.relay``. The folder goes to the front of `sys.path`. Raises ServerError when there is no project, and
    whatever the project's own modules raise.
    """
    folder = os.path.abspath(from_dir or os.curdir)
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    try:
        settings = importlib.import_module("config.settings")
    except ModuleNotFoundError as error:
        if error.name not in ("config", "config.settings"):
            raise
        raise ServerError(
            f"There is no config/settings.py in {folder}. "
            "Go to your project's folder, or make a project: lamson gen -project NAME"
        ) from error
    if boot_also:
        importlib.import_module(boot_module)
        # logging.config.fileConfig silences every logger that it is not told about, Lamson's own as well.
        for name, logger in logging.root.manager.loggerDict.items():
            if name.partition(".")[0] == "lamson" and isinstance(logger, logging.Logger):
                logger.disabled = False
    return settings


def make_fake_settings(host: str, port: int) -> Any:
    """Return settings for a server that only logs and queues what it gets, and needs no project.

    It listens on `host` and `port`, logs to ``logs/logger.log`` when there is a folder ``logs``, keeps every message
    in `lamson.handlers.queue.QUEUE`, and has no relay.
    """
    import lamson.handlers.queue
    from lamson.queue import Queue
    from lamson.routing import Router
    from lamson.server import SMTPReceiver

    if os.path.isdir("logs"):
        logging.basicConfig(
            filename="logs/logger.log", errors="backslashreplace", level=logging.INFO, format=LOG_FORMAT
        )
    Router.load(["lamson.handlers.log", "lamson.handlers.queue"])
    # There from the start, so that a mail program can open it before the first message has come.
    Queue(lamson.handlers.queue.QUEUE)
    settings = types.ModuleType("settings")
    settings.receiver = SMTPReceiver(host, port)  # type: ignore[attr-defined]
    settings.relay = None  # type: ignore[attr-defined]
    return settings


def configure_database(config: Any, also_create: bool = False) -> Any:
    """`lamson.database.configure_database`, which stood here in Lamson 1.x."""
    from lamson.database import configure_database as configure

    return configure(config, also_create)


# --- the process -------------------------------------------------------------------------------------------------


def real_path(path: str, chdir: str = ".", chroot: str | None = None) -> str:
    """Return where a server's `path` is for the one who starts it: it counts from `chdir`, which is inside `chroot`."""
    path = inner_path(os.path.join(chdir, path), chroot)
    return os.path.join(os.path.abspath(chroot), path.lstrip("/")) if chroot else path


def inner_path(path: str, chroot: str | None) -> str:
    """Return `path` as the server sees it, from inside `chroot`."""
    return os.path.normpath("/" + path.lstrip("/")) if chroot else os.path.abspath(path)


def daemonize(
    pid: "str | PidFile",
    chdir: str,
    chroot: str | None,
    umask: int | None,
    files_preserve: list[Any] | None = None,
    do_open: bool = True,
) -> "DaemonContext":
    """Make this process a daemon: in the background, without a terminal, in `chdir`, holding the pid file `pid`.

    What it prints is added to ``logs/lamson.out`` and ``logs/lamson.err`` when there is a folder ``logs``. `umask` None
    keeps the one it has. `files_preserve` stay open, all other files are closed. Returns the `daemon.DaemonContext`,
    which `do_open` False leaves to the caller to open. Raises ServerError when another process holds the pid file.
    """
    import daemon

    pid_file = pid if isinstance(pid, PidFile) else PidFile(real_path(pid, chdir, chroot))
    pid_file.hold()
    folder = real_path("logs", chdir, chroot)
    nowhere = open(os.devnull, "r+")  # noqa: SIM115  # these stay open for as long as the daemon lives
    output = errors = nowhere
    if os.path.isdir(folder):
        output, errors = (open(os.path.join(folder, name), "a") for name in ("lamson.out", "lamson.err"))  # noqa: SIM115
    context = daemon.DaemonContext(
        chroot_directory=chroot or None,
        working_directory=inner_path(chdir, chroot),
        umask=_current_umask() if umask is None else umask,
        pidfile=pid_file,
        detach_process=True,
        files_preserve=[*(files_preserve or []), *pid_file.files],
        stdin=nowhere,
        stdout=output,
        stderr=errors,
    )
    if do_open:
        context.open()
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what is printed is seen at once
    return context


def _current_umask() -> int:
    umask = os.umask(0o077)  # it can only be read by being set
    os.umask(umask)
    return umask


def user_and_group(uid: int | str | None, gid: int | str | None) -> tuple[int | None, int | None]:
    """Return the numbers of a user and a group that are given by name or number, None for one that is not given.

    A user without a group gets the group that is the user's own. Raises ServerError for names nobody has.
    """
    if isinstance(uid, str):
        uid = int(uid) if uid.isdigit() else _number(uid, "user", lambda name: pwd.getpwnam(name).pw_uid)
    if isinstance(gid, str):
        gid = int(gid) if gid.isdigit() else _number(gid, "group", lambda name: grp.getgrnam(name).gr_gid)
    if uid is not None and gid is None:
        gid = _number(uid, "user", lambda number: pwd.getpwuid(number).pw_gid)
    return uid, gid


def _number(name: int | str, kind: str, find: Callable[[Any], int]) -> int:
    try:
        return find(name)
    except KeyError:
        raise ServerError(f"There is no {kind} {name} on this machine.") from None


def drop_priv(uid: int | str | None, gid: int | str | None) -> None:
    """Become the user `uid` and the group `gid` (names or numbers), for good. None keeps the present one.

    All other groups are given up. Raises ServerError when it is not allowed, or there is no such user.
    """
    user, group = user_and_group(uid, gid)
    if (user in (None, os.geteuid()) and group in (None, os.getegid())) or user is group is None:
        return
    try:
        # The user goes last: it is the one who may change the rest.
        if group is not None:
            os.setgroups([group])
            os.setgid(group)
        if user is not None:
            os.setuid(user)
    except PermissionError:
        raise ServerError(f"Only root may become user {uid} and group {gid}.") from None


def start_server(
    pid: str,
    force: bool,
    chroot: str | None,
    chdir: str,
    uid: int | str | None,
    gid: int | str | None,
    umask: int | None,
    settings_loader: Callable[[], Any],
    debug: bool,
    workers: int = 1,
) -> str:
    """Run ``settings_loader().receiver`` in a daemon process, and return where it listens, once it does.

    `workers` is how many processes share the work; with more than one, the daemon process looks after them.

    With `debug` there is no daemon: it runs in this process, logs to the terminal as well, loads handlers again when
    they change, and returns when SIGINT (ctrl-c) or SIGTERM has ended it. Only for the main thread.

    `pid` counts from `chdir`, and `chdir` from `chroot`. `force` starts it although another server holds the pid file.
    Raises ServerError with the reason when it cannot serve; then neither a process nor a pid file is left behind.
    In the daemon process this does not return: it raises SystemExit at the end.
    """
    # False is how Lamson 1.x wrote that there is none, and it must not become user 0 or a umask of 0.
    uid, gid = (None if value is False else value for value in (uid, gid))
    umask = None if umask is False else umask
    folder = real_path(os.curdir, chdir, chroot)
    if not os.path.isdir(folder):
        raise ServerError(f"There is no folder {folder}.")
    if workers < 1 or (debug and workers > 1):
        raise ServerError(f"{workers} workers make no sense{' with -debug, which is for one process' * debug}.")
    user, group = user_and_group(uid, gid)
    pid_file = PidFile(real_path(pid, chdir, chroot))

    def become() -> None:
        if user is not None or group is not None:
            _hand_over(pid_file, -1 if user is None else user, -1 if group is None else group)
            drop_priv(user, group)

    with explained():
        check_for_pid(pid_file.path, force)
        pid_file.hold()

    if debug:
        with pid_file:
            inside = inner_path(chdir, chroot)
            if chroot:
                os.chroot(chroot)
            os.chdir(inside)
            if umask is not None:
                os.umask(umask)
            return _serve(lambda: _in_the_open(settings_loader), become, lambda where: None)

    sys.stdout.flush()
    sys.stderr.flush()
    # What comes between the fork and the wait is for the wait to hear: or else a server starts that nobody wants.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)
    try:
        with explained("The server cannot be started: "):
            reading, writing = os.pipe()
            child = os.fork()
    except ServerError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        pid_file.__exit__()
        raise
    if child:
        os.close(writing)
        pid_file.leave_to_child()
        return _wait_for(child, reading, pid_file.path, before)

    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(reading)
    detached = False
    try:
        with explained():
            daemonize(pid_file, chdir, chroot, umask, [writing])
        detached = True
        _serve(settings_loader, become, lambda where: _report(writing, f"listening {where}"), workers)
    except ServerError as error:
        if detached:  # or else it would be on the terminal, where the report is shown anyway
            log.critical("failed: %s", error, exc_info=error.__cause__)
        pid_file.__exit__()
        _report(writing, f"failed {error}")
        sys.exit(1)
    sys.exit(0)


def _serve(*arguments: Any) -> str:
    from lamson.serving import serve

    return serve(*arguments)


def _report(writing: int, text: str) -> None:
    """Tell the process that waits for the daemon, in one line."""
    with suppress(BrokenPipeError):  # it did not wait
        os.write(writing, " ".join(text.split()).encode("utf-8", "backslashreplace") + b"\n")
    os.close(writing)


def _wait_for(child: int, reading: int, pid: str, unblocked: set[int]) -> str:
    """Wait for the line that the daemon reports, and return where it listens.

    Whoever interrupts that (SIGINT, SIGTERM) stops the daemon as well. These are blocked until here.
    """
    terminated = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        with open(reading, encoding="utf-8") as report:
            word, _, text = report.readline().strip().partition(" ")
    except (KeyboardInterrupt, SystemExit):
        server = find_server(pid)
        if server is not None:
            server.signal()
            server.wait(STOP_TIME)
        raise
    finally:
        signal.signal(signal.SIGTERM, terminated)
    os.waitpid(child, 0)
    if word != "listening":
        raise ServerError(text or "The server's process ended before it listened, without a word.")
    return text


def _in_the_open(settings_loader: Callable[[], Any]) -> Any:
    """Load the settings for somebody who watches: handlers are loaded again on change, the log is on the terminal."""
    from lamson.routing import Router

    settings = settings_loader()
    Router.RELOAD = True
    root = logging.getLogger()
    if not any(getattr(handler, "stream", None) in (sys.stdout, sys.stderr) for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(LOG_FORMAT))
        root.addHandler(handler)
    if root.level > logging.INFO:
        root.setLevel(logging.INFO)
    return settings


def _hand_over(pid_file: PidFile, user: int, group: int) -> None:
    """Give the user what root has opened or made until now: it could not be written after privileges are dropped.

    That is the pid file and the files that are logged to, and in the folders of these, as far as they are the user's,
    what is root's (queues that the boot module made, files that an earlier start as root left behind).
    """
    pid_file.hand_over(user, group)
    folders = {os.path.dirname(pid_file.path)}
    for path, file in _log_files():
        os.fchown(file, user, group)
        folders.add(os.path.dirname(path))
    for folder in folders:
        for _, subfolders, files, here in os.fwalk(folder):
            if os.fstat(here).st_uid != user:
                subfolders.clear()
                continue
            for name in subfolders + files:
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                # A file with a second name may be one of root's elsewhere.
                if status.st_uid == 0 and (stat.S_ISDIR(status.st_mode) or status.st_nlink == 1):
                    os.chown(name, user, group, dir_fd=here, follow_symlinks=False)


def _log_files() -> list[tuple[str, int]]:
    """Return the path and the file number of every file that is logged to."""
    loggers = [logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    files = [handler for handler in handlers if isinstance(handler, logging.FileHandler)]
    return [(handler.baseFilename, handler.stream.fileno()) for handler in files if handler.stream]
