"""`RoutingBase`: brings a message to the functions that take it, and each sender from state to state.

Each recipient of a message has a copy of its own, and an `Outcome`: a function took it, or refused it, or it is kept in
the undeliverable queue, or nobody has it but the client. What `lamson.routing` says of `Router` is true of any other.
"""

import contextlib
import logging
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lamson.decorated import Handler, lamson_setting, name_of
from lamson.errors import RoutingError, SMTPError
from lamson.handlermodules import HandlerModules
from lamson.logs import printable
from lamson.states import ROUTE_FIRST_STATE, MemoryStorage, StateStorage
from lamson.watch import Watch

log = logging.getLogger("lamson.routing")  # where people know the Router from


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


def _call_name(func: Handler, message: Any, outcome: "Outcome") -> str:
    return f"{name_of(func)} on <{printable(outcome.recipient)}> from <{printable(message.route_from)}>"


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
        self.RELOAD = False
        self.LOG_EXCEPTIONS = True
        self.UNDELIVERABLE_QUEUE: Any = None
        self.LOCKING = "all"
        self.TIMEOUT: float = 60
        self.AROUND: list[Callable[[], contextlib.AbstractContextManager]] = []
        self.CALL_LOCK = threading.RLock()
        self._watch = Watch(lambda: self.TIMEOUT)
        self._modules = HandlerModules()

    @property
    def HANDLERS(self) -> dict[str, types.ModuleType]:
        """The handler modules that have been loaded, by name."""
        return self._modules.modules

    @HANDLERS.setter
    def HANDLERS(self, modules: dict[str, types.ModuleType]) -> None:
        self._modules.modules = modules

    @property
    def REGISTERED(self) -> dict[str, tuple[re.Pattern, list[Handler]]]:
        """format -> (compiled regex, [functions])"""
        return self._modules.table.registered

    @property
    def ORDER(self) -> list[str]:
        """The formats, in the order in which they were registered and are tried."""
        return self._modules.table.order

    # routes

    def register_route(self, format: str, func: Handler) -> None:
        """Make `func` answer to addresses that the regular expression `format` matches as a whole."""
        try:
            self._modules.register(format, func)
        except re.error as error:
            raise RoutingError(f"The route {format!r} of {name_of(func)} is no regular expression: {error}") from error

    def match(self, address: str) -> Iterator[tuple[list[Handler], dict[str, str | None]]]:
        """Yield ``(functions, captures)`` for each route that takes `address`, in the order of registration."""
        for regex, functions in self._modules.table.candidates(address):
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
        self._modules.clear()

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
                f"{name_of(func)} returned {next_state!r}, which is no state. Return a function, or None to stay."
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
            with self._reported("failed: cannot load the handler module %s", name):
                self._modules.load(name)

    def reload(self) -> None:
        """Run those handler modules again whose files changed, and swap in the new routes when all went well.

        States stay. A module that does not run keeps its old routes; that is logged once for each change of its file
        (raised when `LOG_EXCEPTIONS` is off).
        """
        with self._modules.lock:
            for name in self._modules.changed():
                with self._reported("failed: %s changed and cannot be loaded; its old routes go on serving", name):
                    self._modules.load_again(name)
                    log.info("reloaded: %s", name)
            self._modules.restore()

    @contextlib.contextmanager
    def _reported(self, words: str, name: str) -> Iterator[None]:
        """Log what a module raises when it is run; raise it when `LOG_EXCEPTIONS` is off."""
        try:
            yield
        except (Exception, SystemExit):
            if not self.LOG_EXCEPTIONS:
                raise
            log.exception(words, name)


def _copy(message: Any, content: Any, recipients: Any) -> Any:
    """A second message object of the same bytes, made as the first one was: the Router knows no class of messages."""
    return type(message)(message.Peer, message.envelope[0], recipients or None, content)


def _as_given(message: Any, recipient: str) -> str:
    """The recipient as the envelope spells it: the local part's case belongs to its owner (RFC 5321 section 2.4)."""
    return next((address for address in message.envelope[1] or () if address.lower() == recipient), recipient)
