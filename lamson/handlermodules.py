"""`HandlerModules`: the modules that register routes when they are imported, and again when their files have changed.

The routes that serve are in `table`. A second table is built beside it and swapped in whole, so that whoever looks up
an address meanwhile finds all old routes or all new ones.
"""

import importlib
import os
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from typing import Any

from lamson.decorated import Handler, lamson_setting
from lamson.routetable import RouteTable

SETTLED = 0.05  # seconds without a change, after which a handler's file is whole


class HandlerModules:
    """Modules by name in `modules`, and the `table` of what they have registered. Hold the `lock` to change several."""

    def __init__(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        self.table = RouteTable()
        self.lock = threading.RLock()
        self._building: RouteTable | None = None
        self._stamps: dict[str, tuple[int, int] | None] = {}
        self._known: dict[str, list[tuple[str, Handler]]] = {}

    def register(self, format: str, func: Handler) -> None:
        """Add a route: to the table that is being built while a module is imported, otherwise to that which serves."""
        (self.table if self._building is None else self._building).add(format, func)

    def load(self, name: str) -> None:
        """Import a module, and let its routes serve; none of them when it raises an error, which comes through."""
        with self.lock:
            table = self._build(name, lambda: importlib.import_module(name))
            module = self.modules[name] = sys.modules[name]
            self._stamps[name] = _stamp(module)
            if name not in self._known and name not in self._with_routes():
                # It was imported before, and its routes have been cleared since.
                self._known[name] = list(_routes_of(module))
            self.table = self._with(table)

    def changed(self) -> Iterator[str]:
        """Yield the modules whose files have changed since they were loaded, or since this has yielded them."""
        for name, module in list(self.modules.items()):
            stamp = _stamp(module)
            if stamp is not None and stamp != self._stamps[name]:
                self._stamps[name] = _settled(module, stamp)
                yield name

    def load_again(self, name: str) -> None:
        """Run a module's file again, and let its new routes serve; its old ones go on when it raises an error."""
        module = self.modules[name]
        self.table = self._with(self._build(name, lambda: _run_again(module)), instead_of=name)

    def restore(self) -> None:
        """Let the routes of all modules serve, when they have been cleared since."""
        if any(name not in self._with_routes() for name in self.modules):
            self.table = self._with(RouteTable())

    def clear(self) -> None:
        """Forget every route, and keep the modules."""
        self.table = RouteTable()

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
        for format, func in self.table.entries():
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

    def _with_routes(self) -> set[str]:
        return {func.__module__ for _, func in self.table.entries()}


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
