"""What ``nose.tools`` had, under the same names, for tests that were written for nose: asserts and decorators.

`lamson.testing` has all of it. The names with underscores are those of `unittest`, which are the same otherwise.
"""

import functools
import inspect
import pdb
import sys
import time
import unittest
from collections.abc import Callable
from typing import Any, TypeVar

Test = TypeVar("Test", bound=Callable[..., Any])

_case = unittest.TestCase()

assert_almost_equal = _case.assertAlmostEqual
assert_count_equal = _case.assertCountEqual
assert_dict_equal = _case.assertDictEqual
assert_equal = _case.assertEqual
assert_false = _case.assertFalse
assert_greater = _case.assertGreater
assert_greater_equal = _case.assertGreaterEqual
assert_in = _case.assertIn
assert_is = _case.assertIs
assert_is_instance = _case.assertIsInstance
assert_is_none = _case.assertIsNone
assert_is_not = _case.assertIsNot
assert_is_not_none = _case.assertIsNotNone
assert_less = _case.assertLess
assert_less_equal = _case.assertLessEqual
assert_list_equal = _case.assertListEqual
assert_logs = _case.assertLogs
assert_multi_line_equal = _case.assertMultiLineEqual
assert_no_logs = _case.assertNoLogs
assert_not_almost_equal = _case.assertNotAlmostEqual
assert_not_equal = _case.assertNotEqual
assert_not_in = _case.assertNotIn
assert_not_is_instance = _case.assertNotIsInstance
assert_not_regex = _case.assertNotRegex
assert_raises = _case.assertRaises
assert_raises_regex = _case.assertRaisesRegex
assert_regex = _case.assertRegex
assert_sequence_equal = _case.assertSequenceEqual
assert_set_equal = _case.assertSetEqual
assert_true = _case.assertTrue
assert_tuple_equal = _case.assertTupleEqual
assert_warns = _case.assertWarns
assert_warns_regex = _case.assertWarnsRegex

# The names of Python 2, which tests of old projects use and unittest has dropped.
assert_ = _case.assertTrue
assert_almost_equals = _case.assertAlmostEqual
assert_equals = _case.assertEqual
assert_items_equal = _case.assertCountEqual
assert_not_almost_equals = _case.assertNotAlmostEqual
assert_not_equals = _case.assertNotEqual
assert_not_regexp_matches = _case.assertNotRegex
assert_raises_regexp = _case.assertRaisesRegex
assert_regexp_matches = _case.assertRegex


def assert_dict_contains_subset(expected: dict, actual: dict, msg: str | None = None) -> None:
    """Raises AssertionError unless everything in `expected` is in `actual`, too."""
    _case.assertEqual(actual, {**actual, **expected}, msg)


def ok_(expr: Any, msg: str | None = None) -> None:
    """Raises AssertionError, with `msg`, unless `expr` is true."""
    if not expr:
        raise AssertionError(msg)


def eq_(a: Any, b: Any, msg: str | None = None) -> None:
    """Raises AssertionError, with `msg`, unless `a` equals `b`."""
    if not a == b:
        raise AssertionError(msg or f"{a!r} != {b!r}")


def istest(func: Test) -> Test:
    """Decorator: this is a test, whatever it is called."""
    func.__test__ = True  # type: ignore[attr-defined]
    return func


def nottest(func: Test) -> Test:
    """Decorator: this is no test, whatever it is called."""
    func.__test__ = False  # type: ignore[attr-defined]
    return func


def make_decorator(func: Callable[..., Any]) -> Callable[[Test], Test]:
    """Decorator for the function a decorator returns in place of `func`: gives it its name, text and attributes."""

    def decorate(newfunc: Test) -> Test:
        return functools.update_wrapper(newfunc, func)  # type: ignore[return-value]

    return decorate


def raises(*exceptions: type[BaseException]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the test passes when it raises one of `exceptions`, and only then."""
    names = " or ".join(exception.__name__ for exception in exceptions)

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        @make_decorator(func)
        def newfunc(*args: Any, **kwargs: Any) -> None:
            try:
                func(*args, **kwargs)
            except exceptions:
                return
            raise AssertionError(f"{func.__name__}() did not raise {names}")

        return newfunc

    return decorate


class TimeExpired(AssertionError):
    """A test took longer than `timed` allows it."""


def timed(limit: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the test fails when it runs for longer than `limit` seconds. It is not cut short."""

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        @make_decorator(func)
        def newfunc(*args: Any, **kwargs: Any) -> Any:
            start = time.monotonic()
            result = func(*args, **kwargs)
            if time.monotonic() - start > limit:
                raise TimeExpired(f"{func.__name__}() took longer than {limit} seconds")
            return result

        return newfunc

    return decorate


def with_setup(
    setup: Callable[[], Any] | None = None, teardown: Callable[[], Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: `setup` runs before the test and `teardown` after it, also when it fails.

    Used twice, the outer pair runs around the inner one. A failing `setup` fails the test, and `teardown` does not run.
    On a generator it runs around each test that is yielded.
    """

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(func):
            # nose2 runs these two around everything that the function yields.
            func.setUp = _in_turn(setup, getattr(func, "setUp", None))  # type: ignore[attr-defined]
            func.tearDown = _in_turn(getattr(func, "tearDown", None), teardown)  # type: ignore[attr-defined]
            return func

        @make_decorator(func)
        def newfunc(*args: Any, **kwargs: Any) -> Any:
            if setup is not None:
                setup()
            try:
                return func(*args, **kwargs)
            finally:
                if teardown is not None:
                    teardown()

        return newfunc

    return decorate


def _in_turn(*fixtures: Callable[[], Any] | None) -> Callable[[], None]:
    def run() -> None:
        for fixture in fixtures:
            if fixture is not None:
                fixture()

    return run


def set_trace() -> None:
    """Starts the debugger where it is called, on the terminal even when a test runner captures what is printed."""
    pdb.Pdb(stdout=sys.__stdout__).set_trace(sys._getframe().f_back)


__all__ = [
    "TimeExpired",
    "eq_",
    "istest",
    "make_decorator",
    "nottest",
    "ok_",
    "raises",
    "set_trace",
    "timed",
    "with_setup",
    *(name for name in dir() if name.startswith("assert_")),
]
