r"""Conversations with the server, one to a file in tests/dialogs, each a bug or an oddity that must stay settled.

    # A comment.
    C: EHLO client.example.com          the client says this line, with CRLF
    C= 'a\nb\r\n'                       the client sends exactly these bytes
    S: 250-*                            the server answers a line like this (* and ? as in a shell)
    CLOSED                              the server closes the connection
    HANGUP                              the client closes the connection
    M: sender -> recipients: 'bytes'    the handlers got this message, the next one in order

The server refuses unknown recipients. It knows anything@test.com; its handlers answer refuse@test.com with 550,
later@test.com with 451, and blow up on fail@test.com.
"""

import ast
import fnmatch
import socket
from pathlib import Path

import pytest

from lamson.errors import SMTPError
from lamson.routing import route, stateless
from lamson.server import SMTPReceiver

DIALOGS = sorted((Path(__file__).parent / "dialogs").glob("*.smtp"))


@pytest.fixture
def server():
    taken = []

    @route("(name)@test.com", name=".+")
    @stateless
    def START(message, name):
        taken.append((message.From, sorted(message.To), message.original))
        if name == "refuse":
            raise SMTPError(550, "Not for you.\nReally not.")
        if name == "later":
            raise SMTPError(451)
        if name == "fail":
            raise ValueError("a secret of the server's")

    receiver = SMTPReceiver("127.0.0.1", 0, unknown_recipients="refuse", size_limit=5000)
    receiver.start()
    yield receiver, taken
    receiver.close()


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
def test_dialog(path, server):
    receiver, taken = server
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as client:
        answers = client.makefile("rb")
        for number, line in enumerate(path.read_text().splitlines(), 1):
            where = f"{path.name}:{number}"
            kind, rest = line[:3], line[3:]
            if kind == "C: ":
                client.sendall(rest.encode() + b"\r\n")
            elif kind == "C= ":
                client.sendall(ast.literal_eval("b" + rest))
            elif kind == "S: ":
                answer = answers.readline()
                assert answer.endswith(b"\r\n"), f"{where}: the server said {answer!r}, expected {rest}"
                assert fnmatch.fnmatchcase(answer[:-2].decode(), rest), f"{where}: {answer!r} is not like {rest}"
            elif kind == "M: ":
                envelope, _, content = rest.partition(": ")
                sender, _, recipients = envelope.partition("->")
                assert taken, f"{where}: no message came"
                assert taken.pop(0) == (sender.strip(), recipients.split(), ast.literal_eval("b" + content)), where
            elif line == "CLOSED":
                assert answers.read() == b"", f"{where}: the server goes on"
            elif line == "HANGUP":
                client.close()
            else:
                assert not line or line.startswith("#"), f"{where}: {line!r} is no line of a dialog"
    assert not taken, f"{path.name}: messages came that the dialog does not name"


def test_there_are_dialogs():
    assert DIALOGS
