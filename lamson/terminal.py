"""What the commands of ``lamson`` have in common on the terminal: how they refuse, and show how far they are.

    >>> refuse("there is no queue in run/qeue")
    lamson: there is no queue in run/qeue.

A refusal ends the process (SystemExit) with exit code 1; 2 stands for a command line that makes no sense.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def refuse(reason: str, code: int = 1) -> NoReturn:
    print(f"lamson: {reason}{'' if reason.endswith(('.', '?')) else '.'}", file=sys.stderr)
    sys.exit(code)


def misused(name: str, reason: str) -> NoReturn:
    print(f"lamson {name}: {reason}. See: lamson help -for {name}", file=sys.stderr)
    sys.exit(2)


def no_project(missing: str) -> NoReturn:
    refuse(f"there is no {missing}. Go to your project's folder, or make one: lamson gen -project NAME")


@contextmanager
def refusing() -> Iterator[None]:
    """Make a refusal of an error that says all there is to say."""
    from lamson.errors import LamsonError

    try:
        yield
    except LamsonError as error:
        refuse(str(error))


def with_progress(mails: Iterator[Any], total: int) -> Iterator[Any]:
    """Yield the mails, and on a terminal show a bar of how far it has come."""
    shown = sys.stderr.isatty()
    for done, mail in enumerate(mails):
        if shown:
            _show_progress(done, total, "")
        yield mail
    if shown:
        _show_progress(total, total, "\n")


def _show_progress(done: int, total: int, end: str) -> None:
    bar = "#" * (30 * done // max(total, 1))
    print(f"\r[{bar:30}] {done}/{total}", end=end, file=sys.stderr, flush=True)
