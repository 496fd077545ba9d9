"""The commands that start and stop servers: start, stop, restart, status and log. See `lamson.commands`."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from lamson.args import Octal, Port
from lamson.terminal import no_project, refuse, refusing


def start_command(
    pid: str = "./run/smtp.pid",
    FORCE: bool = False,
    chroot: str | None = None,
    chdir: str = ".",
    boot: str = "config.boot",
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: Octal | None = None,
    debug: bool = False,
    workers: int = 1,
) -> None:
    """Starts the server of the project in this folder, in the background.

    Comes back once clients can connect, and says where; or with the reason why they cannot, and exit code 1. What goes
    wrong before the project's own log is set up is in logs/lamson.err, what handlers print in logs/lamson.out.

    With -uid and -gid the port may be a low one: it is bound first. The folders run, logs and app/data have to belong
    to that user.

    With -workers the process in the pid file looks after the others, and starts a new one when one of them dies. Memory
    is not shared: what handlers keep in variables, each worker has for itself.

    Options:
        -pid FILE: the file to keep the process number in, counted from -chdir
        -FORCE: start even though another server holds the pid file
        -chroot DIR: make this the root folder, in which everything that Lamson needs must be found
        -chdir DIR: the folder of the project, inside -chroot
        -boot MODULE: the module that makes the receiver and loads the handlers
        -uid USER: become this user (name or number) once the port is bound
        -gid GROUP: become this group (name or number) once the port is bound
        -umask OCTAL: permissions that new files do not get
        -debug: stay in the foreground, log to the terminal too, load handlers again when they change
        -workers NUMBER: processes that share the work; their states have to be in a database
    """
    from lamson import utils

    config = utils.real_path("config", chdir, chroot)
    if not os.path.isdir(config):
        no_project(config)

    def settings() -> Any:
        return utils.import_settings(True, boot_module=boot)

    _start("Lamson", pid, FORCE, chroot, chdir, uid, gid, umask, settings, debug, workers)


def stop_command(pid: str = "./run/smtp.pid", KILL: bool = False, ALL: str | None = None) -> None:
    """Stops the server, and comes back when it is gone.

    It finishes what it is handling first, which takes 40 seconds at most; if it takes longer, this exits with 1.

    Options:
        -pid FILE: the file with the process number
        -KILL: do not let it finish what it is handling
        -ALL DIR: stop every server that has its pid file in this folder
    """
    if ALL is not None:
        _stop_all(ALL, KILL)
    elif not _stop([pid], KILL):
        refuse(f"nothing to stop: no server is running with {pid}")


def restart_command(
    pid: str = "./run/smtp.pid",
    KILL: bool = False,
    ALL: str | None = None,
    FORCE: bool = False,
    chroot: str | None = None,
    chdir: str = ".",
    boot: str = "config.boot",
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: Octal | None = None,
    debug: bool = False,
    workers: int = 1,
) -> None:
    """Stops the server when it is running, and starts it.

    Options:
        -pid FILE: the file with the process number, counted from -chdir
        -KILL: do not let it finish what it is handling
        -ALL DIR: stop every server that has its pid file in this folder; only that of -pid is started
        -FORCE: start even though another server holds the pid file
        -chroot DIR: make this the root folder, in which everything that Lamson needs must be found
        -chdir DIR: the folder of the project, inside -chroot
        -boot MODULE: the module that makes the receiver and loads the handlers
        -uid USER: become this user (name or number) once the port is bound
        -gid GROUP: become this group (name or number) once the port is bound
        -umask OCTAL: permissions that new files do not get
        -debug: stay in the foreground, log to the terminal too, load handlers again when they change
        -workers NUMBER: processes that share the work; their states have to be in a database
    """
    from lamson import utils

    if ALL is not None:
        _stop_all(ALL, KILL)
    _stop([utils.real_path(pid, chdir, chroot)], KILL)
    start_command(pid, FORCE, chroot, chdir, boot, uid, gid, umask, debug, workers)


def status_command(pid: str = "./run/smtp.pid") -> None:
    """Tells whether the server is running. Exits with 1 when it is not.

    Options:
        -pid FILE: the file with the process number
    """
    from lamson.pidfile import find_server

    with refusing():
        server = find_server(pid)
    if server is not None:
        print(f"Lamson is running, pid {server.number} ({pid}).")
    elif os.path.exists(pid):
        refuse(f"not running. {pid} is left over from a server that has died")
    else:
        refuse(f"not running. There is no {pid}")


def log_command(
    port: Port = 8825,
    host: str = "127.0.0.1",
    chroot: str | None = None,
    chdir: str = ".",
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: Octal | None = None,
    pid: str = "./run/log.pid",
    FORCE: bool = False,
    debug: bool = False,
    queue: str = "run/queue",
) -> None:
    """Starts a server that takes every mail, logs it and keeps it in a queue, and sends nothing on.

    It stands in for the mail server that a project relays to, and needs no project itself. It logs to logs/logger.log
    where there is a folder logs. Read what it has caught with `mutt -F muttrc`, or `lamson queue -keys`.

    Options:
        -port NUMBER: the port to listen on
        -host HOST: the address to listen on
        -chroot DIR: make this the root folder, in which everything that Lamson needs must be found
        -chdir DIR: the folder to run in, inside -chroot
        -uid USER: become this user (name or number) once the port is bound
        -gid GROUP: become this group (name or number) once the port is bound
        -umask OCTAL: permissions that new files do not get
        -pid FILE: the file to keep the process number in, counted from -chdir
        -FORCE: start even though another server holds the pid file
        -debug: stay in the foreground, and log to the terminal too
        -queue DIR: the Maildir to keep mail in
    """
    from lamson import utils

    def settings() -> Any:
        import lamson.handlers.queue

        lamson.handlers.queue.QUEUE = queue
        return utils.make_fake_settings(host, port)

    relay_port = _relay_port(utils.real_path("config/settings.py", chdir, chroot))
    if relay_port not in (None, port):
        print(
            f"Note: config/settings.py relays to port {relay_port}, so mail of this project is not caught here on "
            f"port {port}. Give relay_config the port {port} and run: lamson restart",
            flush=True,
        )
    _start("The log server", pid, FORCE, chroot, chdir, uid, gid, umask, settings, debug, 1)


def _relay_port(path: str) -> int | None:
    """Return the port that settings plainly give to relay_config, without running them; None when they do not."""
    import ast

    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None
    port = None
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and "relay_config" in map(ast.unparse, statement.targets):
            try:
                config = ast.literal_eval(statement.value)
            except ValueError:
                return None
            port = config.get("port") if isinstance(config, dict) else None
    return port if isinstance(port, int) else None


def _start(name: str, *options: Any) -> None:
    """Start a server with the options of `utils.start_server`, and say where it listens."""
    from lamson import utils

    debug = options[-2]
    try:
        where = utils.start_server(*options)
    except utils.ServerError as error:
        if debug and error.__cause__ is not None and not isinstance(error.__cause__, OSError):
            import traceback

            traceback.print_exception(error.__cause__)
        refuse(str(error))
    if not debug:
        print(f"{name} listens on {where}.")


def _stop_all(folder: str, KILL: bool) -> None:
    if not os.path.isdir(folder):
        refuse(f"there is no folder {folder}")
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pid"))
    if not _stop(paths, KILL):
        print(f"Nothing was running in {folder}.")


def _stop(paths: Iterable[str], KILL: bool) -> int:
    """Stop the servers of these pid files, all at once, and return how many there were."""
    from lamson.pidfile import STOP_TIME, find_server

    stopping, failed = [], 0
    for path in paths:
        with refusing():
            server = find_server(path)
            if server is not None:
                server.signal(KILL)
                stopping.append(server)
    for server in stopping:
        if server.wait(STOP_TIME):
            print(f"Stopped pid {server.number} ({server.path}).")
        else:
            failed += 1
            print(f"lamson: pid {server.number} ({server.path}) is still busy.", file=sys.stderr)
    if failed:
        refuse(f"not stopped within {STOP_TIME} seconds. To end it with its work undone: lamson stop -KILL")
    return len(stopping)
