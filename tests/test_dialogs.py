r"""Conversations with the server, each in a file of tests/dialogs: bugs, attacks and oddities that stay settled.

    # A comment.
    R: recipient_limit=2                the server is started with this (lamson.limits.Limits), before all else
    C: EHLO client.example.com          the client says this line, with CRLF
    C= 'a' * 70 + '\n'                  the client sends exactly these bytes, a character each
    S: 250-*                            the server answers a line like this (* and ? as in a shell; [ is itself)
    TLS                                 client and server shake hands
    HALF                                the client closes its side, and listens on
    CLOSED                              the server closes the connection
    HANGUP                              the client closes the connection
    RESET                               the client breaks the connection off
    M: sender -> recipients: 'bytes'    the handlers got this message, the next one in order

The server refuses unknown recipients. It knows anything@test.com; its handlers answer refuse@test.com with 550,
later@test.com with 451, and blow up on fail@test.com. The password of zed is secret, and asking for that of oops fails.
"""

import ast
import fnmatch
import socket
import ssl
import struct
from pathlib import Path

import pytest

from lamson.errors import SMTPError
from lamson.routing import route, stateless
from lamson.server import SMTPReceiver

HERE = Path(__file__).parent
DIALOGS = sorted((HERE / "dialogs").glob("*.smtp"))


def password_is_right(user, password):
    if user == "oops":
        raise ValueError("the password of the database")
    return (user, password) == ("zed", "secret")


@pytest.fixture
def server():
    taken = []
    receivers = []

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

    def start(limits):
        if limits.pop("tls", False):
            limits["certificate"] = str(HERE / "certs/one.pem")
        if limits.pop("login", False):
            limits["auth"] = password_is_right
        receivers.append(SMTPReceiver("127.0.0.1", 0, unknown_recipients="refuse", **{"size_limit": 5000, **limits}))
        receivers[0].start()
        return receivers[0].port, taken

    yield start
    for receiver in receivers:
        receiver.close()
        assert not receiver.connections, "nobody is left behind"


def client_context():
    context = ssl.create_default_context(cafile=str(HERE / "certs/one.pem"))
    context.check_hostname = False
    return context


def evaluate(text, where):
    """The bytes of an expression of string literals: one byte a character."""
    return eval(compile(ast.parse(text, mode="eval"), where, "eval"), {}).encode("latin-1")


def is_like(line, pattern):
    return fnmatch.fnmatchcase(line, pattern.replace("[", "[[]"))


@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
def test_dialog(path, server):
    lines = path.read_text().splitlines()
    limits = dict(line[3:].split("=", 1) for line in lines if line.startswith("R: "))
    port, taken = server({name: ast.literal_eval(value) for name, value in limits.items()})
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    try:
        answers = client.makefile("rb")
        for number, line in enumerate(lines, 1):
            where = f"{path.name}:{number}"
            kind, rest = line[:3], line[3:]
            if kind == "C: ":
                client.sendall(rest.encode() + b"\r\n")
            elif kind == "C= ":
                client.sendall(evaluate(rest, where))
            elif kind == "S: ":
                answer = answers.readline()
                assert answer.endswith(b"\r\n"), f"{where}: the server said {answer!r}, expected {rest}"
                assert is_like(answer[:-2].decode(), rest), f"{where}: {answer!r} is not like {rest}"
            elif kind == "M: ":
                envelope, _, content = rest.partition(": ")
                sender, _, recipients = envelope.partition("->")
                assert taken, f"{where}: no message came"
                expected = sender.strip(), recipients.strip().split(" | ") if "|" in recipients else recipients.split()
                assert taken.pop(0) == (*expected, evaluate(content, where)), where
            elif line == "TLS":
                client = client_context().wrap_socket(client)
                answers = client.makefile("rb")
            elif line == "HALF":
                client.shutdown(socket.SHUT_WR)
            elif line == "CLOSED":
                assert answers.read() == b"", f"{where}: the server goes on"
            elif line == "HANGUP":
                client.close()
            elif line == "RESET":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                answers.close()
                client.close()
            else:
                assert not line or line.startswith(("#", "R: ")), f"{where}: {line!r} is no line of a dialog"
    finally:
        client.close()
    assert not taken, f"{path.name}: messages came that the dialog does not name"


def test_there_are_dialogs():
    assert len(DIALOGS) > 30
