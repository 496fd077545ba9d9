"""`RouteTable`: regular expressions for addresses, each with the functions that answer to it, in their order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from lamson.decorated import Handler
from lamson.routeindex import RouteIndex


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
