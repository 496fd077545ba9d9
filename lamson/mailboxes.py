"""The mails in whatever a command is given to read: a Maildir, a file in mbox format, a folder of files, or one mail.

Both functions return an iterator, which opens a mail when it comes to it, and how many mails there are. A place where
no mails can be is refused, see `lamson.terminal.refuse`. Nothing is changed there.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from lamson.terminal import refuse

if TYPE_CHECKING:
    from lamson.mail import MailRequest


def mails_in(path: str) -> tuple[Iterator[tuple[str, "MailRequest"]], int]:
    """Return the mails of a Maildir or mbox, each with its key, and how many there are."""
    import mailbox

    from lamson.mail import MailRequest
    from lamson.queue import Queue

    if os.path.isdir(os.path.join(path, "cur")):
        mails = Queue(path)
        keys = mails.keys()
        # One that another program has taken since is no longer there to read.
        return ((key, message) for key in keys if (message := mails.get(key)) is not None), len(keys)
    if not os.path.isfile(path):
        refuse(f"{path} is neither a Maildir nor a file" if os.path.exists(path) else f"there is no {path}")
    mbox = mailbox.mbox(path, create=False)
    keys = mbox.keys()
    if not keys and os.path.getsize(path):
        refuse(f"{path} is not in mbox format: it has no line that begins with 'From '")
    return ((f"mail {key}", MailRequest("mbox", None, None, mbox.get_bytes(key))) for key in keys), len(keys)


def contents_in(path: str) -> tuple[Iterator[tuple[str, bytes]], int]:
    """Return the mails of a Maildir, an mbox, a folder of files or a file, with their names, and how many there are."""
    import mailbox

    from lamson.envelope import split_envelope
    from lamson.maildir import Maildir

    if os.path.isdir(path):
        is_maildir = os.path.isdir(os.path.join(path, "cur"))
        if is_maildir:
            files = [str(file) for file in Maildir(path).files()]
        else:
            files = sorted(entry.path for entry in os.scandir(path) if entry.is_file() and entry.name[0] != ".")

        def contents() -> Iterator[tuple[str, bytes]]:
            for file in files:
                # A mail program may have taken it away or marked it as read since.
                with suppress(FileNotFoundError), open(file, "rb") as opened:
                    content = opened.read()
                    yield os.path.basename(file), split_envelope(content)[2] if is_maildir else content

        return contents(), len(files)
    if not os.path.isfile(path):
        refuse(f"there is no {path}")
    with open(path, "rb") as opened:
        start = opened.read(5)
        if start and start != b"From ":  # an empty file is an mbox with nothing in it
            opened.seek(0)
            return iter([(path, opened.read())]), 1
    mbox = mailbox.mbox(path, create=False)
    keys = mbox.keys()
    return ((f"mail {key}", mbox.get_bytes(key)) for key in keys), len(keys)
