"""A server's process, from the boot module to the last message: `serve`.

    serve(lambda: import_settings(True), become=drop_privileges, ready=print)

It returns when SIGTERM or SIGINT has come and what was in hand is done. With `workers` it runs in so many processes
(`lamson.workers`), which share the port and what is on disk.
"""

import dataclasses
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from typing import Any

from lamson import server
from lamson.hosts import is_one_of
from lamson.pidfile import ServerError
from lamson.routing import Router
from lamson.server import QueueReceiver, Relay, SMTPReceiver
from lamson.startup import explained
from lamson.threads import beside
from lamson.workers import Workers

log = logging.getLogger(__name__)

FILES = 1000  # that handlers may well have open, beside the clients' connections
FEWEST_FILES = 64  # without which there is no serving: the event loop ends the process when it finds none for itself


def serve(
    settings_loader: Callable[[], Any],
    become: Callable[[], None],
    ready: Callable[[str], None],
    workers: int = 1,
) -> str:
    """Serve until a signal ends it, and return where that was. Only for the main thread.

    `become` gives up privileges, once the port is bound. `ready` is called with the place once clients can connect.
    Raises ServerError, which says why, when it cannot serve.
    """
    settings = _load(settings_loader)
    if workers > 1:
        _check_can_share(settings)
    with explained():
        settings.receiver.bind()
    _keep_from_ourselves(settings)
    become()
    if workers == 1:
        where = _serve_here(settings, lambda where: ready(f"{where}, pid {os.getpid()}"))
    else:
        from lamson.database import leave_nothing_open

        leave_nothing_open()  # of what the boot module and those of the handlers have read
        receiver = settings.receiver
        parent = Workers(
            workers,
            lambda ready: _serve_as_worker(settings, workers, ready),
            close=receiver.close,
            reload=lambda: _reload_certificate(receiver),
        )
        where = parent.run(lambda where: ready(f"{where}, pid {os.getpid()}, with {workers} workers"))
    return where


def _keep_from_ourselves(settings: Any) -> None:
    """Let the relay know where this server takes mail, so that it does not bring it here again and again.

    Raises ServerError when it would bring all of it here: a handler would wait for itself.
    """
    receiver, relay = settings.receiver, getattr(settings, "relay", None)
    if not isinstance(receiver, SMTPReceiver) or not isinstance(relay, Relay):
        return
    relay.ourselves = receiver.places
    if relay.hostname and is_one_of(relay.hostname, relay.port, relay.ourselves):
        raise ServerError(
            f"The relay sends to {relay.hostname}:{relay.port}, where this server itself takes mail. "
            "Give relay_config the host and port of another one."
        )


def _check_can_share(settings: Any) -> None:
    store = Router.STATE_STORE
    if not store.shared:
        raise ServerError(
            f"Several workers need one place for the senders' states, and {type(store).__name__} is for one process. "
            "Set Router.STATE_STORE to a SQLAlchemyStorage, or start without -workers."
        )


def _serve_as_worker(settings: Any, workers: int, ready: Callable[[str], None]) -> None:
    engine = getattr(getattr(settings, "database", None), "engine", None)
    if engine is not None:
        engine.dispose(close=False)  # a connection that a handler's module has opened is the parent's
    if isinstance(settings.receiver, SMTPReceiver):
        settings.receiver.workers = workers
    _serve_here(settings, ready)


def _serve_here(settings: Any, ready: Callable[[str], None]) -> str:
    """Serve in this process until a signal ends it. `ready` is called with the place once clients can connect."""
    receiver, relay = settings.receiver, getattr(settings, "relay", None)
    with explained(f"The state storage cannot be prepared as user {os.geteuid()}: "):
        Router.STATE_STORE.prepare()
    for queue in (Router.UNDELIVERABLE_QUEUE, getattr(relay, "outgoing", None), getattr(receiver, "retries", None)):
        folder = getattr(queue, "dir", None)
        if folder and "://" not in folder and not os.access(os.path.join(folder, "new"), os.W_OK | os.X_OK):
            raise ServerError(f"User {os.geteuid()} may not write to {folder}, where mail is kept.")
    if isinstance(receiver, SMTPReceiver):
        _allow_open_files(receiver)
    worker = None
    with explained("The server cannot be started: "):
        # Until here a signal just ends the process; from here on there may be mail in hand. A handler of signals runs
        # between any two steps of the main thread, so all that it does is to write a byte.
        waiting, waking = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.write(waking, b"."))
        signal.signal(signal.SIGHUP, lambda *_: os.write(waking, b"c"))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # one may wait: see `Workers`

        if isinstance(receiver, QueueReceiver):
            worker = threading.Thread(target=_work, args=(receiver, waking), name="lamson-queue", daemon=True)
            worker.start()
        else:
            receiver.start()
        if isinstance(relay, Relay):  # what it could not deliver before is tried again
            relay.start()
    where = receiver.where
    ready(where)
    log.info("started: %s, pid %d", where, os.getpid())

    _until_told(waiting, receiver)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second ctrl-c waits for nobody
    log.info("stopping: no more mail is taken, what is being handled is finished")
    # At the same time, since each may wait for a while for what it has in hand.
    retrying = beside(relay.close) if isinstance(relay, Relay) else None
    receiver.close()
    if worker is not None:
        worker.join(server.SHUTDOWN_TIME)
        if worker.is_alive():
            log.error("gave up: a message of %s is still being handled; it stays in the queue", where)
    if retrying is not None:
        retrying()
    log.info("stopped: %s", where)
    return where


def _allow_open_files(receiver: SMTPReceiver) -> None:
    """Let the process have as many files open as its connections (0: any number) and the handlers need.

    A shell mostly starts programs with a limit of 1024, and clients could leave none of it to the handlers. Where the
    system does not allow more, there may be fewer connections. Raises ServerError when it allows too few for anything.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FEWEST_FILES:
        raise ServerError(
            f"The system allows {hard} open files (ulimit -n), and a server needs {FEWEST_FILES} and more."
        )
    if resource.RLIM_INFINITY in (soft, hard):
        return
    connections = receiver.limits.connection_limit
    wanted = connections + FILES if connections else hard
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if hard < wanted:
        granted = min(max(hard - FILES, hard // 2) * receiver.workers, connections)
        receiver.limits = dataclasses.replace(receiver.limits, connection_limit=granted)
        log.warning(
            "The system allows %d open files, too few for a connection_limit of %d. It is %d.",
            hard,
            connections,
            granted,
        )


def _until_told(waiting: int, receiver: Any) -> None:
    """Wait for a signal to stop. SIGHUP has the certificate read again, and nobody who is connected notices."""
    while os.read(waiting, 1) == b"c":
        _reload_certificate(receiver)


def _reload_certificate(receiver: Any) -> None:
    if not isinstance(receiver, SMTPReceiver):
        return  # and SIGHUP is no reason to end for a server that has none
    try:
        receiver.reload_certificate()
    except OSError as error:
        log.error("failed: the old certificate stays: %s", error)


def _work(receiver: Any, waking: int) -> None:
    try:
        receiver.start()
    except (Exception, SystemExit):  # a thread would end on a handler's sys.exit() without a word
        log.critical("failed: the receiver has ended, and so does the server", exc_info=True)
    finally:
        os.write(waking, b".")


def _load(settings_loader: Callable[[], Any]) -> Any:
    """Return the settings, with a receiver. A handler that cannot be imported is an error here, and not only logged."""
    Router.LOG_EXCEPTIONS = False
    try:
        with explained():
            settings = settings_loader()
    finally:
        Router.LOG_EXCEPTIONS = True
    if getattr(settings, "receiver", None) is None:
        raise ServerError("The boot module has set no settings.receiver, so there is nothing to start.")
    return settings
