"""What tests of routing need: a mail, and modules of handlers."""

import os
import textwrap

from lamson.mail import MailRequest


def mail(to="list@test.com", sender="zed@example.com"):
    return MailRequest("peer", sender, to, b"Subject: hi\r\n\r\nHello\r\n")


def write_module(folder, name, text):
    """Write a handler module; its time always differs from the one before, however fast the test runs."""
    path = folder / f"{name}.py"
    stamp = path.stat().st_mtime_ns + 1_000_000 if path.exists() else None
    path.write_text("from lamson.routing import *\n" + textwrap.dedent(text))
    if stamp:
        os.utime(path, ns=(stamp, stamp))
