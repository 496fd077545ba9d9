"""The ``nosetests`` command: nose is dead, its habits live. A plugin for nose2, and a command that runs nose2 with it.

    $ nosetests                                          every test below the current folder
    $ nosetests -v tests/handlers                        those of a folder, each by name
    $ nosetests tests/handlers/open_relay_tests.py:test_forwards_mail      just this one
    $ nosetests tests.handlers.open_relay_tests:test_forwards_mail         the same one

The plugin teaches nose2 what people who know nose take for granted:

* Tests are in files and functions named like ``test_this``, ``this_test`` and ``these_tests``, and in classes named
  ``Test...``. Folders named like that are searched with all below them, and packages of any
  name. `istest` and `nottest` of `lamson.testing` overrule names.
* Functions run in the order in which they stand in their file, files and folders in that of their names.
* A module's ``setup`` and ``teardown`` run around its tests, also when spelled ``setup_module``, ``setupModule`` or
  ``setUpModule``; a class's ``setup_class`` and ``teardown_class`` around its tests, ``setup`` and ``teardown`` around
  each. (Fixtures of packages, which nose had, are not run.)
* The current folder is importable, and so is the folder of each file of tests that is not in a package.

One habit is Lamson's: when there is a ``config/testing.py`` in the current folder, it is imported before anything
else. When it cannot be imported, no test is run and the run fails. A run that found no test fails too, and says so.

Plain nose2 does all this where its configuration, ``unittest.cfg``, says ``plugins = lamson.nosetests``.
"""

import argparse
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
import types
import unittest
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import nose2.util
from nose2 import discover
from nose2.events import Plugin
from nose2.plugins.loader.functions import FunctionTestCase

__unittest = True  # nose2 and unittest leave the frames of such modules out of a failure's traceback

# "test" at the start of a word: test_this, this_test, these_tests, but neither latest nor contest.
LOOKS_LIKE_A_TEST = re.compile(r"(?:^|[_.-])[Tt]est")

MODULE_SETUP = ("setup_module", "setupModule", "setUpModule", "setup", "setUp")
MODULE_TEARDOWN = ("teardown_module", "teardownModule", "tearDownModule", "teardown", "tearDown")
CLASS_FIXTURES = {
    "setUpClass": ("setup_class", "setupClass", "setUpClass", "setupAll", "setUpAll"),
    "tearDownClass": ("teardown_class", "teardownClass", "tearDownClass", "teardownAll", "tearDownAll"),
    "setUp": ("setup", "setUp"),
    "tearDown": ("teardown", "tearDown"),
}


def main(argv: list[str] | None = None) -> None:
    """Runs the tests that `argv` (default: the command line) names. Exits with 0 when all passed, 1 when not, 2 for
    a wrong option."""
    parser = argparse.ArgumentParser(
        prog="nosetests",
        description="Run the tests below the current folder, or those that are named.",
        epilog="Loads config/testing.py when there is one.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a file, folder or module, :function or :Class.method")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the name of each test")
    parser.add_argument("-x", "--stop", action="store_true", help="stop after the first failure")
    parser.add_argument("-s", "--nocapture", action="store_true", help="show what the tests print at once")
    options = parser.parse_args(argv)

    arguments = ["--plugin", "lamson.nosetests"]
    arguments += ["--verbose"] * options.verbose + ["--fail-fast"] * options.stop
    arguments += [] if options.nocapture else ["--output-buffer"]
    discover(argv=["nosetests", *arguments, "--", *options.names])


class NoseHabits(Plugin):
    """The plugin. Each method below that has no underscore in front is a hook of nose2's, called by that name."""

    alwaysOn = True
    configSection = "nose-habits"

    def __init__(self) -> None:
        self.found_a_test = False

    # before and after the run

    def createTests(self, event: Any) -> Any:
        folder = os.getcwd()
        if sys.path[0] not in ("", folder):
            sys.path.insert(0, folder)
        if os.path.isfile(os.path.join("config", "testing.py")):
            try:
                importlib.import_module("config.testing")
            except Exception:
                event.handled = True
                return event.loader.failedImport("config.testing")
        return None

    def testOutcome(self, event: Any) -> None:
        self.found_a_test = True

    def wasSuccessful(self, event: Any) -> None:
        if not self.found_a_test:
            event.success = False

    def beforeSummaryReport(self, event: Any) -> None:
        if not self.found_a_test:
            event.stream.writeln(
                f"No tests were found in {os.getcwd()}. They belong into functions named like test_this, in files "
                "named like this_tests.py or test_this.py, in a folder named tests."
            )

    def outcomeDetail(self, event: Any) -> None:
        # The plugin that captures what a test prints, which comes after this one, would show that it is nothing.
        if not "".join(event.outcomeEvent.metadata.get("stdout", "").splitlines()[1:-1]):
            event.outcomeEvent.metadata.pop("stdout", None)

    # finding tests

    def loadTestsFromNames(self, event: Any) -> Any:
        if event.names or event.module:
            return None
        event.handled = True
        return list(self._in_folder(event.loader, Path(self.session.startDir).absolute()))

    def loadTestsFromName(self, event: Any) -> Any:
        path, member = _place_of(event.name)
        module, _, in_module = event.name.partition(":")
        if path is not None:
            event.handled = True
            tests = self._in_folder(event.loader, path) if path.is_dir() else self._in_file(event.loader, path)
            return self._only(event.loader, event.loader.suiteClass(tests), event.name, member)
        if module.endswith(".py") or os.sep in module:
            event.handled = True
            return event.loader.failedLoadTests(module, FileNotFoundError(f"There is no file or folder {module}."))
        if in_module and not in_module.isdigit():  # a number is nose2's own way to name what a generator yields
            event.handled = True
            return self._only(event.loader, self._in_module(event.loader, module), event.name, in_module)
        return None

    def _in_folder(self, loader: Any, folder: Path) -> Iterator[unittest.TestSuite]:
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                if not path.name.startswith((".", "_")) and self._holds_tests(path):
                    yield from self._in_folder(loader, path)
            elif path.suffix == ".py" and LOOKS_LIKE_A_TEST.search(path.stem):
                yield self._in_file(loader, path)

    def _holds_tests(self, folder: Path) -> bool:
        below = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        return (
            any(LOOKS_LIKE_A_TEST.search(part) for part in below.parts)
            or nose2.util.ispackage(str(folder))
            or folder.name in self.session.libDirs
        )

    def _in_file(self, loader: Any, path: Path) -> unittest.TestSuite:
        name, folder = nose2.util.name_from_path(str(path))
        nose2.util.ensure_importable(folder)
        if "." in name:
            return self._in_module(loader, name)
        # Two files in different folders may have one name. That of the path tells them, and people, which is which.
        below = path.with_suffix("").relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(name)
        return self._in_module(loader, ".".join(below.parts), path)

    def _in_module(self, loader: Any, name: str, path: Path | None = None) -> unittest.TestSuite:
        try:
            module = _module_of(name, path) if path else importlib.import_module(name)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name in ("nose", "nose.tools"):
                error.add_note("What nose.tools had is in Lamson. Write in its place: from lamson.testing import *")
            return loader.failedImport(name)
        return loader.loadTestsFromModule(module)

    def _only(self, loader: Any, suite: unittest.TestSuite, name: str, member: str) -> unittest.TestSuite:
        """Returns those tests of `suite` that `member` names: a function, a class, or a class's method."""
        tests = list(_flat(suite))
        if not member or any(type(test).__name__ == "ModuleImportFailure" for test in tests):
            return suite
        wanted = [test for test in tests if re.search(rf"\.{re.escape(member)}(?:[.:]|$)", test.id())]
        if not wanted:
            names = dict.fromkeys(test.id().partition(":")[0].rpartition(".")[2] for test in tests)
            there = ", ".join(names) or "none"
            return loader.failedLoadTests(name, LookupError(f"There is no test {name}; the tests there are: {there}."))
        return loader.suiteClass(wanted)

    # what nose takes for a test and nose2 does not, and the other way round

    def loadTestsFromModule(self, event: Any) -> None:
        module = event.module
        _adopt_module_fixture(module, "setUpModule", MODULE_SETUP)
        _adopt_module_fixture(module, "tearDownModule", MODULE_TEARDOWN)
        for name, thing in vars(module).items():
            if isinstance(thing, type) and not issubclass(thing, unittest.TestCase):
                if name.lower().startswith(self.session.testMethodPrefix):
                    _adopt_class_fixtures(thing)
            elif isinstance(thing, types.FunctionType) and _is_test(thing) and not self._nose2_takes(thing):
                case = nose2.util.transplant_class(FunctionTestCase, thing.__module__)
                event.extraTests.append(case(thing))

    def _nose2_takes(self, function: types.FunctionType) -> bool:
        """Whether nose2 makes tests of this function by itself. It passes over those that have parameters, also when
        these have defaults; here a parameter that nobody gives is the error that it is."""
        return function.__name__.startswith(self.session.testMethodPrefix) and (
            hasattr(function, "paramList")
            or inspect.isgeneratorfunction(function)
            or nose2.util.num_expected_args(function) == 0
        )

    def getTestMethodNames(self, event: Any) -> list[str] | None:
        if getattr(event.testCase, "__test__", True):
            return None
        event.handled = True
        return []

    def moduleLoadedSuite(self, event: Any) -> Any:
        tests = [(_function_of(test, event.module), test) for test in event.suite]
        kept = [(function, test) for function, test in tests if getattr(function, "__test__", True)]
        # Suites, which are classes, first, and then functions by line, as nose did.
        kept.sort(key=lambda found: _line_of(found[0]))
        event.suite = event.loader.suiteClass(test for _, test in kept)
        return None


def _place_of(name: str) -> tuple[Path | None, str]:
    """Returns the file or folder in a test's name, None when there is none, and the member of it that is meant.

    tests/a_tests.py:test_it, tests.a_tests:test_it and tests.a_tests.test_it all give tests/a_tests.py and test_it.
    """
    place, _, member = name.partition(":")
    if os.path.exists(place):
        return Path(place).absolute(), member
    parts = place.split(".")
    if os.path.isdir(os.path.join(*parts)):
        return Path(*parts).absolute(), member
    for end in range(len(parts), 0, -1):
        file = f"{os.path.join(*parts[:end])}.py"
        if os.path.isfile(file):
            return Path(file).absolute(), ".".join(filter(None, [*parts[end:], member]))
    return None, member


def _is_test(function: types.FunctionType) -> bool:
    by_name = not function.__name__.startswith("_") and LOOKS_LIKE_A_TEST.search(function.__name__)
    return bool(getattr(function, "__test__", by_name))


def _module_of(name: str, path: Path) -> types.ModuleType:
    """Imports the file `path` as the module `name`."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # there is one for every file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _flat(tests: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def _function_of(test: Any, module: types.ModuleType) -> Any:
    """The function of the module that a test was made of; None for anything else."""
    if not isinstance(test, unittest.FunctionTestCase):
        return None
    # "module.function", or "module.function:2" and arguments for what a generator yields
    return getattr(module, test.id().partition(":")[0].rpartition(".")[2], None)


def _line_of(function: Any) -> int:
    code = getattr(inspect.unwrap(function), "__code__", None) if function is not None else None
    return code.co_firstlineno if code is not None else 0


def _adopt_module_fixture(module: types.ModuleType, wanted: str, spellings: tuple[str, ...]) -> None:
    """Lets unittest find the fixture that `module` has under one of `spellings`."""
    for spelling in spellings:
        fixture = vars(module).get(spelling)
        if isinstance(fixture, types.FunctionType):
            takes_module = bool(inspect.signature(fixture).parameters)
            setattr(module, wanted, functools.partial(fixture, module) if takes_module else fixture)
            return


def _adopt_class_fixtures(cls: type) -> None:
    for wanted, spellings in CLASS_FIXTURES.items():
        for spelling in spellings:
            if hasattr(cls, spelling):
                setattr(cls, wanted, getattr(cls, spelling))
                break


if __name__ == "__main__":
    main()
