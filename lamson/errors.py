"""The errors Lamson raises, so that one ``except LamsonError`` catches them all and nothing else.

Two kinds matter to somebody who writes handlers:

* `SMTPError` is for you to raise: its code and text become the reply that the client sees.

      raise SMTPError(550, "This list is closed.")     # the client reads: 550 This list is closed.

* `MisuseError` tells that Lamson was called in a way that cannot work, what was wrong, and how to write it.
"""

from lamson.status import PRIMARY_STATUS_CODES, SECONDARY_STATUS_CODES


class LamsonError(Exception):
    """Every error that Lamson raises on purpose."""


class MisuseError(LamsonError, AssertionError):
    """Lamson was called wrongly. An AssertionError too, because Lamson 1.x raised that and its users catch it."""


class RoutingError(MisuseError):
    """A route, a handler's decorators or a handler module is wrong."""


class EncodingError(LamsonError):
    """Bytes could not be turned into text, or text into bytes, in the way that was asked for."""


class SchemaError(LamsonError):
    """A database was made by a newer Lamson than this one, which cannot know what is in its tables."""


class QueueError(LamsonError):
    """A queue could not do what was asked. `data` holds what could not be queued, when there is any."""

    def __init__(self, message: str, data: bytes | str | None = None):
        super().__init__(message)
        self.data = data


class SMTPError(LamsonError):
    """A reply for the SMTP client, raised by a handler: ``str(SMTPError(550, "No."))`` is ``550 No.``.

    `code` is the three-digit reply code (RFC 5321 section 4.2): 4xx makes the client try again later, 5xx makes
    it give up. Without a message the text is that of RFC 3463 for the first two digits. Only the message goes
    out; chain the cause with ``from`` and it stays in the log, where strangers cannot read it.
    """

    def __init__(self, code: int, message: str | None = None):
        self.code = int(code)
        self.message = self.error_for_code(self.code) if message is None else message
        super().__init__(f"{self.code} {self.message}")

    @staticmethod
    def error_for_code(code: int) -> str:
        """RFC 3463's words for the first two digits of `code`; empty when it has none."""
        digits = str(code)
        words = PRIMARY_STATUS_CODES.get(digits[:1]), SECONDARY_STATUS_CODES.get(digits[1:2])
        return " ".join(filter(None, words)) if words[0] else ""
