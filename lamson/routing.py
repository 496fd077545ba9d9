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

import re
from collections.abc import Callable
from typing import Any

from lamson.decorated import (
    Handler,
    assert_lamson_settings,
    attach_lamson_settings,
    has_lamson_settings,
    lamson_setting,
    name_of,
)
from lamson.errors import RoutingError
from lamson.router import Outcome, RoutingBase
from lamson.states import ROUTE_FIRST_STATE, MemoryStorage, ShelveStorage, StateStorage

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

# `(name)` in a route, not preceded by a backslash: the place where a capture's regex goes.
_CAPTURE = re.compile(r"(?<!\\)\(([A-Za-z_]\w*)\)")


class MethodRoutingError(RoutingError, NotImplementedError):
    """A routing decorator stands on a method. Also a NotImplementedError, as in Lamson 1.x."""


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
            raise RoutingError(f"{name_of(func)} has no @route that @route_like could follow.")

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
        name = name_of(func)
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
        raise MethodRoutingError(f"{decorator} is for functions of modules, and {name_of(func)} is none.")
