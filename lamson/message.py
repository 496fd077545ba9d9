"""`WithHeaders`: what the two kinds of message in `lamson.mail` have in common, which is the use of their headers."""

import warnings
from collections.abc import Iterator
from typing import Any

from lamson.mime import MailBase


class WithHeaders:
    """Both kinds of message are used as a dictionary of the headers in their `base`."""

    base: MailBase

    @property
    def msg(self) -> MailBase:
        """The old name of `base`."""
        warnings.warn("msg is now called base.", DeprecationWarning, stacklevel=2)
        return self.base

    def __getitem__(self, name: str) -> str | None:
        return self.base[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.base[name] = value

    def __delitem__(self, name: str) -> None:
        del self.base[name]

    def __contains__(self, name: object) -> bool:
        return name in self.base

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def keys(self) -> list[str]:
        """The names of the headers, sorted, each once."""
        return self.base.keys()

    def items(self) -> list[tuple[str, str]]:
        """Every header and its value, repeated ones each time, in the order of the message."""
        return self.base.items()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a header, `default` when it is not there."""
        return self.base.get(name, default)

    def get_all(self, name: str) -> list[str]:
        """All values of a header that may be there several times, such as Received, in order."""
        return self.base.get_all(name)

    def add_header(self, name: str, value: Any) -> None:
        """Adds a header and keeps those of that name which are there."""
        self.base.add_header(name, value)
