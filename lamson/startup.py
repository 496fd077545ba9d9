"""`explained`: what stops a server from starting, in one line for people."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lamson.errors import LamsonError
from lamson.pidfile import ServerError


@contextmanager
def explained(what: str = "") -> Iterator[None]:
    """Make a ServerError, one line for people, of whatever goes wrong inside: where it was in the project, and what."""
    try:
        yield
    except ServerError:
        raise
    except (Exception, SystemExit) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        place = _place(error)
        if place:
            text = f"{place}: {type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else text}"
        elif isinstance(error, OSError):
            text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
        elif not isinstance(error, LamsonError):
            text = f"{type(error).__name__}: {text}"
        raise ServerError(what + text) from error


def _place(error: BaseException) -> str | None:
    """Return the file and line of the project, which is in the current folder, where the error comes from."""
    places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
    folder = os.path.join(os.getcwd(), "")
    # Python and Lamson may be installed inside the folder.
    others = (os.path.dirname(os.__file__) + os.sep, os.path.dirname(__file__) + os.sep)
    own = [place for place in places if place[0].startswith(folder) and not place[0].startswith(others)]
    return f"{own[-1][0].removeprefix(folder)}:{own[-1][1]}" if own else None
