"""What the routing decorators leave on a function: its `_lamson_settings`, a dictionary.

`format` and `captures` are those of its latest `@route`, `routes` has the formats of all of them; `stateless` and
`nolocking` are there when those decorators are.
"""

from collections.abc import Callable
from typing import Any

from lamson.errors import RoutingError

Handler = Callable[..., Any]


def has_lamson_settings(func: Handler) -> bool:
    """Whether a routing decorator has been on `func`."""
    return hasattr(func, "_lamson_settings")


def assert_lamson_settings(func: Handler) -> None:
    """Raise RoutingError unless `func` has been decorated."""
    if not has_lamson_settings(func):
        raise RoutingError(f"{name_of(func)} is not decorated. Put @route(...) on it first.")


def attach_lamson_settings(func: Handler) -> None:
    """Give `func` its dictionary of settings, when it has none."""
    if not has_lamson_settings(func):
        func._lamson_settings = {}  # type: ignore[attr-defined]


def lamson_setting(func: Handler, key: str) -> Any:
    """Return one setting of `func` (`format`, `captures`, `stateless`, `nolocking`), or None."""
    return getattr(func, "_lamson_settings", {}).get(key)


def name_of(func: Any) -> str:
    """Return how messages name a function: ``app.handlers.list.START``."""
    return f"{getattr(func, '__module__', '?')}.{getattr(func, '__qualname__', func)}"
