"""Mail from clients that we did not write, and from broken ones: what they sent is in the queue, byte for byte.

Clients are swaks, curl and Postfix's smtp-source where they are installed, and bare sockets for what no client does.
"""

import collections
import contextlib
import random
import re
import smtplib
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamson.limits import Limits
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import route, stateless
from lamson.server import SMTPReceiver
from processes import eventually, needs

HELLO = b"From: zed@example.com\r\nSubject: hello\r\n\r\nHi there.\r\n"


class Server:
    """A receiver that puts mail for anybody at test.com into the queue `inbox` and refuses all other recipients."""

    def __init__(self, folder: Path):
        self.inbox = Queue(folder / "inbox")
        self.handled: list[str] = []  # the recipients, one for each call of the handler

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            self.handled.append(f"{name}@test.com")
            self.inbox.push(message)

        self.receiver = SMTPReceiver("127.0.0.1", 0, unknown_recipients="refuse")
        self.receiver.start()
        self.port = self.receiver.port

    def mails(self) -> list[MailRequest]:
        """What arrived, the oldest first."""
        return [mail for key in self.inbox.keys() if (mail := self.inbox.get(key)) is not None]

    def mail(self) -> MailRequest:
        """The one mail that arrived."""
        (mail,) = self.mails()
        return mail

    @contextlib.contextmanager
    def connection(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            yield connection

    def goes_on(self) -> None:
        """Checks that nothing has arrived and that a client who behaves is served."""
        assert self.mails() == []
        with smtplib.SMTP("127.0.0.1", self.port, timeout=30) as client:
            client.sendmail("zed@example.com", ["joe@test.com"], HELLO)
        assert self.mail().original == HELLO

    def has_no_clients(self) -> None:
        eventually(lambda: not self.receiver.connections, "the end of all connections")


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    server.receiver.close()


def client(program: str, *words: Any, code: int = 0) -> str:
    """Runs a client, checks its exit code, and returns all that it printed."""
    command = [needs(program), *map(str, words)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    said = done.stdout.decode("utf-8", "replace")
    assert done.returncode == code, f"{command} ended with {done.returncode}:\n{said}"
    return said


def swaks(server: Server, *words: Any, to: str = "joe@test.com", code: int = 0) -> str:
    where = ("--server", "127.0.0.1", "--port", server.port, "--helo", "client.example.com")
    return client("swaks", *where, "--from", "zed@example.com", "--to", to, *words, code=code)


def curl(server: Server, path: Path, *words: Any, sender: str = "zed@example.com", to: str = "joe@test.com") -> str:
    url = f"smtp://127.0.0.1:{server.port}/client.example.com"
    envelope = ("--mail-from", sender, "--mail-rcpt", to)
    return client("curl", "--silent", "--show-error", "-v", "--url", url, *envelope, "--upload-file", path, *words)


# --- swaks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"Hi there.",
        b".\n..\n.dot\n\n.\n.\nend",
        "Grüße, Привет, 你好".encode(),
        bytes(code for code in range(1, 256) if code not in b"\r\n"),
        b"\0 and \0",
        b"x" * 100_000 + b"\n" + b"." * 100_000,
        b"",
    ],
    ids=["plain", "dots", "utf-8", "every-byte", "null", "lines-of-100000-characters", "empty"],
)
def test_what_swaks_sends_arrives_byte_for_byte(server, tmp_path, body):
    content = b"From: zed@example.com\nTo: joe@test.com\nSubject: hello\n\n" + body
    (tmp_path / "data").write_bytes(content)
    swaks(server, "--data", f"@{tmp_path / 'data'}")
    mail = server.mail()
    # swaks makes the line ends those of SMTP, and adds one at the end.
    assert mail.original == content.replace(b"\n", b"\r\n") + b"\r\n"
    assert (mail.From, mail.To) == ("zed@example.com", ["joe@test.com"])


def test_an_attachment_of_swaks_arrives_byte_for_byte(server, tmp_path):
    content = random.Random(1).randbytes(300_000)
    (tmp_path / "bytes.bin").write_bytes(content)
    swaks(server, "--body", "Look at this.", "--attach", f"@{tmp_path / 'bytes.bin'}")
    text, attachment = server.mail().all_parts()
    assert text.body.strip() == "Look at this."
    assert attachment.content_encoding["Content-Disposition"] == ("attachment", {"filename": "bytes.bin"})
    assert attachment.body == content


def test_swaks_pipelines(server):
    said = swaks(server, "--pipeline", "--body", "Hi.", to="joe@test.com,jane@test.com")
    # swaks sends these in one piece when the server offers PIPELINING, and reads the answers after it.
    assert re.search(
        r" -> MAIL .*\n -> RCPT .*\n -> RCPT .*\n -> DATA\n<-  250 OK\n<-  250 OK\n<-  250 OK\n<-  354", said
    )
    assert sorted(server.handled) == ["jane@test.com", "joe@test.com"]


def test_swaks_without_extensions(server):
    said = swaks(server, "--protocol", "SMTP", "--body", "Hi.")
    assert " -> HELO client.example.com\n<-  250 " in said
    assert "Hi." in server.mail().body()


def test_an_unknown_recipient_is_refused_at_rcpt(server):
    said = swaks(server, to="joe@example.com", code=24)  # swaks: no recipient was taken
    assert " -> RCPT TO:<joe@example.com>\n<** 550 5.1.1 <joe@example.com>: no such recipient here\n" in said
    assert "DATA" not in said
    server.goes_on()


@pytest.mark.parametrize("way", [(), ("--pipeline",)], ids=["one-by-one", "pipelined"])
def test_a_known_recipient_gets_the_mail_that_an_unknown_one_does_not(server, way):
    said = swaks(server, *way, "--body", "Hi.", to="joe@example.com,joe@test.com")
    assert "<** 550 5.1.1 <joe@example.com>" in said
    assert server.mail().To == ["joe@test.com"]


def test_swaks_refused_before_data_may_pipeline_on(server):
    said = swaks(server, "--pipeline", to="joe@example.com", code=24)
    assert "<** 550 5.1.1" in said and "<** 503" in said  # the answer to the DATA that went along
    server.goes_on()


def test_an_address_in_unicode_arrives_from_swaks(server):
    swaks(server, "--body", "Hi.", to="получатель@test.com")
    assert server.mail().To == ["получатель@test.com"]


# --- curl --------------------------------------------------------------------------------------------------------


def test_curl_sends_from_and_to_addresses_in_unicode(server, tmp_path):
    (tmp_path / "mail").write_bytes("From: я@example.com\r\nSubject: Привет\r\n\r\nю\r\n".encode())
    said = curl(server, tmp_path / "mail", sender="я@example.com", to="ю@test.com")
    assert "SMTPUTF8" in re.search(r"> MAIL FROM.*", said)[0]
    mail = server.mail()
    assert (mail.From, mail.To) == ("я@example.com", ["ю@test.com"])
    assert mail.original == (tmp_path / "mail").read_bytes()
    assert (mail["Subject"], mail.body()) == ("Привет", "ю\n")


def of_size(size: int, line: bytes) -> bytes:
    """A message of `size` bytes, made of this line."""
    line += b"\r\n"
    return (HELLO + line * (size // len(line) + 1))[: size - 2] + b"\r\n"


def test_25_megabytes_arrive_from_curl(server, tmp_path):
    content = of_size(25_000_000, b".dot\r\n" + random.Random(2).randbytes(50_000).translate(None, b"\r\n"))
    (tmp_path / "mail").write_bytes(content)
    curl(server, tmp_path / "mail")
    assert server.mail().original == content


def test_a_message_as_large_as_the_limit_arrives_whatever_dots_it_has(server, tmp_path):
    content = of_size(Limits().size_limit, b".")  # RFC 1870 section 3: the size is that without the doubled dots
    (tmp_path / "mail").write_bytes(content)
    curl(server, tmp_path / "mail")
    assert server.mail().original == content


def test_curl_hears_at_mail_that_its_message_is_too_large(server, tmp_path):
    with open(tmp_path / "mail", "wb") as file:
        file.truncate(Limits().size_limit + 1)
    with pytest.raises(AssertionError, match="552"):
        curl(server, tmp_path / "mail")
    server.goes_on()


# --- smtp-source -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reconnect", [(), ("-d",)], ids=["a-connection-for-each", "20-connections"])
def test_200_messages_from_20_sessions_all_arrive(server, reconnect):
    options = (*reconnect, "-s", 20, "-m", 200, "-l", 4000, "-M", "client.example.com")
    client("smtp-source", *options, "-f", "zed@example.com", "-t", "joe@test.com", f"127.0.0.1:{server.port}")
    mails = server.mails()
    assert len({mail["Message-ID"] for mail in mails}) == len(mails) == 200
    # Its messages differ in the Message-ID alone.
    assert len({mail.original.partition(b"\r\n\r\n")[2] for mail in mails}) == 1
    assert {(mail.From, *mail.To) for mail in mails} == {("zed@example.com", "joe@test.com")}


def test_each_of_many_recipients_gets_the_message(server):
    options = ("-s", 4, "-m", 20, "-r", 10, "-f", "zed@example.com", "-t", "joe@test.com")
    client("smtp-source", *options, f"127.0.0.1:{server.port}")
    recipients = ["joe@test.com", *(f"{number}joe@test.com" for number in range(2, 11))]
    assert collections.Counter(server.handled) == dict.fromkeys(recipients, 20)


# --- broken ones -------------------------------------------------------------------------------------------------

ENVELOPE = b"EHLO client.example.com\r\nMAIL FROM:<zed@example.com>\r\nRCPT TO:<joe@test.com>\r\n"


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_client_that_disconnects_in_the_middle_of_data_has_sent_nothing(server, way):
    with server.connection() as connection:
        answers = connection.makefile("rb")
        connection.sendall(ENVELOPE + b"DATA\r\n")
        while not answers.readline().startswith(b"354 "):
            pass
        connection.sendall(HELLO * 1000)
        answers.close()
        if way == "reset":  # as a client that is killed on another machine
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.has_no_clients()
    server.goes_on()


@pytest.mark.parametrize("size", [1, 100, 10_000, 1_000_000])
def test_garbage_is_no_mail_and_harms_nobody(server, size):
    garbage = random.Random(size).randbytes(size)
    with server.connection() as connection, contextlib.suppress(OSError):  # it hangs up
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(100_000):
            pass
    server.has_no_clients()
    server.goes_on()


@pytest.mark.parametrize("size", [100, 10_000, 1_000_000])
def test_garbage_in_place_of_a_message_is_a_message(server, size):
    garbage = random.Random(size).randbytes(size).replace(b"\r\n.", b"\r\n-")
    with smtplib.SMTP("127.0.0.1", server.port, timeout=30) as smtp:
        smtp.ehlo()
        smtp.mail("zed@example.com")
        smtp.rcpt("joe@test.com")
        assert smtp.docmd("DATA")[0] == 354
        smtp.send(garbage + b"\r\n.\r\n")
        assert smtp.getreply()[0] == 250
    assert server.mail().original == garbage + b"\r\n"


def test_tls_on_the_plain_port_is_garbage(server):
    with server.connection() as connection, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(connection, server_hostname="localhost")
    server.has_no_clients()
    server.goes_on()


def test_a_client_may_be_slow(server):
    with server.connection() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for code in ENVELOPE + b"DATA\r\n" + HELLO + b".\r\nQUIT\r\n":
            connection.sendall(bytes([code]))
        said = connection.makefile("rb").read()
    assert said.endswith(b"250 OK\r\n221 Bye\r\n")
    assert server.mail().original == HELLO


def test_a_client_may_say_everything_at_once(server):
    contents = [of_size(100_000, b".%d" % number) for number in range(50)]
    transaction = b"MAIL FROM:<zed@example.com>\r\nRCPT TO:<joe@test.com>\r\nDATA\r\n"
    mails = b"".join(transaction + content.replace(b"\r\n.", b"\r\n..") + b".\r\n" for content in contents)
    with server.connection() as connection:
        connection.sendall(b"EHLO client.example.com\r\n" + mails + b"QUIT\r\n")
        said = connection.makefile("rb").read()
    assert said.count(b"\r\n250 OK") == 150
    assert said.endswith(b"221 Bye\r\n")
    assert [mail.original for mail in server.mails()] == contents


def test_a_client_that_ends_its_input_hears_what_became_of_its_mail(server):
    with server.connection() as connection:  # as printf ... | nc does
        connection.sendall(ENVELOPE + b"DATA\r\n" + HELLO + b".\r\nQUIT\r\n")
        connection.shutdown(socket.SHUT_WR)
        said = connection.makefile("rb").read()
    assert server.mail().original == HELLO
    assert said.endswith(b"250 OK\r\n221 Bye\r\n")
