"""What was wrong with a message, and where.

Reading never raises for what a stranger sent. It reads as well as it can and writes down what it had to put up
with:

    >>> defects = Defects()
    >>> note = Note(defects, "header Subject")
    >>> note("unknown charset 'x'")
    >>> defects
    [Defect(what="unknown charset 'x'", where='header Subject')]

Since reading is lazy, a defect is there once what it is about was read; ``str(message)`` reads everything.
"""

from typing import NamedTuple

# A hostile message can have a defect in every line. So many are kept, and so many times the slow detection of
# charsets is tried, before the rest of the message is read without either.
MAX_DEFECTS = 1000
MAX_DETECTIONS = 50


class Defect(NamedTuple):
    """`what` was wrong, and `where`: ``header Subject``, ``body``, ``part 2.1 body``."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Defects(list[Defect]):
    """The defects of a message and all its parts, each once, in the order they were found."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[Defect] = set()

    def note(self, what: str, where: str) -> None:
        """Adds a defect, unless it is there already or there are `MAX_DEFECTS`."""
        defect = Defect(what, where)
        if defect not in self._seen and len(self) < MAX_DEFECTS:
            self._seen.add(defect)
            self.append(defect)


class Note:
    """Tells the defects of one place in a message: call it with what is wrong there."""

    __slots__ = ("_defects", "_where")

    def __init__(self, defects: Defects | None, where: str):
        self._defects = defects
        self._where = where

    def __call__(self, what: str) -> None:
        if self._defects is not None:
            self._defects.note(what, self._where)

    @property
    def detect(self) -> bool:
        """Whether charsets may still be detected: yes, until the message was wrong too often."""
        return self._defects is None or len(self._defects) < MAX_DETECTIONS


NO_NOTE = Note(None, "")
