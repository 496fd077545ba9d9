"""The wire below the dialogs: pieces of messages, paths, limits of several connections, TLS, LMTP, real clients."""

import asyncio
import contextlib
import logging
import shutil
import smtplib
import socket
import ssl
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
import uvloop
from aiosmtpd import smtp
from hypothesis import given, settings
from hypothesis import strategies as st

from lamson import connection
from lamson.limits import Limits, neighbourhood
from lamson.maildata import MailData, Room, header_section, in_a_loop
from lamson.paths import split_path
from lamson.protocol import LMTPProtocol, SMTPProtocol
from lamson.tls import server_context
from processes import eventually, needs

CERTS = Path(__file__).parent / "certs"


class Receiver:
    """Keeps what it gets, and counts its connections."""

    def __init__(self, reply="250 OK"):
        self.connections = set()
        self.messages = []
        self.reply = reply

    async def handle_DATA(self, server, session, envelope):
        self.messages.append((session.peer, envelope.mail_from, envelope.rcpt_tos, envelope.content))
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply


class Served:
    """A protocol class served in a thread, on a free port of 127.0.0.1."""

    def __init__(self, receiver, limits=None, protocol=SMTPProtocol, new_loop=uvloop.new_event_loop):
        self.receiver = receiver
        self.loop = new_loop()
        limits = limits or Limits()
        context = server_context(limits.certificate, limits.key) if limits.certificate else None
        self.template = protocol(receiver, limits, hostname="here", ident="x", tls_context=context, loop=self.loop)
        self.thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self):
        self.thread.start()
        self.server = self.run(self.loop.create_server(self.template.fork, "127.0.0.1", 0))
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_):
        try:
            self.run(self._close())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join()
            self.loop.close()

    async def _close(self):
        self.server.close()
        for each in list(self.receiver.connections):
            each.abort()
        while self.receiver.connections:
            await asyncio.sleep(0.01)
        for _ in range(3):  # asyncio's own transports end in turns of the loop that come after that
            await asyncio.sleep(0)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def connect(self):
        return Talk(self.port)


class Talk:
    """A client that says lines and reads replies."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.answers = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.answers.close()
        self.socket.close()

    def reply(self):
        """One reply, of one line or more, without its line ends; nothing when the server has closed."""
        lines = [self.answers.readline()]
        while lines[-1][3:4] == b"-":
            lines.append(self.answers.readline())
        return b"\n".join(line.rstrip(b"\r\n") for line in lines).decode()

    def say(self, text):
        self.socket.sendall(text.encode() + b"\r\n")
        return self.reply()

    def start_tls(self):
        assert self.say("STARTTLS").startswith("220")
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket)
        self.answers = self.socket.makefile("rb")
        return ssl.DER_cert_to_PEM_cert(self.socket.getpeercert(binary_form=True))


def certificate_in(path):
    text = Path(path).read_text()
    return text[: text.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n"


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def start(*args, **kw):
            return stack.enter_context(Served(*args, **kw))

        yield start


class TestMailData:
    pieces_of_wire = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\r\n.", b"x", b"\0"]), max_size=40)

    @given(pieces_of_wire, st.lists(st.integers(1, 5), min_size=60, max_size=60), st.sampled_from([10, 16, 1 << 14]))
    @settings(deadline=None)
    def test_however_it_is_cut_the_message_is_what_stands_before_the_first_end(self, words, cuts, piece):
        wire = b"".join(words) + b"\r\n.\r\nNOOP\r\n"
        end = (b"\r\n" + wire).index(b"\r\n.\r\n")
        expected = (b"\r\n" + wire)[: end + 2].replace(b"\r\n.", b"\r\n")[2:]
        data = MailData()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lamson.maildata._PIECE", piece)
            position, done = 0, False
            while not done:
                size = cuts.pop() if cuts else 1
                chunk, position = wire[position : position + size], position + size
                done = data.feed(chunk)
        assert (data.content(), data.rest + wire[position:]) == (expected, wire[end + 3 :])
        assert data.size == len(expected)

    def test_the_size_is_that_without_the_dots_and_over_the_limit_nothing_is_kept(self):
        data = MailData(limit=6)
        assert data.feed(b"..\r\n..\r\n.\r\n") and not data.too_large and data.content() == b".\r\n.\r\n"
        data = MailData(limit=5)
        assert data.feed(b"..\r\n..\r\n.\r\nQUIT\r\n") and data.too_large
        assert (data.content(), data.rest) == (b"", b"QUIT\r\n")

    def test_what_is_held_does_not_grow_with_the_message(self):
        data = MailData()
        for _ in range(1000):
            assert not data.feed(b"\r\n.\r" * 1000)
            assert len(data._held) < 1 << 14

    def test_the_largest_that_is_coming_in_is_crowded_out_when_the_room_is_full(self):
        room = Room(280_000)
        small, large, whole = (MailData(room=room) for _ in range(3))
        assert whole.feed(b"w" * 100_000 + b"\r\n.\r\n")
        assert not small.feed(b"s" * 50_000) and not large.feed(b"l" * 100_000)
        assert not any(data.crowded_out for data in (small, large, whole)) and 240_000 < room.taken <= 280_000
        assert not small.feed(b"s" * 40_000) and not small.crowded_out, "it took the room of the largest one"
        assert large.crowded_out and large.feed(b"l" * 100_000 + b"\r\n.\r\nQUIT") and large.rest == b"QUIT"
        assert large.content() == b"" and large.size == 200_002, "its end is found, and nothing is kept"
        assert small.feed(b"\r\n.\r\n") and small.content() == b"s" * 90_000 + b"\r\n"
        last = MailData(room=room)
        assert last.feed(b"x" * 100_000 + b"\r\n.\r\n") and last.crowded_out, "what is there whole is not touched"
        tiny = [MailData(room=room) for _ in range(2)]
        for data in tiny:
            assert data.feed(b"x" * 60_000 + b"\r\n.\r\n") and not data.crowded_out, "small ones always have room"
        assert room.taken > 280_000
        for data in (small, large, whole, last, *tiny):
            data.release()
            data.release()
        assert room.taken == 0

    def test_single_bytes_are_not_kept_as_single_objects(self):
        data = MailData()
        for _ in range(50_000):
            data.feed(b"x")
        assert len(data._pieces) < 5


class TestHeaders:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"A: b\r\nC: D\r\n\r\nbody", b"\na: b\r\nc: d"),
            (b"A: b\n\nbody\r\n\r\n", b"\na: b"),
            (b"\r\nA: b\r\n\r\n", b""),
            (b"\nA: b", b""),
            (b"", b"\n"),
            (b"A: b\r\n", b"\na: b\r\n"),
            (b"A: b\r\n c\r\nno field", b"\na: b\r\n c\r\n"),
            (b"no field" * 100, b"\n"),
            (b"A: " + b"b" * 47 + b"\r\n\r\n", b"\na: " + b"b" * 47),
            (b"A: " + b"b" * 48 + b"\r\n\r\n", None),
            (b"A: b\r\n" * 10, None),
        ],
    )
    def test_the_header_section_ends_where_the_fields_do(self, content, expected):
        assert header_section(content, limit=50) == expected

    def test_a_loop_is_more_hops_than_there_may_be_or_a_delivery_to_a_recipient(self):
        header = b"\nreceived: a\nreceived: b\r\ndelivered-to:  <zed@test.com> \r\n"
        assert in_a_loop(header, [], hops=1) and not in_a_loop(header, [], hops=2) and not in_a_loop(header, [])
        assert in_a_loop(header, ["Other@test.com", "Zed@Test.com"])
        assert not in_a_loop(header, ["ed@test.com"])
        assert not in_a_loop(b"\nx-delivered-to: zed@test.com", ["zed@test.com"])


class TestPaths:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("<a@b.c>", ("a@b.c", "")),
            ("<a@b.c>  SIZE=1 X", ("a@b.c", "SIZE=1 X")),
            ("<>", ("<>", "")),
            ("<> BODY=7BIT", ("<>", "BODY=7BIT")),
            ("a@b.c SIZE=1", ("a@b.c", "SIZE=1")),
            ("<Postmaster>", ("Postmaster", "")),
            ("<@x.y,@z:a@b.c>", ("a@b.c", "")),
            ('<"a"@b.c>', ("a@b.c", "")),
            ('<"a b"@b.c>', ('"a b"@b.c', "")),
            ('<"a\\b\\"c"@b.c>', ('"ab\\"c"@b.c', "")),
            ('<""@b.c>', ('""@b.c', "")),
            ("<a@[127.0.0.1]>", ("a@[127.0.0.1]", "")),
            ("<ä@ö.de>", ("ä@ö.de", "")),
            ("<a_b+c=d@e_f.g>", ("a_b+c=d@e_f.g", "")),
            ("<a@b.c>SIZE=1", None),
            ("<a@b..c>", None),
            ("<a@b.c.>", None),
            ("<a@[b.c]>", None),
            ("<a(comment)@b.c>", None),
            ("<a,b@c.d>", None),
            ("<@x.y:>", None),
            ("<", None),
            ("", None),
        ],
    )
    def test_a_path_is_an_address_or_nothing(self, text, expected):
        assert split_path(text) == expected

    @given(st.text(alphabet='<>@.:,"\\ab é[]1()', max_size=30))
    @settings(max_examples=500)
    def test_what_comes_out_is_the_same_when_it_goes_in_again(self, text):
        found = split_path(text)
        if found and found[0] != "<>":
            assert split_path(f"<{found[0]}>") == (found[0], "")

    def test_no_line_takes_long(self):
        for text in (
            '<"' + "\\a" * 500,
            "<" + "@a," * 300,
            "<" + "a." * 500 + ">",
            "a" * 1000 + "<",
            "<a@" + "a." * 500,
        ):
            assert split_path(text) is None or ">" in text


class TestLimits:
    @pytest.mark.parametrize(
        ("settings", "error"),
        [
            ({"size_limit": -1}, "size_limit is -1"),
            ({"recipient_limit": True}, "recipient_limit is True"),
            ({"key": "k.pem"}, "there is no certificate"),
            ({"auth": print}, "auth needs TLS"),
            ({"implicit_tls": True}, "implicit_tls needs TLS"),
            ({"require_tls": True}, "require_tls needs TLS"),
            ({"require_auth": True, "certificate": "c"}, "require_auth needs 'auth'"),
            ({"proxy_hosts": "10.0.0.1"}, "has to be a list"),
            ({"proxy_hosts": ["proxy.example.com"]}, "'proxy.example.com' does not appear to be"),
        ],
    )
    def test_what_makes_no_sense_is_named(self, settings, error):
        with pytest.raises(ValueError, match=error):
            Limits(**settings)

    def test_an_unknown_name_is_an_error(self):
        with pytest.raises(TypeError, match="recipients"):
            Limits(recipients=3)

    def test_neighbours_share_an_address_or_a_64(self):
        assert neighbourhood("192.0.2.1") == "192.0.2.1"
        assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff") == "2001:db8::"
        assert neighbourhood("fe80::1%eth0") == "fe80::"
        assert neighbourhood("::ffff:192.0.2.1") == "192.0.2.1"
        assert neighbourhood("") == ""

    def test_this_machine_has_as_many_connections_as_it_wants(self):
        limits = Limits()
        assert limits.connections_allowed("192.0.2.1") == 50
        assert [limits.connections_allowed(each) for each in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "")] == [0] * 4
        assert Limits(connection_limit_per_address=3).connections_allowed("127.0.0.1") == 3

    def test_a_proxy_is_an_address_or_a_network(self):
        limits = Limits(proxy_hosts=["10.0.0.0/8", "::1"])
        assert [limits.is_proxy(each) for each in ("10.1.2.3", "::1", "11.0.0.1", "::ffff:10.0.0.1")] == [1, 1, 0, 1]


class TestConnections:
    def test_one_too_many_is_told_to_come_again(self, serve):
        served = serve(Receiver(), Limits(connection_limit=2))
        with served.connect() as one, served.connect() as two:
            assert one.reply().startswith("220") and two.reply().startswith("220")
            with served.connect() as three:
                assert three.reply().startswith("421 4.3.2") and three.reply() == ""
            assert two.say("QUIT").startswith("221") and two.reply() == ""
            with served.connect() as four:
                assert four.reply().startswith("220")

    def test_each_address_has_its_share(self, serve):
        served = serve(Receiver(), Limits(connection_limit_per_address=1, proxy_hosts=["127.0.0.1"]))
        with served.connect() as one, served.connect() as two, served.connect() as three:
            assert one.say("PROXY TCP4 192.0.2.1 192.0.2.9 1000 25").startswith("220")
            assert two.say("PROXY TCP4 192.0.2.2 192.0.2.9 1000 25").startswith("220")
            assert three.say("PROXY TCP4 192.0.2.1 192.0.2.9 1001 25").startswith("421 4.7.0")
            assert one.say("NOOP").startswith("250")
        eventually(lambda: not served.receiver.connections, "everybody to be gone")
        assert not served.template._neighbours

    def test_a_proxy_names_the_client(self, serve):
        served = serve(Receiver(), Limits(proxy_hosts=["127.0.0.1"]))
        with served.connect() as talk:
            assert talk.say("PROXY TCP6 2001:db8::1 2001:db8::9 1000 25").startswith("220")
            for line in ("HELO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA", "."):
                assert talk.say(line)[0] in "23"
        assert served.receiver.messages == [(("2001:db8::1", 1000), "a@b.c", ["d@e.f"], b"")]

    @pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
    @pytest.mark.parametrize("said", ["", "PROXY TCP4 192.0."])
    def test_a_proxy_that_leaves_at_once_is_not_waited_for(self, serve, monkeypatch, new_loop, said):
        monkeypatch.setattr("lamson.connection.PROXY_TIMEOUT", 300)  # seconds: far longer than a `Talk` waits
        served = serve(Receiver(), Limits(proxy_hosts=["127.0.0.1"]), new_loop=new_loop)
        for _ in range(10):
            with served.connect() as talk:
                talk.socket.sendall(said.encode())
                talk.socket.shutdown(socket.SHUT_WR)
                assert talk.reply() == ""

    def test_bytes_now_and_then_do_not_move_the_deadline_of_a_command(self, serve):
        served = serve(Receiver(), Limits(command_timeout=0.3))
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            start = time.monotonic()
            while time.monotonic() - start < 20:
                try:
                    talk.socket.sendall(b"x")
                except OSError:
                    break
                time.sleep(0.02)
            assert time.monotonic() - start < 15
        assert not served.receiver.connections

    def test_pieces_of_a_message_move_the_deadline_up_to_that_of_the_message(self, serve):
        served = serve(Receiver(), Limits(command_timeout=0.5, message_timeout=1.5))
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            for line in ("HELO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"):
                assert talk.say(line)[0] in "23"
            start = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() - start < 20:
                    talk.socket.sendall(b"x")
                    time.sleep(0.05)
            assert 1 < time.monotonic() - start < 15
        assert not served.receiver.messages

    def test_a_client_that_does_not_read_is_cut_off(self, serve, monkeypatch):
        monkeypatch.setattr(connection, "GOODBYE_TIMEOUT", 0.2)
        served = serve(Receiver(), Limits(command_timeout=0.3, command_limit=0))
        with served.connect() as talk:
            talk.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    talk.socket.send(b"HELP\r\n" * 1000)
            eventually(lambda: not served.receiver.connections, "the end of a connection that nobody reads from")

    def test_a_client_that_does_not_read_what_became_of_its_messages_is_cut_off(self, serve, monkeypatch):
        monkeypatch.setattr(connection, "GOODBYE_TIMEOUT", 0.2)
        receiver = Receiver(["250 " + "x" * 1000] * 100)  # more than the transport holds
        served = serve(receiver, Limits(command_timeout=0.3, command_limit=0, message_limit=0), protocol=LMTPProtocol)
        message = "MAIL FROM:<a@b.c>\r\n" + "RCPT TO:<d@e.f>\r\n" * 100 + "DATA\r\nHi\r\n.\r\n"
        with served.connect() as talk:
            talk.socket.sendall(b"LHLO x\r\n")
            talk.socket.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    talk.socket.send(message.encode() * 10)
            eventually(lambda: not served.receiver.connections, "the end of a connection that nobody reads from")

    def test_a_handler_may_take_longer_than_a_client(self, serve):
        class Slow(Receiver):
            async def handle_DATA(self, server, session, envelope):
                await asyncio.sleep(0.6)
                return "250 Done"

        served = serve(Slow(), Limits(command_timeout=0.2))
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            for line in ("HELO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"):
                assert talk.say(line)[0] in "23"
            assert talk.say(".") == "250 Done"
            assert talk.reply().startswith("421 4.4.2")

    @pytest.mark.parametrize("error", [ConnectionResetError("of a database"), EOFError("x"), ValueError("secret")])
    def test_an_error_of_a_receiver_is_a_451_whatever_its_class(self, serve, caplog, error):
        class Failing(Receiver):
            async def handle_RCPT(self, server, session, envelope, address, options):
                raise error

        served = serve(Failing())
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            for line in ("HELO x", "MAIL FROM:<a@b.c>"):
                assert talk.say(line).startswith("250")
            assert talk.say("RCPT TO:<d@e.f>") == "451 4.3.0 Internal error, try again later"
            assert talk.say("NOOP").startswith("250")
        assert str(error) in caplog.text

    def test_nobody_writes_lines_into_the_log(self, serve, caplog):
        caplog.set_level(logging.DEBUG, "lamson")
        served = serve(Receiver(), Limits(error_limit=3, hop_limit=1))
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            for line in ("HELO x\x1b[2J", "MAIL FROM:<a\x85b>", "fa\vke"):
                assert talk.say(line).startswith("500")
            assert talk.reply().startswith("421")
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            for line in ("HELO é", "MAIL FROM:<é@b.c>", 'RCPT TO:<"é b"@e.f>', "DATA"):
                assert talk.say(line)[0] in "23"
            assert talk.say("Received: a\r\nReceived: b\r\n\r\n.").startswith("554")
        eventually(lambda: "in a loop" in caplog.text, "a line in the log")
        assert all(record.getMessage().isprintable() and record.getMessage().isascii() for record in caplog.records)

    def test_others_get_their_turn_while_one_sends_many_commands_at_once(self):
        async def talk():
            loop = asyncio.get_running_loop()
            protocol = SMTPProtocol(Receiver(), Limits(command_limit=0), hostname="here", loop=loop).fork()
            written = []
            protocol.connection_made(FakeTransport(written))
            protocol.data_received(b"NOOP\r\n" * 1000)
            turns = 0
            while len(written) < 1001:
                await asyncio.sleep(0)
                turns += 1
            return turns

        assert asyncio.run(talk()) > 1000 / 100

    @staticmethod
    def written_for(*pieces, receiver=None, limits=None, after=""):
        """What the server writes, piece by piece, to a client that sends these at once and then does something."""

        async def talk():
            loop = asyncio.get_running_loop()
            template = SMTPProtocol(receiver or Receiver(), limits or Limits(), hostname="here", ident="x", loop=loop)
            protocol, written = template.fork(), []
            protocol.connection_made(FakeTransport(written))
            for piece in ["EHLO x\r\n", *pieces]:
                del written[:]
                protocol.data_received(piece.encode())
                for _ in range(100):
                    await asyncio.sleep(0)
            if after:
                getattr(protocol, after)()
            return b"".join(written).decode().splitlines(), len(written)

        return asyncio.run(talk())

    def test_replies_to_the_commands_of_an_envelope_that_came_together_are_sent_together(self):
        envelope = "MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nRCPT TO:<\r\nRCPT TO:<g@e.f>\r\n"
        replies = ["250 OK", "250 OK", "553 5.1.3 Error: malformed address", "250 OK"]
        ready = "354 End data with <CR><LF>.<CR><LF>"
        assert self.written_for(envelope + "DATA\r\n") == ([*replies, ready], 1)
        assert self.written_for(envelope) == (replies, 1)
        # What became of a message is said at once, whatever came behind it.
        message = "DATA\r\n", "Hi\r\n.\r\n" + envelope + "DATA\r\n"
        assert self.written_for(envelope, *message) == (["250 OK", *replies, ready], 2)

    @pytest.mark.parametrize("rest", ["RC", "NOOP", "\r", "x" * 20_000])
    def test_no_reply_is_held_while_the_server_waits_for_the_client(self, rest):
        assert self.written_for("RSET\r\nMAIL FROM:<a@b.c>\r\n" + rest)[0] == ["250 OK", "250 OK"]

    def test_replies_come_in_order_whether_they_may_be_held_or_not(self):
        replies, pieces = self.written_for("RSET\r\nNOOP\r\nRSET\r\nWHAT\r\nRSET\r\nLF\nRSET\r\n\r\nRSET\r\nQUIT\r\n")
        assert [reply[:3] for reply in replies] == "250 250 250 500 250 500 500 250 221".split()
        assert pieces == 5

    def test_replies_do_not_wait_for_what_a_later_command_waits_for(self):
        class Slow(Receiver):
            async def handle_RCPT(self, server, session, envelope, address, options):
                await asyncio.sleep(20)

        pipelined = "MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n"
        assert self.written_for(pipelined, receiver=Slow()) == (["250 OK"], 1)
        said, _ = self.written_for(pipelined, receiver=Slow(), after="shut_down")
        assert said == ["250 OK", "421 4.3.2 here is shutting down"]

    def test_replies_that_wait_come_before_the_goodbye(self):
        said, _ = self.written_for("RSET\r\n" * 20, limits=Limits(command_limit=10))
        assert said == ["250 OK"] * 9 + ["421 4.7.0 Too many commands, closing the connection"]

    def test_few_replies_are_held_however_many_commands_come(self):
        replies, pieces = self.written_for("RSET\r\n" * 5000, limits=Limits(command_limit=0))
        assert len(replies) == 5000 and 5 <= pieces <= 100

    def test_others_get_their_turn_while_one_sends_a_large_message(self):
        class Transport(FakeTransport):
            said = []

            def pause_reading(self):
                self.said.append("pause")

            def resume_reading(self):
                self.said.append("resume")

        async def talk():
            loop = asyncio.get_running_loop()
            protocol = SMTPProtocol(Receiver(), Limits(size_limit=0), hostname="here", loop=loop).fork()
            transport = Transport([])
            transport.is_closing = lambda: False
            protocol.connection_made(transport)
            protocol.data_received(b"HELO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n")
            while protocol._incoming is None:
                await asyncio.sleep(0)
            for _ in range(3):
                protocol.data_received(b"x" * (1 << 18))
                assert transport.said.pop() == "pause" and not transport.said, "it reads once and no more in a turn"
                await asyncio.sleep(0)
                assert transport.said.pop() == "resume", "and once more in the next one"
            protocol.data_received(b"x" * 100)
            assert not transport.said, "who sends little is not stopped"
            protocol._handler_coroutine.cancel()

        asyncio.run(talk())

    def test_a_client_is_greeted_in_the_moment_it_comes(self):
        async def connect():
            protocol = SMTPProtocol(Receiver(), hostname="here", ident="x", loop=asyncio.get_running_loop()).fork()
            written = []
            protocol.connection_made(FakeTransport(written))
            at_once = list(written)
            await asyncio.sleep(0)
            return at_once, written

        assert asyncio.run(connect()) == ([b"220 here x\r\n"], [b"220 here x\r\n"])

    def test_aiosmtpds_constructor_runs_once_for_all_connections(self, serve, monkeypatch):
        served = serve(Receiver())
        monkeypatch.setattr(smtp.SMTP, "__init__", None)
        for _ in range(3):
            with served.connect() as talk:
                assert talk.reply().startswith("220")

    def test_large_messages_are_put_together_by_one_thread_beside_the_loop(self, serve, monkeypatch):
        monkeypatch.setattr(connection, "_LARGE", 100)
        threads, join = [], MailData.content
        monkeypatch.setattr(MailData, "content", lambda data: threads.append(threading.current_thread()) or join(data))
        served = serve(Receiver())
        with contextlib.ExitStack() as stack:
            talks = [stack.enter_context(served.connect()) for _ in range(5)]
            for line in ("", "HELO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"):
                for talk in talks:
                    assert (talk.say(line) if line else talk.reply())[0] in "23"
            for talk in talks:
                talk.socket.sendall(b"x" * 200 + b"\r\n.\r\n")
            assert {talk.reply() for talk in talks} == {"250 OK"}
        assert len(threads) == 5 and len(set(threads)) == 1 and served.thread not in threads
        assert [message[3] for message in served.receiver.messages] == [b"x" * 200 + b"\r\n"] * 5

    def test_a_large_message_is_put_together_when_there_is_no_thread_for_that(self, serve, monkeypatch):
        class NoThread:
            def submit(self, *_):
                raise RuntimeError("can't start new thread")

        monkeypatch.setattr(connection, "_LARGE", 100)
        monkeypatch.setattr(connection, "_JOINER", NoThread())
        served = serve(Receiver())
        with served.connect() as talk:
            for line in ("", "HELO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"):
                assert (talk.say(line) if line else talk.reply())[0] in "23"
            assert talk.say("x" * 200 + "\r\n.") == "250 OK"
        assert served.receiver.messages[0][3] == b"x" * 200 + b"\r\n"

    def test_connections_share_nothing_that_one_may_change(self):
        async def fork_two():
            template = SMTPProtocol(Receiver(), hostname="here", loop=asyncio.get_running_loop())
            return template, template.fork(), template.fork()

        template, one, two = asyncio.run(fork_two())
        shared = {name for name, value in vars(one).items() if value is vars(two)[name]}
        mutable = {name for name in shared if isinstance(vars(one)[name], (list, bytearray, dict, set))}
        assert mutable == {"_auth_methods", "_by_name", "_connections", "_handle_hooks", "_neighbours", "_smtp_methods"}


class TestMemory:
    def begin(self, served, stack):
        talk = stack.enter_context(served.connect())
        assert talk.reply().startswith("220")
        for line in ("HELO x", "MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"):
            assert talk.say(line)[0] in "23"
        return talk

    def test_many_large_messages_leave_room_for_small_ones(self, serve):
        served = serve(Receiver(), Limits(size_limit=1_000_000, memory_limit=3_000_000))
        room = served.template._room
        with contextlib.ExitStack() as stack:
            talks = [self.begin(served, stack) for _ in range(20)]
            for part in range(9):
                for talk in talks:
                    talk.socket.sendall(b"x" * 99_998 + b"\r\n")
                assert self.begin(served, stack).say(f"small {part}\r\n.") == "250 OK", "others are served meanwhile"
                assert room.taken <= 3_000_000
            replies = [talk.say("\r\n.") for talk in talks]
            refused = "452 4.3.1 Error: Too much mail at the same time, try again later"
            assert set(replies) == {"250 OK", refused}
            assert replies.count("250 OK") == 20 - replies.count(refused) >= 2
            talk = talks[replies.index(refused)]
            for line in ("MAIL FROM:<a@b.c>", "RCPT TO:<d@e.f>", "DATA"):
                assert talk.say(line)[0] in "23"
            assert talk.say("x" * 900_000 + "\r\n.") == "250 OK", "it comes again, and there is room"
        messages = [len(message[3]) for message in served.receiver.messages]
        assert messages.count(900_002) == replies.count("250 OK") + 1 and len(messages) == messages.count(900_002) + 9
        eventually(lambda: not served.receiver.connections, "the end of the connections")
        assert room.taken == 0

    def test_clients_that_leave_in_the_middle_give_their_room_back(self, serve):
        served = serve(Receiver(), Limits(memory_limit=3_000_000))
        with contextlib.ExitStack() as stack:
            for talk in [self.begin(served, stack) for _ in range(3)]:
                talk.socket.sendall(b"x" * 500_000)
            eventually(lambda: served.template._room.taken > 1_400_000, "what they have sent")
        eventually(lambda: not served.receiver.connections, "the end of the connections")
        assert served.template._room.taken == 0

    def test_one_message_always_has_room(self, serve):
        receiver = Receiver()
        receiver.workers = 4
        served = serve(receiver, Limits(size_limit=1_000_000, memory_limit=1_000_000))
        with contextlib.ExitStack() as stack:
            assert self.begin(served, stack).say("x" * 999_000 + "\r\n.") == "250 OK"

    def test_without_a_limit_of_size_that_of_memory_is_one(self, serve):
        served = serve(Receiver(), Limits(size_limit=0, memory_limit=100_000))
        with contextlib.ExitStack() as stack:
            assert self.begin(served, stack).say("x" * 200_000 + "\r\n.") == "552 Error: Too much mail data"

    def test_whoever_sends_leaves_and_comes_again_counts_until_the_message_was_handled(self, serve):
        class Slow(Receiver):
            async def handle_DATA(self, server, session, envelope):
                self.begun.append(envelope)
                await self.go_on.wait()
                return await super().handle_DATA(server, session, envelope)

        receiver = Slow()
        receiver.go_on, receiver.begun = asyncio.Event(), []
        served = serve(receiver, Limits(connection_limit=3, memory_limit=1_000_000))
        with contextlib.ExitStack() as stack:
            for number in range(3):
                talk = self.begin(served, stack)
                talk.socket.sendall(b"x" * 100_000 + b"\r\n.\r\nMAIL FROM:<more@b.c>\r\n")
                eventually(lambda: len(receiver.begun) > number, "it is being handled")  # noqa: B023  # called at once
                # Not just closed: that might mean that it waits for the answer.
                talk.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                talk.answers.close()
                talk.socket.close()
            eventually(lambda: all(each.transport is None for each in list(receiver.connections)), "three that left")
            with served.connect() as talk:
                assert talk.reply() == "421 4.3.2 Too many connections, try again later"
            assert served.template._room.taken > 300_000
            served.loop.call_soon_threadsafe(receiver.go_on.set)
            eventually(lambda: not receiver.connections, "the end of the connections")
            assert self.begin(served, stack).say("Hi\r\n.") == "250 OK"
        eventually(lambda: not receiver.connections, "the end of the connections")
        assert len(receiver.messages) == 4 and not served.template._neighbours


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self, written):
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.write = written.append
        self.close = lambda: None
        self.is_closing = lambda: True

    def get_write_buffer_size(self):
        return 0


LOOPS = pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
CERTIFICATE = str(CERTS / "one.pem")


class TestTLS:
    @LOOPS
    @pytest.mark.parametrize("limit", ["connection_limit", "connection_limit_per_address"])
    def test_connections_count_before_they_have_shaken_hands(self, serve, new_loop, limit):
        served = serve(Receiver(), Limits(certificate=CERTIFICATE, implicit_tls=True, **{limit: 1}), new_loop=new_loop)
        with served.connect() as silent:
            eventually(lambda: served.template._neighbours, "the first one to be counted")
            with served.connect() as other:
                assert other.reply() == ""
            assert silent.socket.send(b"\x16") == 1
        eventually(lambda: not served.template._neighbours, "the first one to be gone")
        with smtplib.SMTP_SSL("127.0.0.1", served.port, timeout=20, context=ssl._create_unverified_context()) as client:
            assert client.noop()[0] == 250

    @LOOPS
    def test_a_certificate_is_read_again_without_dropping_anyone(self, serve, tmp_path, new_loop):
        path = tmp_path / "certificate.pem"
        shutil.copy(CERTS / "one.pem", path)
        served = serve(Receiver(), Limits(certificate=str(path)), new_loop=new_loop)
        with served.connect() as old, served.connect() as waiting:
            assert old.reply().startswith("220") and waiting.reply().startswith("220")
            assert old.start_tls() == certificate_in(CERTS / "one.pem")
            shutil.copy(CERTS / "two.pem", path)
            served.template.tls_context = server_context(str(path))
            assert old.say("EHLO x").startswith("250")
            assert waiting.start_tls() == certificate_in(CERTS / "one.pem")
            with served.connect() as new:
                assert new.reply().startswith("220")
                assert new.start_tls() == certificate_in(CERTS / "two.pem")
                assert new.say("EHLO x").startswith("250")

    def test_files_that_are_no_certificate_are_named(self, tmp_path):
        with pytest.raises(OSError, match=r"cannot use the certificate .*nothing.pem: No such file"):
            server_context(str(tmp_path / "nothing.pem"))
        (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----")
        with pytest.raises(OSError, match="cannot use the certificate .*bad.pem"):
            server_context(str(tmp_path / "bad.pem"))
        with pytest.raises(OSError, match=r"one.pem with the key .*two.pem: .*mismatch"):
            server_context(CERTIFICATE, str(CERTS / "two.pem"))

    @LOOPS
    @pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
    def test_large_messages_come_through_tls(self, serve, new_loop, implicit):
        served = serve(Receiver(), Limits(certificate=CERTIFICATE, implicit_tls=implicit), new_loop=new_loop)
        content = b"Subject: large\r\n\r\n" + b"0123456789" * 7 * 20_000 + b"\r\n"
        context = ssl._create_unverified_context()
        if implicit:
            client = smtplib.SMTP_SSL("127.0.0.1", served.port, timeout=20, context=context)
        else:
            client = smtplib.SMTP("127.0.0.1", served.port, timeout=20)
            client.starttls(context=context)
        with client:
            client.sendmail("a@b.c", ["d@e.f"], content)
        assert served.receiver.messages[0][3] == content
        eventually(lambda: not served.receiver.connections, "the end of the connection")

    @LOOPS
    def test_a_handshake_that_never_comes_ends(self, serve, new_loop, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "lamson")
        monkeypatch.setattr(connection, "HANDSHAKE_TIMEOUT", 0.3)
        served = serve(Receiver(), Limits(certificate=CERTIFICATE), new_loop=new_loop)
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            assert talk.say("STARTTLS").startswith("220")
            assert talk.reply() == ""
        eventually(lambda: not served.receiver.connections, "the end of the connection")
        assert "broke off the handshake" in caplog.text and "Traceback" not in caplog.text

    @LOOPS
    def test_a_client_that_leaves_during_the_handshake_is_forgotten(self, serve, new_loop):
        served = serve(Receiver(), Limits(certificate=CERTIFICATE, implicit_tls=True), new_loop=new_loop)
        for _ in range(5):
            with served.connect() as talk:
                talk.socket.sendall(b"\x16\x03\x01")
                talk.socket.shutdown(socket.SHUT_WR)
                talk.answers.read()  # until the server has closed: it had not even accepted all of them otherwise
        eventually(lambda: not served.receiver.connections, "the end of the connections")
        assert not served.template._neighbours

    def test_whoever_is_asked_for_a_password_may_take_their_time(self, serve):
        asked_in = []

        def auth(user, password):
            asked_in.append(threading.current_thread())
            return password == "pässword"

        served = serve(Receiver(), Limits(certificate=CERTIFICATE, auth=auth))
        with smtplib.SMTP("127.0.0.1", served.port, timeout=20) as client:
            client.starttls(context=ssl._create_unverified_context())
            client.ehlo()
            assert client.docmd("AUTH PLAIN AHplZABww6Rzc3dvcmQ=")[0] == 235
        assert asked_in and asked_in[0] is not served.thread

    def test_openssl_starts_tls(self, serve):
        served = serve(Receiver(), Limits(certificate=CERTIFICATE))
        command = [needs("openssl"), "s_client", "-connect", f"127.0.0.1:{served.port}", "-starttls", "smtp", "-crlf"]
        command += ["-quiet", "-verify_return_error", "-CAfile", CERTIFICATE]
        done = subprocess.run(command, input=b"NOOP\nQUIT\n", capture_output=True, timeout=60)
        assert done.stdout.splitlines()[-2:] == [b"250 OK", b"221 Bye"], done

    @pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
    def test_swaks_logs_in_and_sends(self, serve, implicit):
        limits = Limits(
            certificate=CERTIFICATE,
            implicit_tls=implicit,
            auth=lambda user, password: (user, password) == ("zed", "secret"),
            require_auth=True,
        )
        served = serve(Receiver(), limits)
        command = [
            needs("swaks"),
            "--server",
            "127.0.0.1",
            "--port",
            str(served.port),
            "--from",
            "a@b.c",
            "--to",
            "d@e.f",
        ]
        command += ["--tls-on-connect" if implicit else "--tls", "--auth-user", "zed", "--auth-password"]
        for mechanism in ("PLAIN", "LOGIN"):
            done = subprocess.run([*command, "secret", "--auth", mechanism], capture_output=True, text=True, timeout=60)
            if "TLS not available" in done.stderr:
                pytest.skip("swaks knows no TLS: the Perl module Net::SSLeay is missing")
            assert done.returncode == 0, done.stdout + done.stderr
            done = subprocess.run([*command, "wrong", "--auth", mechanism], capture_output=True, text=True, timeout=60)
            assert done.returncode == 28 and "535 5.7.8" in done.stdout, done.stdout + done.stderr
        assert len(served.receiver.messages) == 2

    def test_swaks_comes_through_a_proxy(self, serve):
        served = serve(Receiver(), Limits(proxy_hosts=["127.0.0.1"]))
        for version in ("1", "2"):
            command = [needs("swaks"), "--server", "127.0.0.1", "--port", str(served.port), "--to", "d@e.f"]
            command += ["--proxy-version", version, "--proxy-family", "TCP4" if version == "1" else "AF_INET"]
            command += ["--proxy-source", "192.0.2.7", "--proxy-source-port", "4000", "--proxy-dest", "192.0.2.9"]
            command += ["--proxy-dest-port", "25", "--from", "a@b.c"]
            if version == "2":
                command += ["--proxy-protocol", "STREAM", "--proxy-command", "PROXY"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
        assert [peer for peer, *_ in served.receiver.messages] == [("192.0.2.7", 4000)] * 2


class TestLMTP:
    def say_envelope(self, talk, recipients=("one@e.f", "two@e.f")):
        for line in ("MAIL FROM:<a@b.c>", *(f"RCPT TO:<{each}>" for each in recipients)):
            assert talk.say(line).startswith("250")
        assert talk.say("DATA").startswith("354")

    def test_every_recipient_has_a_reply(self, serve):
        served = serve(Receiver(["250 OK", "550 Not\r\n550 you"]), protocol=LMTPProtocol)
        served.receiver.reply = ["250 Taken", "550-Not\r\n550 you"]
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            assert talk.say("LHLO x").splitlines()[-1] == "250 HELP"
            self.say_envelope(talk)
            assert [talk.say("Hi\r\n."), talk.reply()] == ["250 Taken", "550-Not\n550 you"]
            assert talk.say("NOOP") == "250 OK"

    @pytest.mark.parametrize(
        ("content", "reply"),
        [("x" * 200, "552"), ("Received: a\r\nReceived: b", "554 5.4.6"), ("Hi", "451 4.3.0")],
    )
    def test_what_holds_for_the_message_is_said_to_every_recipient(self, serve, content, reply):
        limits = Limits(size_limit=100, hop_limit=1)
        served = serve(Receiver(ValueError("secret")), limits, protocol=LMTPProtocol)
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            assert talk.say("LHLO x").startswith("250")
            self.say_envelope(talk)
            assert talk.say(f"{content}\r\n.").startswith(reply) and talk.reply().startswith(reply)
            assert talk.say("NOOP") == "250 OK"

    @pytest.mark.parametrize("replies", [["250 OK"], "nothing to be joined"])
    def test_an_error_of_ours_is_said_to_every_recipient_too(self, serve, monkeypatch, replies):
        served = serve(Receiver(replies), protocol=LMTPProtocol)
        if isinstance(replies, str):
            monkeypatch.setattr(MailData, "content", None)
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            assert talk.say("LHLO x").startswith("250")
            for _ in range(2):
                self.say_envelope(talk)
                assert [talk.say("Hi\r\n."), talk.reply()] == ["451 4.3.0 Internal error, try again later"] * 2
            assert talk.say("NOOP") == "250 OK"

    def test_it_is_no_smtp(self, serve):
        served = serve(Receiver(), protocol=LMTPProtocol)
        with served.connect() as talk:
            assert talk.reply().startswith("220")
            assert talk.say("EHLO x").startswith("500") and talk.say("HELO x").startswith("500")
            assert talk.say("MAIL FROM:<a@b.c>") == "503 Error: send LHLO first"
            assert talk.say("LHLO").startswith("501")
            assert talk.say("LHLO x").startswith("250")
            assert talk.say("DATA").startswith("503")

    def test_it_works_on_a_unix_socket(self, tmp_path):
        async def talk():
            loop = asyncio.get_running_loop()
            receiver = Receiver()
            template = LMTPProtocol(receiver, Limits(proxy_hosts=["0.0.0.0/0"]), hostname="here", loop=loop)
            server = await loop.create_unix_server(template.fork, str(tmp_path / "lmtp"))
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "lmtp"))
            assert (await reader.readline()).startswith(b"220")
            writer.write(b"LHLO x\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\nHi\r\n.\r\nQUIT\r\n")
            answers = await reader.read()
            writer.close()
            server.close()
            return answers, receiver.messages

        answers, messages = asyncio.run(talk())
        assert answers.endswith(b"354 End data with <CR><LF>.<CR><LF>\r\n250 OK\r\n221 Bye\r\n")
        assert messages[0][1:] == ("a@b.c", ["d@e.f"], b"Hi\r\n")
