"""Which handler gets a message: regular expressions over recipients, and one state machine per sender.

A handler module is a set of functions, each named like a state and decorated with the addresses it answers to:

    from lamson.routing import route, route_like

    @route("(list_name)-subscribe@(host)", list_name="[a-z]+")
    def START(message, list_name=None, host=None):
        return CONFIRMING                       # the sender's next message runs CONFIRMING

    @route_like(START)
    def CONFIRMING(message, list_name=None, host=None):
        ...

`Router.deliver` takes each recipient of a message on its own. Every matching `@stateless` function runs, and the
first matching function that is the sender's current state. A sender nobody has met is in ``START``. What no
function took, and what a function failed on, is kept in `Router.UNDELIVERABLE_QUEUE`.

There is one Router for a process, since decorators run when a module is imported and have to find it. A
`RoutingBase` of your own does everything but serve decorators.
"""

import contextlib
import importlib
import logging
import os
import re
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from typing import Any

from lamson.errors import RoutingError, SMTPError
from lamson.logs import printable
from lamson.routeindex import RouteIndex
from lamson.states import ROUTE_FIRST_STATE, MemoryStorage, ShelveStorage, StateStorage
from lamson.watch import Watch

__all__ = [
    "ROUTE_FIRST_STATE",
    "MemoryStorage",
    "MethodRoutingError",
    "Outcome",
    "Router",
    "RoutingBase",
    "RoutingError",
    "ShelveStorage",
    "StateStorage",
    "assert_lamson_settings",
    "attach_lamson_settings",
    "has_lamson_settings",
    "lamson_setting",
    "nolocking",
    "route",
    "route_like",
    "state_key_generator",
    "stateless",
]

log = logging.getLogger(__name__)

Handler = Callable[..., Any]

SETTLED = 0.05  # seconds without a change, after which a handler's file is whole

# `(name)` in a route, not preceded by a backslash: the place where a capture's regex goes.
_CAPTURE = re.compile(r"(?<!\\)\(([A-Za-z_]\w*)\)")


class MethodRoutingError(RoutingError, NotImplementedError):
    """A routing decorator stands on a method. Also a NotImplementedError, as in Lamson 1.x."""


# --- settings that decorators leave on a function ----------------------------------------------------------------


def has_lamson_settings(func: Handler) -> bool:
    """Whether a decorator of this module has been on `func`."""
    return hasattr(func, "_lamson_settings")


def assert_lamson_settings(func: Handler) -> None:
    """Raise RoutingError unless `func` has been decorated."""
    if not has_lamson_settings(func):
        raise RoutingError(f"{_name_of(func)} is not decorated. Put @route(...) on it first.")


def attach_lamson_settings(func: Handler) -> None:
    """Give `func` its dictionary of settings, when it has none."""
    if not has_lamson_settings(func):
        func._lamson_settings = {}  # type: ignore[attr-defined]


def lamson_setting(func: Handler, key: str) -> Any:
    """Return one setting of `func` (`format`, `captures`, `stateless`, `nolocking`), or None."""
    return getattr(func, "_lamson_settings", {}).get(key)


def _name_of(func: Any) -> str:
    return f"{getattr(func, '__module__', '?')}.{getattr(func, '__qualname__', func)}"


def _call_name(func: Handler, message: Any, outcome: "Outcome") -> str:
    return f"{_name_of(func)} on <{printable(outcome.recipient)}> from <{printable(message.route_from)}>"


# --- the Router --------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of one recipient's copy of a message.

    `handled`: a function took it and returned. `queued`: it is in the undeliverable queue. `error`: what a function
    raised, an SMTPError when that is meant for the client. All three empty: no function took it and there is no
    undeliverable queue, so nobody has it but the client.
    """

    recipient: str
    handled: bool = False
    queued: bool = False
    error: BaseException | None = None

    @property
    def safe(self) -> bool:
        """True when the client may forget this copy: it was handled, or it is on disk and was not refused."""
        if isinstance(self.error, SMTPError):
            return False
        return self.queued or (self.handled and self.error is None)


@dataclass
class RouteTable:
    """Routes in the order of their registration. A reload builds a second one and swaps it in whole."""

    registered: dict[str, tuple[re.Pattern, list[Handler]]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    _index: tuple[tuple[str, ...], RouteIndex] | None = None

    def add(self, format: str, func: Handler) -> None:
        if format not in self.registered:
            self.registered[format] = (re.compile(f"^(?:{format})$", re.IGNORECASE), [])
            self.order.append(format)
        functions = self.registered[format][1]
        if func not in functions:
            functions.append(func)

    def add_all(self, other: "RouteTable") -> None:
        for format, func in other.entries():
            self.add(format, func)

    def candidates(self, address: str) -> Iterator[tuple[re.Pattern, list[Handler]]]:
        """Yield the routes that may take an address, in their order: few of many."""
        made = self._index
        # A route may come in while another thread makes the index, so its size tells whether all are in it.
        if made is None or len(made[0]) != len(self.order):
            formats = tuple(self.order)
            self._index = made = formats, RouteIndex(formats)
        formats, index = made
        for number in index.candidates(address):
            yield self.registered[formats[number]]

    def entries(self) -> Iterator[tuple[str, Handler]]:
        for format in self.order:
            for func in self.registered[format][1]:
                yield format, func


@contextlib.contextmanager
def _both(first: contextlib.AbstractContextManager, second: contextlib.AbstractContextManager) -> Iterator[None]:
    with first, second:
        yield


class RoutingBase:
    """The routes, the senders' states, and `deliver`, which brings the two together.

    Set these on `Router` in ``config/boot.py``:

    * `STATE_STORE`: a `StateStorage`.
    * `UNDELIVERABLE_QUEUE`: a `lamson.queue.Queue` for what no function took or a function failed on; None for none.
    * `RELOAD`: look for changed handler modules before every message. For development.
    * `LOG_EXCEPTIONS`: log what a function raises (servers); False raises it to the caller of `deliver` (tests).
    * `LOCKING`: ``'all'`` runs one function at a time, as Lamson always did. ``'sender'`` runs those of different
      senders side by side, so that a slow one does not make strangers wait: for handlers that are safe in threads.
    * `AROUND`: what makes a context manager in which each function runs, inside the lock and before its sender's state
      changes: one that raises at the end makes the function fail. ``django.db.transaction.atomic`` is one.
    * `TIMEOUT`: seconds after which the log tells that a function is still running, and where. 0 is never.
    """

    def __init__(self) -> None:
        self.DEFAULT_CAPTURES: dict[str, str] = {}
        self.STATE_STORE: StateStorage = MemoryStorage()
        self.HANDLERS: dict[str, types.ModuleType] = {}
        self.RELOAD = False
        self.LOG_EXCEPTIONS = True
        self.UNDELIVERABLE_QUEUE: Any = None
        self.LOCKING = "all"
        self.TIMEOUT: float = 60
        self.AROUND: list[Callable[[], contextlib.AbstractContextManager]] = []
        self.CALL_LOCK = threading.RLock()
        self._watch = Watch(lambda: self.TIMEOUT)
        self._table = RouteTable()
        self._building: RouteTable | None = None
        self._load_lock = threading.RLock()
        self._stamps: dict[str, tuple[int, int] | None] = {}
        self._known: dict[str, list[tuple[str, Handler]]] = {}

    @property
    def REGISTERED(self) -> dict[str, tuple[re.Pattern, list[Handler]]]:
        """format -> (compiled regex, [functions])"""
        return self._table.registered

    @property
    def ORDER(self) -> list[str]:
        """The formats, in the order in which they were registered and are tried."""
        return self._table.order

    # routes

    def register_route(self, format: str, func: Handler) -> None:
        """Make `func` answer to addresses that the regular expression `format` matches as a whole."""
        table = self._table if self._building is None else self._building
        try:
            table.add(format, func)
        except re.error as error:
            raise RoutingError(f"The route {format!r} of {_name_of(func)} is no regular expression: {error}") from error

    def match(self, address: str) -> Iterator[tuple[list[Handler], dict[str, str | None]]]:
        """Yield ``(functions, captures)`` for each route that takes `address`, in the order of registration."""
        for regex, functions in self._table.candidates(address):
            found = regex.fullmatch(address)
            if found:
                yield functions, found.groupdict()

    def defaults(self, **captures: str) -> None:
        """Give regexes for captures that routes name without saying what they match, such as ``host``.

        They are used when a decorator runs, so set them before `load`.
        """
        self.DEFAULT_CAPTURES.update(captures)

    def clear_routes(self) -> None:
        """Forget every route; `load` or `reload` registers those of the handler modules again."""
        self._table = RouteTable()

    # states

    def state_key(self, module: str, message: Any) -> str:
        """Return the key for the state store: the module's name, or what its `@state_key_generator` makes of it."""
        generator = getattr(sys.modules.get(module), "_lamson_state_key_generator", None)
        return generator(module, message) if generator else module

    def get_state(self, module: str, message: Any) -> str:
        """Return the name of the state that the message's sender has in `module`.

        A message from nobody (``MAIL FROM:<>``, as bounces have) always finds ``START``: all such senders would
        share one state, and a bounce must not move another one's conversation.
        """
        if not message.route_from:
            return ROUTE_FIRST_STATE
        return self.STATE_STORE.get(self.state_key(module, message), message.route_from)

    def set_state(self, module: str, message: Any, state: str) -> None:
        """Set the state that the message's sender has in `module`, by name. See `get_state` for those without one."""
        if message.route_from:
            self.STATE_STORE.set(self.state_key(module, message), message.route_from, state)

    def in_state(self, func: Handler, message: Any) -> bool:
        """Whether `func` is the current state of the message's sender."""
        return self.get_state(func.__module__, message) == func.__name__

    def in_error(self, func: Handler, message: Any) -> bool:
        """Whether the message's sender is in the ``ERROR`` state of `func`'s module."""
        return self.get_state(func.__module__, message) == "ERROR"

    def clear_states(self) -> None:
        """Forget every sender's state. For tests."""
        self.STATE_STORE.clear()

    # delivery

    def deliver(self, message: Any) -> None:
        """Run the functions that take the message, for each recipient on its own.

        Raises the first SMTPError that a function raised, after all recipients had their turn. With
        `LOG_EXCEPTIONS` off, anything else that a function raises comes through at once.
        """
        for outcome in self.deliver_each(message):
            if isinstance(outcome.error, SMTPError):
                raise outcome.error

    def deliver_each(self, message: Any) -> list[Outcome]:
        """As `deliver`, but returns what became of each recipient's copy and raises no SMTPError."""
        if self.RELOAD:
            self.reload()
        recipients = list(message.route_to)
        if not recipients:
            lost = Outcome("")  # a message in a queue may name nobody; that is no reason to forget it
            self.keep(message, lost)
            return [lost]
        # What a function changes in the message is not for the other recipients' functions to see.
        copies = [message] + [_copy(message, message.as_bytes(), message.To) for _ in recipients[1:]]
        return [self._deliver_one(copy, recipient) for copy, recipient in zip(copies, recipients, strict=True)]

    def _deliver_one(self, message: Any, recipient: str) -> Outcome:
        outcome = Outcome(recipient)
        before = message.recipient  # a function may deliver the message that it is handling once more
        message.recipient = recipient
        try:
            calls = [(func, captures) for functions, captures in self.match(recipient) for func in functions]
            while calls:
                calls = self._walk(message, calls, outcome)
        except SMTPError as error:
            outcome.error = error
            log.info("refused: <%s> for <%s>: %s", printable(message.route_from), printable(recipient), error)
            return outcome
        except Exception as error:  # of the state store, or of a state key generator: functions' own are dealt with
            if not self.LOG_EXCEPTIONS:
                raise
            outcome.error = outcome.error or error
            log.exception("failed: <%s> from <%s>", printable(recipient), printable(message.route_from))
            self.keep(message, outcome)
            return outcome
        finally:
            message.recipient = before
        if not outcome.handled and outcome.error is None:
            log.info(
                "unhandled: no function takes <%s> from <%s> in its state",
                printable(recipient),
                printable(message.route_from),
            )
            self.keep(message, outcome)
        return outcome

    def _walk(self, message: Any, calls: list[tuple[Handler, dict]], outcome: Outcome) -> list[tuple[Handler, dict]]:
        """Run the stateless functions and the one of the sender's state, in order.

        Returns nothing when that is done. Returns the functions with a state when another message of the sender's has
        moved it on meanwhile: they have to be looked through once more, since its new state may stand above.
        """
        states: dict[str, str] = {}
        stateful = []
        ran = moved = False
        for func, captures in calls:
            if lamson_setting(func, "stateless"):
                with self._call_lock(func, message):
                    self._call(func, message, captures, outcome)
                continue
            stateful.append((func, captures))
            if ran or moved:
                continue
            # Each state is read once in a walk: that is the moment at which the message comes to its turn.
            if func.__module__ not in states:
                states[func.__module__] = self.get_state(func.__module__, message)
            if states[func.__module__] == func.__name__:
                with self._call_lock(func, message):
                    if self.in_state(func, message):
                        ran = True
                        self._call(func, message, captures, outcome)
                    else:
                        moved = True
        return stateful if moved else []

    def call_safely(self, func: Handler, message: Any, kwargs: dict[str, Any]) -> None:
        """Call one function under its lock and move the sender to the state it returns, keeping mail it fails on.

        An SMTPError comes through. For other errors see `LOG_EXCEPTIONS`, and the module's ``ERROR`` function.
        """
        with self._call_lock(func, message):
            self._call(func, message, kwargs, Outcome(", ".join(sorted(message.route_to))))

    def _call(self, func: Handler, message: Any, kwargs: dict[str, Any], outcome: Outcome) -> None:
        token = self._watch.begin(lambda: _call_name(func, message, outcome))
        try:
            next_state = self._call_around(func, message, kwargs)
            if next_state is not None and not lamson_setting(func, "stateless"):
                self._follow(func, next_state, message)
            outcome.handled = True
        except SMTPError:
            raise
        except (Exception, SystemExit) as error:  # a handler's sys.exit() is its own end, not that of the server
            if outcome.error is None:
                outcome.error = error
            if self.LOG_EXCEPTIONS:
                log.exception("failed: %s", _call_name(func, message, outcome))
            self.keep(message, outcome)
            if hasattr(sys.modules.get(func.__module__), "ERROR"):
                self.set_state(func.__module__, message, "ERROR")
            if not self.LOG_EXCEPTIONS:
                raise
        finally:
            self._watch.end(token)

    def _call_around(self, func: Handler, message: Any, kwargs: dict[str, Any]) -> Any:
        if not self.AROUND:
            return func(message, **kwargs)
        next_state = None
        with contextlib.ExitStack() as stack:
            for around in self.AROUND:
                stack.enter_context(around())
            next_state = func(message, **kwargs)
        return next_state

    def _follow(self, func: Handler, next_state: Any, message: Any) -> None:
        if not callable(next_state) or not hasattr(next_state, "__name__"):
            raise RoutingError(
                f"{_name_of(func)} returned {next_state!r}, which is no state. Return a function, or None to stay."
            )
        self.set_state(next_state.__module__, message, next_state.__name__)

    def keep(self, message: Any, outcome: Outcome) -> bool:
        """Put one recipient's copy into the undeliverable queue, as it came in and once only.

        Returns whether it is there. Does not raise: without a queue, or when the queue fails, nobody has this copy but
        the client, and the outcome says so.
        """
        if self.UNDELIVERABLE_QUEUE is None or outcome.queued:
            return outcome.queued
        reason = "no function takes it" if outcome.error is None else repr(outcome.error)
        if isinstance(outcome.error, SMTPError):
            reason = str(outcome.error)
        try:
            # Made anew from what arrived: a function may have changed the message before it failed.
            copy = _copy(message, message.original, outcome.recipient and _as_given(message, outcome.recipient))
            key = self.UNDELIVERABLE_QUEUE.push(copy, reason=reason)
        except Exception as error:
            outcome.error = error
            log.exception("failed: cannot keep <%s>", printable(outcome.recipient))
            return False
        outcome.queued = True
        log.warning(
            "undeliverable: kept <%s> from <%s> as %s: %s",
            printable(outcome.recipient),
            printable(message.route_from),
            key,
            printable(reason),
        )
        return True

    def _call_lock(self, func: Handler, message: Any) -> contextlib.AbstractContextManager:
        if lamson_setting(func, "nolocking"):
            return contextlib.nullcontext()
        if self.LOCKING == "sender":
            return self._sender_lock(func, message)
        if self.LOCKING != "all":
            raise RoutingError(f"Router.LOCKING is {self.LOCKING!r}. It has to be 'all' or 'sender'.")
        if self.STATE_STORE.shared and not lamson_setting(func, "stateless"):
            # Other processes have a lock of their own for all. It comes first: whoever holds it may deliver to others.
            return _both(self.CALL_LOCK, self._sender_lock(func, message))
        return self.CALL_LOCK

    def _sender_lock(self, func: Handler, message: Any) -> contextlib.AbstractContextManager:
        return self.STATE_STORE.lock(self.state_key(func.__module__, message), message.route_from or "")

    # modules

    def load(self, handlers: Iterable[str]) -> None:
        """Import handler modules by name, which registers their routes. Import errors: see `LOG_EXCEPTIONS`.

        Of a module that cannot be imported no route is registered.
        """
        for name in handlers:
            with self._load_lock:
                try:
                    table = self._build(name, lambda name=name: importlib.import_module(name))  # type: ignore[misc]
                    module = self.HANDLERS[name] = sys.modules[name]
                    self._stamps[name] = _stamp(module)
                    if name not in self._known and name not in self._modules_with_routes():
                        # It was imported before, and `clear_routes` has forgotten what it registered then.
                        self._known[name] = list(_routes_of(module))
                    self._table = self._with(table)
                except (Exception, SystemExit):
                    if not self.LOG_EXCEPTIONS:
                        raise
                    log.exception("failed: cannot load the handler module %s", name)

    def reload(self) -> None:
        """Run those handler modules again whose files changed, and swap in the new routes when all went well.

        States stay. A module that does not run keeps its old routes; that is logged once for each change of its file
        (raised when `LOG_EXCEPTIONS` is off).
        """
        with self._load_lock:
            for name, module in list(self.HANDLERS.items()):
                stamp = _stamp(module)
                if stamp is None or stamp == self._stamps[name]:
                    continue
                self._stamps[name] = _settled(module, stamp)
                try:
                    table = self._build(name, lambda module=module: _run_again(module))  # type: ignore[misc]
                    self._table = self._with(table, instead_of=name)
                    log.info("reloaded: %s", name)
                except (Exception, SystemExit):
                    if not self.LOG_EXCEPTIONS:
                        raise
                    log.exception("failed: %s changed and cannot be loaded; its old routes go on serving", name)
            if any(name not in self._modules_with_routes() for name in self.HANDLERS):
                self._table = self._with(RouteTable())

    def _build(self, name: str, importing: Callable[[], Any]) -> RouteTable:
        """Import the module `name`, and return the routes registered by that in a table of their own."""
        outer, self._building = self._building, RouteTable()
        try:
            importing()
            self._known.pop(name, None)
            self._remember(self._building)
        except BaseException:
            # Modules that came in beside the one that failed stay imported, and will not register a second time.
            self._remember(self._building, but=name)
            raise
        finally:
            built, self._building = self._building, outer
        return built

    def _remember(self, built: RouteTable, but: str | None = None) -> None:
        for module in {func.__module__ for _, func in built.entries()} - {but}:
            self._known[module] = [entry for entry in built.entries() if entry[1].__module__ == module]

    def _with(self, built: RouteTable, instead_of: str | None = None) -> RouteTable:
        """Return today's routes and the `built` ones, which stand where those of module `instead_of` stood."""
        table = RouteTable()
        placed = False
        for format, func in self._table.entries():
            if func.__module__ != instead_of:
                table.add(format, func)
            elif not placed:
                placed = True
                table.add_all(built)
        table.add_all(built)
        there = {func.__module__ for _, func in table.entries()}
        for module, entries in self._known.items():
            if module not in there and module in sys.modules:
                for entry in entries:
                    table.add(*entry)
        return table

    def _modules_with_routes(self) -> set[str]:
        return {func.__module__ for _, func in self._table.entries()}


def _routes_of(module: types.ModuleType) -> Iterator[tuple[str, Handler]]:
    for func in list(vars(module).values()):
        if isinstance(func, types.FunctionType) and func.__module__ == module.__name__:
            for format in lamson_setting(func, "routes") or ():
                yield format, func


def _run_again(module: types.ModuleType) -> None:
    """Run a module's file again in the module, so that those who imported it see what is new; or leave it as it was."""
    before = dict(vars(module))
    try:
        assert module.__spec__ is not None and module.__spec__.loader is not None
        loader = module.__spec__.loader
        if isinstance(loader, SourceFileLoader):
            # Never from bytecode: Python takes that for the file's as long as second and size are the same.
            exec(loader.source_to_code(loader.get_data(loader.path), loader.path), vars(module))
        else:
            loader.exec_module(module)
    except BaseException:
        # Functions of the module may be running in other threads, so none of its names is gone in between.
        vars(module).update(before)
        for name in vars(module).keys() - before.keys():
            del vars(module)[name]
        raise


def _copy(message: Any, content: Any, recipients: Any) -> Any:
    """A second message object of the same bytes, made as the first one was: the Router knows no class of messages."""
    return type(message)(message.Peer, message.envelope[0], recipients or None, content)


def _as_given(message: Any, recipient: str) -> str:
    """The recipient as the envelope spells it: the local part's case belongs to its owner (RFC 5321 section 2.4)."""
    return next((address for address in message.envelope[1] or () if address.lower() == recipient), recipient)


def _stamp(module: types.ModuleType) -> tuple[int, int] | None:
    """Return what changes when the module's file does, None when it has no file to look at."""
    if not getattr(module, "__file__", None):
        return None
    try:
        status = os.stat(module.__file__)  # type: ignore[arg-type]
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


def _settled(module: types.ModuleType, stamp: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the stamp once the file stays as it is. An editor writes in pieces, and half a file may well be Python."""
    for _ in range(40):
        time.sleep(SETTLED)
        before, stamp = stamp, _stamp(module)
        if stamp == before:
            break
    return stamp


Router = RoutingBase()


# --- decorators --------------------------------------------------------------------------------------------------


def parse_format(format: str, captures: dict[str, str]) -> str:
    """Write the captures' regexes into a route.

        >>> parse_format("(name)@example.com", {"name": "[a-z]+"})
        '(?P<name>[a-z]+)@example.com'

    Raises RoutingError for a capture that has no regex, neither in `captures` nor from `Router.defaults`.
    """
    known = {**Router.DEFAULT_CAPTURES, **captures}

    def regex_of(found: re.Match) -> str:
        name = found.group(1)
        if name not in known:
            raise RoutingError(
                f"The route {format!r} has a capture ({name}) without a regex. "
                f'Write @route({format!r}, {name}=".+") or call Router.defaults({name}=...) before loading.'
            )
        return f"(?P<{name}>{known[name]})"

    return _CAPTURE.sub(regex_of, format)


class route:
    """Run the decorated function for recipients that look like `format`.

        @route("(list_name)-(action)@(host)", list_name="[a-z]+", action="join|leave")
        def START(message, list_name=None, action=None, host=None): ...

    `format` is a regular expression in which ``(name)`` stands for a capture: its regex is given here or by
    `Router.defaults`, and what it matched reaches the function as a keyword argument. The whole of one bare address
    has to match; case does not matter. A function may have several routes. It has to be a module's function.
    """

    def __init__(self, format: str, **captures: str):
        self.captures = captures
        self.format = parse_format(format, captures)

    def __call__(self, func: Handler) -> Handler:
        _assert_function(func, "@route")
        attach_lamson_settings(func)
        settings = func._lamson_settings  # type: ignore[attr-defined]
        Router.register_route(self.format, func)
        settings.update(format=self.format, captures=self.captures)
        settings.setdefault("routes", []).append(self.format)
        return func


class route_like:
    """Give the decorated function the routes of another one, which may live in another module."""

    def __init__(self, func: Handler):
        assert_lamson_settings(func)
        self.like = func
        if not lamson_setting(func, "routes"):
            raise RoutingError(f"{_name_of(func)} has no @route that @route_like could follow.")

    def __call__(self, func: Handler) -> Handler:
        _assert_function(func, "@route_like")
        attach_lamson_settings(func)
        settings = func._lamson_settings  # type: ignore[attr-defined]
        for format in lamson_setting(self.like, "routes"):
            Router.register_route(format, func)
            settings.setdefault("routes", []).append(format)
        settings.update(format=lamson_setting(self.like, "format"), captures=lamson_setting(self.like, "captures"))
        return func


def stateless(func: Handler) -> Handler:
    """Run the function on every match, whatever the sender's state, and let it change none. Goes under `@route`."""
    if lamson_setting(func, "routes"):
        name = _name_of(func)
        raise RoutingError(f"On {name} @stateless stands above @route. Put @route on top, @stateless under it.")
    _assert_function(func, "@stateless")
    attach_lamson_settings(func)
    func._lamson_settings["stateless"] = True  # type: ignore[attr-defined]
    return func


def nolocking(func: Handler) -> Handler:
    """Run the function outside the Router's lock: it may run several times at once, for one sender too."""
    attach_lamson_settings(func)
    func._lamson_settings["nolocking"] = True  # type: ignore[attr-defined]
    return func


def state_key_generator(func: Callable[[str, Any], str]) -> Callable[[str, Any], str]:
    """Let ``func(module_name, message) -> str`` make the key of the state store for the module it stands in.

    With the recipient in the key, for instance, one sender has a conversation of its own with every list.
    """
    func.__globals__["_lamson_state_key_generator"] = func  # type: ignore[attr-defined]
    return func


def _assert_function(func: Any, decorator: str) -> None:
    scope = getattr(func, "__qualname__", "").rpartition(".")[0]
    if not callable(func) or (scope and not scope.endswith("<locals>")):
        raise MethodRoutingError(f"{decorator} is for functions of modules, and {_name_of(func)} is none.")
