"""The relay over real sockets: what the other server gets, and what becomes of what it does not take."""

import contextlib
import smtplib
import socket
import ssl
import subprocess
import sys
import threading
from email.message import EmailMessage

import pytest

from lamson import client, queue
from lamson import relay as relay_module
from lamson.hosts import MailHosts, NoMailHost
from lamson.mail import MailRequest, MailResponse
from lamson.outgoing import RetryQueue
from lamson.queue import Queue
from lamson.relay import Relay
from lamson.routing import Router, route, stateless
from lamson.server import SMTPReceiver
from lamson.wire import on_the_wire
from processes import eventually
from sink import BROKEN, DEAF, DROP, SILENCE, Host, Sink

RAW = b"From: a@example.com\r\nTo: list@test.com\r\nSubject: hi\r\nMessage-ID: <1@example.com>\r\n\r\nHello\r\n"


def mail(*recipients, sender="a@b.c", content=RAW):
    return MailRequest("peer", sender, list(recipients) or ["x@y.z"], content)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def sink():
    with Sink() as sink:
        yield sink


@pytest.fixture
def host():
    with Host() as host:
        yield host


@pytest.fixture
def undeliverable(tmp_path):
    Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
    return Router.UNDELIVERABLE_QUEUE


def entries(folder):
    """(sender, recipients, content, reason) of what is in a queue."""
    found = []
    for path in queue.Maildir(folder).files():
        raw = path.read_bytes()
        found.append((*queue.split_envelope(raw), queue.envelope_reason(raw)))
    return found


# --- what the other server gets ------------------------------------------------------------------------------------


class TestWhatIsSent:
    def test_a_request_is_passed_on_byte_for_byte_with_its_envelope(self, sink):
        raw = RAW + b".dots\r\n..\r\n8-bit \xff\r\n"
        Relay("127.0.0.1", sink.port).deliver(MailRequest("peer", "bounce@b.c", ["x@y.z"], raw))
        sender, recipients, content, options = sink.got[0]
        assert (sender, recipients, content) == ("bounce@b.c", ["x@y.z"], raw)
        assert "BODY=8BITMIME" in options and f"SIZE={len(raw)}" in options

    def test_a_handler_relays_the_copy_of_its_recipient(self, sink):
        relay = Relay("127.0.0.1", sink.port)

        @route(".+")
        @stateless
        def START(message):
            relay.deliver(message)

        Router.deliver(MailRequest("peer", "a@b.c", ["One@y.z", "two@y.z"], RAW))
        assert sorted(recipients for _, recipients, _, _ in sink.got) == [["One@y.z"], ["two@y.z"]]

    def test_arguments_win_over_the_envelope(self, sink):
        Relay("127.0.0.1", sink.port).deliver(MailRequest("", "a@b.c", "d@e.f", RAW), To="x@y.z", From="f@g.h")
        assert sink.got[0][:2] == ("f@g.h", ["x@y.z"])

    @pytest.mark.parametrize(
        ("header", "value", "sender", "recipients"),
        [
            # As it came, or with nothing new in it, it is for the one that it is being handled for.
            ("Subject", "[list] hi", "a@b.c", ["you@test.com"]),
            ("To", "The List <LIST@test.com>", "a@b.c", ["you@test.com"]),
            ("To", "undisclosed-recipients:;", "a@b.c", ["you@test.com"]),
            ("To", None, "a@b.c", ["you@test.com"]),
            # A handler that writes another address into a header means it.
            ("To", "Zed <zed@x.y>, Joe@x.y", "a@b.c", ["zed@x.y", "Joe@x.y"]),
            ("From", "List <list@test.com>", "list@test.com", ["you@test.com"]),
            ("Cc", "zed@x.y", "a@b.c", ["you@test.com"]),
        ],
    )
    def test_a_handler_changes_a_header_of_what_came_in(self, host, header, value, sender, recipients):
        relay = Relay("127.0.0.1", host.port)

        @route("you@test.com")
        @stateless
        def START(message):
            message[header] = value
            relay.deliver(message)

        Router.deliver(mail("you@test.com"))
        assert host.got[0][:2] == (sender, recipients)
        assert (header.encode() in host.got[0][2]) == (value is not None)

    def test_arguments_win_over_changed_headers(self, host):
        message = mail("you@test.com")
        message["To"], message["From"] = "zed@x.y", "list@test.com"
        Relay("127.0.0.1", host.port).deliver(message, To="joe@x.y", From="me@test.com")
        assert host.got[0][:2] == ("me@test.com", ["joe@x.y"])

    def test_a_changed_from_does_not_make_a_bounce_an_ordinary_message(self, host):
        message = mail("you@test.com", sender="")
        message["From"] = "list@test.com"
        Relay("127.0.0.1", host.port).deliver(message)
        assert host.got[0][:2] == ("", ["you@test.com"])

    def test_a_to_that_the_message_came_without_counts_when_a_handler_has_set_it(self, host):
        relay = Relay("127.0.0.1", host.port)
        message = mail("you@test.com", content=b"Subject: hi\r\n\r\n")
        assert message["To"] == "you@test.com"
        relay.deliver(message)
        message["To"] = "zed@x.y"
        relay.deliver(message)
        assert [got[1] for got in host.got] == [["you@test.com"], ["zed@x.y"]]

    def test_a_bounce_goes_out_with_the_null_sender(self, host):
        Relay("127.0.0.1", host.port).deliver(mail(sender=""))
        assert host.got[0][:2] == ("", ["x@y.z"])

    def test_a_response_goes_to_all_its_headers_and_hides_bcc(self, sink):
        message = MailResponse(To="A <a@b.c>, b@b.c", From="Me <me@b.c>", Subject="s", Body="b")
        message["Cc"] = "c@b.c"
        message["Bcc"] = "secret@b.c"
        Relay("127.0.0.1", sink.port).deliver(message)
        sender, recipients, content, _ = sink.got[0]
        assert (sender, recipients) == ("me@b.c", ["a@b.c", "b@b.c", "c@b.c", "secret@b.c"])
        assert b"secret" not in content and b"c@b.c" in content and b"\n" not in content.replace(b"\r\n", b"")
        assert message["Bcc"] == "secret@b.c"

    def test_an_email_message_goes_out_without_bcc_and_keeps_its_own(self, sink):
        message = EmailMessage()
        message["From"], message["To"], message["Bcc"] = "me@b.c", "a@b.c", "secret@b.c"
        message.set_content("Body")
        Relay("127.0.0.1", sink.port).deliver(message)
        assert sink.got[0][1] == ["a@b.c", "secret@b.c"] and b"secret" not in sink.got[0][2]
        assert message["Bcc"] == "secret@b.c"

    def test_send_and_reply(self, sink):
        relay = Relay("127.0.0.1", sink.port)
        relay.send("x@y.z", "me@b.c", "Subject", "Body")
        relay.reply(MailRequest("", "a@b.c", "d@e.f", RAW), "me@b.c", "Re", "Body")
        assert [got[1] for got in sink.got] == [["x@y.z"], ["a@example.com"]]

    def test_an_address_in_unicode_goes_out_with_smtputf8(self, sink):
        Relay("127.0.0.1", sink.port).deliver(MailRequest("", "я@b.c", "ю@y.z", RAW))
        assert sink.got[0][:2] == ("я@b.c", ["ю@y.z"]) and "SMTPUTF8" in sink.got[0][3]

    def test_a_server_without_smtputf8_gets_domains_in_ascii_and_refuses_local_parts_in_unicode(self):
        with Sink(utf8=False) as plain:
            relay = Relay("127.0.0.1", plain.port)
            relay.deliver(MailRequest("", "a@bücher.example", ["c@пример.example"], RAW))
            assert plain.got[0][:2] == ("a@xn--bcher-kva.example", ["c@xn--e1afmkfd.example"])
            with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
                relay.deliver(MailRequest("", "a@b.c", ["я@b.c", "c@bücher.example"], RAW))
            code, text = caught.value.recipients["я@b.c"]
            assert (code, text[:5]) == (553, b"5.6.7") and len(caught.value.recipients) == 1
            assert plain.got[1][1] == ["c@xn--bcher-kva.example"]
            with pytest.raises(smtplib.SMTPSenderRefused, match="does not speak SMTPUTF8"):
                relay.deliver(MailRequest("", "я@b.c", ["a@b.c"], RAW))

    def test_a_recipient_whose_domain_is_in_unicode_is_refused_under_its_own_name(self):
        with Sink(utf8=False) as plain:
            plain.refuse["a@xn--bcher-kva.example"] = "550 no"
            with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
                Relay("127.0.0.1", plain.port).deliver(mail("a@bücher.example", "b@y.z"))
            assert caught.value.recipients == {"a@bücher.example": (550, b"no")}

    def test_headers_in_utf8_are_declared_and_those_in_another_charset_are_not(self, sink):
        relay = Relay("127.0.0.1", sink.port)
        relay.deliver(MailRequest("", "a@b.c", "d@e.f", "Subject: я\r\n\r\n".encode()))
        relay.deliver(MailRequest("", "a@b.c", "d@e.f", b"Subject: caf\xe9\r\n\r\n"))
        relay.deliver(MailRequest("", "a@b.c", "d@e.f", "Subject: x\r\n\r\nя\r\n".encode()))
        assert ["SMTPUTF8" in options for _, _, _, options in sink.got] == [True, False, False]

    def test_no_address_can_smuggle_a_command(self, host):
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.Connection("h", "127.0.0.1", host.port).transfer("a@b.c", ["x@y.z>\r\nRCPT TO:<spam@y.z"], RAW)
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.Connection("h", "127.0.0.1", host.port).transfer("a\n@b.c", ["x@y.z"], RAW)
        assert not any("spam" in line for talk in host.talks for line in talk)

    def test_a_message_for_nobody_is_an_error(self, host):
        with pytest.raises(ValueError, match="no recipient"):
            Relay("127.0.0.1", host.port).deliver(MailResponse(From="a@b.c", Subject="s", Body="b"))

    def test_a_large_message_arrives_whole(self, host):
        content = RAW + b"0123456789" * 300_000 + b"\r\n"
        Relay("127.0.0.1", host.port).deliver(mail(content=content))
        assert host.got[0][2] == content


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"", b".\r\n"),
        (b"a\nb\n", b"a\r\nb\r\n.\r\n"),
        (b".a\r\n..\r\n.\r\n", b"..a\r\n...\r\n..\r\n.\r\n"),
        (b".\n.", b"..\r\n..\r\n.\r\n"),
        # What came with bare line ends leaves with them ...
        (b"a\nb\rc\r\n", b"a\nb\rc\r\n.\r\n"),
        # ... unless another server could take them for the end of the message.
        (b"a\n.\r\nMAIL FROM:<x>\r\n", b"a\r\n..\r\nMAIL FROM:<x>\r\n.\r\n"),
        (b"a\r.\rb\n.\nc\r\n", b"a\r\n..\rb\r\n..\nc\r\n.\r\n"),
        (b"a\r\n\n.\r\n\r.\r\n", b"a\r\n\r\n..\r\n\r\n..\r\n.\r\n"),
    ],
)
def test_on_the_wire(content, sent):
    assert b"".join(on_the_wire(content)) == sent


def test_a_message_that_needs_no_dots_is_not_copied():
    content = b"From: a@b.c\r\n\r\nNo dot at the beginning of a line, but some. Elsewhere.\r\n"
    assert on_the_wire(content)[0] is content


# --- the conversation ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[("PIPELINING", "8BITMIME"), ("8BITMIME",)], ids=["pipelining", "step by step"])
def either(request):
    with Host(extensions=request.param) as host:
        yield host


class TestTheConversation:
    def test_recipients_that_are_refused_are_named_and_the_others_get_it(self, either):
        either.answers["RCPT TO:<no@y.z>"] = "550-5.1.1 Nobody\r\n550 5.1.1 by that name"
        either.answers["RCPT TO:<later@y.z>"] = "450 Later"
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            Relay("127.0.0.1", either.port).deliver(mail("yes@y.z", "no@y.z", "later@y.z"))
        assert caught.value.recipients == {
            "no@y.z": (550, b"5.1.1 Nobody\n5.1.1 by that name"),
            "later@y.z": (450, b"Later"),
        }
        assert either.got == [("a@b.c", ["yes@y.z"], RAW)]

    @pytest.mark.parametrize(("key", "reply"), [("DATA", "554 No"), (".", "554 No")])
    def test_what_is_said_about_the_message_is_not_about_recipients_that_were_refused_before(self, either, key, reply):
        either.answers["RCPT TO:<later@y.z>"] = "450 Later"
        either.answers[key] = [reply, None]
        relay = Relay("127.0.0.1", either.port)
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            relay.deliver(mail("a@y.z", "later@y.z", "b@y.z"))
        assert caught.value.recipients == {"a@y.z": (554, b"No"), "later@y.z": (450, b"Later"), "b@y.z": (554, b"No")}
        relay.deliver(mail())
        assert either.got == [("a@b.c", ["x@y.z"], RAW)] and len(either.talks) == 1

    def test_all_recipients_refused(self, either):
        either.answers["RCPT"] = "550 no"
        relay = Relay("127.0.0.1", either.port)
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            relay.deliver(mail("a@y.z", "b@y.z"))
        assert either.got == []
        del either.answers["RCPT"]
        relay.deliver(mail())
        assert either.got == [("a@b.c", ["x@y.z"], RAW)] and len(either.talks) == 1

    def test_a_server_that_asks_for_a_message_to_nobody_gets_an_empty_one(self, host):
        host.answers["RCPT"] = ["550 no", None]
        host.answers["DATA"] = ["354 Go ahead, send it to nobody", None]
        relay = Relay("127.0.0.1", host.port)
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            relay.deliver(mail())
        relay.deliver(mail("b@y.z"))
        assert host.got == [("a@b.c", ["b@y.z"], RAW)]
        assert host.talks[0][1:] == [
            *("MAIL FROM:<a@b.c>", "RCPT TO:<x@y.z>", "DATA", ".", "RSET"),
            *("MAIL FROM:<a@b.c>", "RCPT TO:<b@y.z>", "DATA", "."),
        ]

    def test_a_server_that_goes_on_after_it_refused_the_sender_sends_nothing_empty(self, host):
        host.answers["MAIL"] = ["451 Not you", None]
        host.answers["RCPT"] = "250 OK"
        host.answers["DATA"] = "354 Go ahead"
        relay = Relay("127.0.0.1", host.port)
        with pytest.raises(smtplib.SMTPSenderRefused):
            relay.deliver(mail())
        relay.deliver(mail())
        assert [got[2] for got in host.got] == [RAW]

    def test_sender_data_and_message_can_be_refused_and_the_next_one_goes_through(self, either):
        relay = Relay("127.0.0.1", either.port)
        for key, error in (
            ("MAIL", smtplib.SMTPSenderRefused),
            ("DATA", smtplib.SMTPDataError),
            (".", smtplib.SMTPDataError),
        ):
            either.answers[key] = ["554 5.7.1 No", None]
            with pytest.raises(error, match="No"):
                relay.deliver(mail())
        relay.deliver(mail("last@y.z"))
        assert [got[1] for got in either.got] == [["last@y.z"]]

    def test_what_a_server_says_at_once_is_waited_for_awake_and_what_takes_time_is_not(self, host, monkeypatch):
        looks = []

        def look(sock, really=client._look):
            looks.append(really(sock))
            return looks[-1]

        monkeypatch.setattr(client, "_look", look)
        monkeypatch.setattr(client, "QUICK", 5)
        relay = Relay("127.0.0.1", host.port)
        relay.deliver(mail())
        looks.clear()
        relay.deliver(mail())
        assert looks[0].startswith(b"250") and looks[-1].startswith(b"250")  # to MAIL, and to the message
        monkeypatch.setattr(client, "QUICK", 0)
        relay.deliver(mail())  # the last time that it is looked at
        looks.clear()
        relay.deliver(mail())
        assert looks == [] and len(host.got) == 4 and len(host.talks) == 1

    def test_a_server_that_hangs_up_while_it_is_looked_at_has_no_message(self, host, monkeypatch):
        monkeypatch.setattr(client, "QUICK", 5)
        relay = Relay("127.0.0.1", host.port)
        relay.deliver(mail())
        host.answers["DATA"] = [DROP, None]
        relay.deliver(mail())
        assert len(host.got) == 2 and len(host.talks) == 2

    def test_a_server_that_hardly_knows_smtp(self, host):
        host.answers["EHLO"] = "500 What?"
        host.answers["RCPT"] = "251 User not local; will forward"
        host.answers["DATA"] = "354"
        Relay("127.0.0.1", host.port).deliver(mail())
        assert [line.split()[0] for line in host.talks[0]] == ["EHLO", "HELO", "MAIL", "RCPT", "DATA", "."]

    @pytest.mark.parametrize("reply", ["hello?", "2x0 OK", "250-a\r\nb"])
    def test_a_server_that_speaks_no_smtp_is_hung_up_on(self, host, reply):
        host.answers["MAIL"] = reply
        with pytest.raises(client.NotSent, match="speaks no SMTP"):
            Relay("127.0.0.1", host.port).deliver(mail())

    def test_a_server_that_talks_without_end_is_hung_up_on(self, host):
        host.answers[""] = "220-" + "x" * 100 + "\r\n" + "220-more\r\n" * 100_000 + "220 done"
        with pytest.raises(smtplib.SMTPServerDisconnected, match="speaks no SMTP"):
            Relay("127.0.0.1", host.port).deliver(mail())

    @pytest.mark.parametrize("key", ["", "EHLO", "MAIL", "RCPT", "DATA", "."])
    @pytest.mark.parametrize("told", [DROP, SILENCE, "421 Closing"])
    def test_a_server_that_goes_away_or_falls_silent_is_an_error_and_no_hang(self, either, key, told, monkeypatch):
        monkeypatch.setattr(client, "COMMAND_TIME", 0.05)
        monkeypatch.setattr(client, "END_TIME", 0.05)
        either.answers[key] = told
        with pytest.raises((smtplib.SMTPException, OSError)) as caught:
            Relay("127.0.0.1", either.port).deliver(mail())
        sent = key == "." and told != "421 Closing"
        assert isinstance(caught.value, client.NotSent) == (key in ("MAIL", "RCPT", "DATA")) and either.got == []
        assert sent == isinstance(caught.value, smtplib.SMTPServerDisconnected | TimeoutError) or key != "."

    def test_a_reply_that_drips_is_not_waited_for_longer_than_one_that_does_not_come(self, monkeypatch):
        monkeypatch.setattr(client, "COMMAND_TIME", 0.2)
        ended = threading.Event()

        def drip():
            peer, _ = listening.accept()
            with peer:
                while not ended.wait(0.02):
                    peer.sendall(b"220-still here\r\n")

        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=drip)
            thread.start()
            with pytest.raises(TimeoutError):
                Relay("127.0.0.1", listening.getsockname()[1]).deliver(mail())
            ended.set()
            thread.join()

    def test_a_connection_that_is_not_made_is_not_waited_for_for_ever(self, monkeypatch):
        monkeypatch.setattr(client, "CONNECT_TIME", 0.2)
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            # Nobody accepts, and so the system answers no more once its own list is full.
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(listening.getsockname())
            with pytest.raises(TimeoutError):
                Relay("127.0.0.1", listening.getsockname()[1]).deliver(mail())

    def test_a_message_that_is_not_read_is_not_sent_for_ever(self, host, monkeypatch):
        monkeypatch.setattr(client, "BLOCK_TIME", 0.2)
        host.answers["DATA"] = "354 Go ahead" + DEAF
        with pytest.raises(client.NotSent, match="did not read"):
            Relay("127.0.0.1", host.port).deliver(mail(content=RAW + b"0123456789\r\n" * 2_000_000))

    @pytest.mark.parametrize(
        ("last_words", "error", "match"),
        [
            (b"552 5.3.4 Too big", smtplib.SMTPDataError, "Too big"),
            (b"421 4.3.2 Closing", client.NotSent, "broke"),
            (b"", client.NotSent, "broke"),
        ],
    )
    def test_a_server_that_hangs_up_in_the_middle_of_a_message_does_not_have_it(self, last_words, error, match):
        def serve():
            peer, _ = listening.accept()
            with peer, peer.makefile("rb") as lines:
                peer.sendall(b"220 host.test ESMTP\r\n")
                for reply in (b"250 host.test", b"250 OK", b"250 OK", b"354 Go ahead", last_words):
                    lines.readline()
                    peer.sendall(reply + b"\r\n" if reply else b"")

        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=serve)
            thread.start()
            relay = Relay("127.0.0.1", listening.getsockname()[1])
            with pytest.raises(error, match=match):
                relay.deliver(mail(content=RAW + b"0123456789\r\n" * 2_000_000))
            thread.join()

    def test_a_server_that_is_not_there_is_an_error(self):
        with pytest.raises(ConnectionRefusedError):
            Relay("127.0.0.1", free_port()).deliver(mail())

    def test_more_recipients_than_every_server_takes_go_in_several_transactions(self, host):
        recipients = [f"{number}@y.z" for number in range(250)]
        Relay("127.0.0.1", host.port).deliver(mail(*recipients))
        assert [len(got[1]) for got in host.got] == [100, 100, 50]
        assert [recipient for got in host.got for recipient in got[1]] == recipients

    def test_login(self, host, capsys):
        host.extensions += ("AUTH PLAIN",)
        host.answers["AUTH"] = ["235 Welcome", "535 No"]
        Relay("127.0.0.1", host.port, username="me", password="secret").deliver(mail())
        assert host.talks[0][1] == "AUTH PLAIN AG1lAHNlY3JldA=="
        with pytest.raises(smtplib.SMTPAuthenticationError):
            Relay("127.0.0.1", host.port, username="me", password="wrong").deliver(mail())


# --- connections that stay open ------------------------------------------------------------------------------------


class TestConnections:
    def test_one_connection_serves_many_messages(self, host):
        relay = Relay("127.0.0.1", host.port)
        for number in range(10):
            relay.deliver(mail(f"{number}@y.z"))
        assert len(host.got) == 10 and len(host.talks) == 1
        relay.close()
        eventually(lambda: host.talks[0][-1] == "QUIT", "the farewell")

    def test_a_message_takes_two_calls_to_send_and_none_to_set_something(self, host):
        class Counting:
            def __init__(self, sock):
                self.sock = sock
                self.calls = []

            def __getattr__(self, name):
                self.calls.append(name)
                return getattr(self.sock, name)

        relay = Relay("127.0.0.1", host.port)
        relay.deliver(mail())
        kept = relay._connections.take("127.0.0.1", "127.0.0.1")
        kept.sock = counted = Counting(kept.sock)
        relay._connections.keep(kept)
        relay.deliver(mail("b@y.z", "c@y.z"))
        assert len(host.got) == 2 and len(host.talks) == 1
        assert counted.calls.count("sendall") == 2 and set(counted.calls) == {"sendall", "recv"}

    def test_a_dead_one_is_replaced_without_a_word(self, either):
        relay = Relay("127.0.0.1", either.port)
        relay.deliver(mail())
        either.hang_up()
        relay.deliver(mail("b@y.z"))
        assert [got[1] for got in either.got] == [["x@y.z"], ["b@y.z"]] and len(either.talks) == 2

    @pytest.mark.parametrize("reply", ["421 Idle for too long", "452 Too many messages in this session", DROP])
    def test_one_that_the_server_is_tired_of_is_replaced(self, either, reply):
        either.answers["MAIL"] = [None, reply, None]
        relay = Relay("127.0.0.1", either.port)
        relay.deliver(mail())
        relay.deliver(mail("b@y.z"))
        assert [got[1] for got in either.got] == [["x@y.z"], ["b@y.z"]] and len(either.talks) == 2

    def test_a_message_in_doubt_is_not_sent_again(self, host):
        host.answers["."] = [None, DROP]
        relay = Relay("127.0.0.1", host.port)
        relay.deliver(mail())
        with pytest.raises(smtplib.SMTPServerDisconnected) as caught:
            relay.deliver(mail())
        assert not isinstance(caught.value, client.NotSent)
        assert [line for talk in host.talks for line in talk].count(".") == 2

    def test_a_kept_one_is_closed_after_some_seconds(self, host, monkeypatch):
        monkeypatch.setattr(client, "IDLE_TIME", 0.02)
        Relay("127.0.0.1", host.port).deliver(mail())
        eventually(lambda: host.talks[0][-1] == "QUIT", "the farewell")

    def test_none_is_kept_when_there_is_no_thread_that_would_close_it(self, host, monkeypatch):
        def no_thread(self):
            raise RuntimeError("can't start new thread")

        relay = Relay("127.0.0.1", host.port)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Timer, "start", no_thread)
            relay.deliver(mail())
            assert host.talks[0][-1] == "QUIT"
        relay.deliver(mail())
        relay.deliver(mail())
        assert len(host.got) == 3 and len(host.talks) == 2

    def test_a_process_that_ends_says_farewell(self, host):
        program = (
            "from lamson.relay import Relay; "
            f"Relay('127.0.0.1', {host.port}).send(To='x@y.z', From='a@b.c', Subject='s', Body='b')"
        )
        subprocess.run([sys.executable, "-c", program], check=True)
        assert len(host.got) == 1
        eventually(lambda: host.talks[0][-1] == "QUIT", "the farewell")

    def test_threads_do_not_share_a_connection_at_the_same_time(self, host):
        relay = Relay("127.0.0.1", host.port)
        together = threading.Barrier(5)

        def work(thread):
            together.wait()
            for number in range(20):
                relay.deliver(mail(f"{thread}-{number}@y.z"))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({got[1][0] for got in host.got}) == len(host.got) == 100
        assert len(host.talks) <= 5

    def test_a_relay_that_prints_its_conversations_has_whole_ones(self, host, capsys):
        relay = Relay("127.0.0.1", host.port, debug=1)
        relay.deliver(mail())
        relay.deliver(mail())
        assert [talk[-1] for talk in host.talks] == ["QUIT", "QUIT"]
        said = capsys.readouterr().err
        assert "reply: b'250 OK\\r\\n'" in said and "rcpt TO:<x@y.z>" in said

    def test_connections_of_a_parent_process_are_not_used(self, host, monkeypatch):
        relay = Relay("127.0.0.1", host.port)
        relay.deliver(mail())
        process = client.os.getpid()
        monkeypatch.setattr(client.os, "getpid", lambda: process + 1)
        relay.deliver(mail())
        assert len(host.talks) == 2 and host.talks[0][-1] == "."


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(tls):
    with Host(tls=tls) as host:
        yield host


@pytest.fixture
def trusting(certificate):
    return ssl.create_default_context(cafile=certificate / "cert.pem")


class TestTLS:
    def test_starttls_with_a_certificate_that_is_trusted(self, secure, trusting):
        Relay("localhost", secure.port, starttls=trusting).deliver(mail())
        assert secure.encrypted == [True]
        assert [line.split()[0] for line in secure.talks[0]][:4] == ["EHLO", "STARTTLS", "EHLO", "MAIL"]

    def test_starttls_with_one_that_is_not_sends_nothing(self, secure):
        with pytest.raises(ssl.SSLCertVerificationError):
            Relay("localhost", secure.port, starttls=True).deliver(mail())
        assert secure.got == []

    def test_a_certificate_for_another_name_is_none(self, secure, trusting):
        # 127.0.0.2 is the same server, and not in its certificate.
        with Host(tls=secure.tls).listen(address="127.0.0.2") as other:
            with pytest.raises(ssl.SSLCertVerificationError):
                Relay("127.0.0.2", other.port, starttls=trusting).deliver(mail())
            assert other.got == []

    def test_starttls_that_is_not_offered_sends_nothing(self, host, trusting):
        with pytest.raises(smtplib.SMTPNotSupportedError, match="STARTTLS"):
            Relay("127.0.0.1", host.port, starttls=trusting).deliver(mail())
        assert host.got == []

    def test_tls_from_the_first_byte(self, secure, trusting):
        secure.implicit = True
        relay = Relay("127.0.0.1", secure.port, ssl=trusting)
        relay.deliver(mail())
        relay.deliver(mail())
        assert secure.encrypted == [True, True] and len(secure.talks) == 1
        with pytest.raises(ssl.SSLCertVerificationError):
            Relay("127.0.0.1", secure.port, ssl=True).deliver(mail())

    def test_opportunistic_takes_any_certificate_and_goes_without(self, secure, host):
        Relay("127.0.0.1", secure.port, starttls="opportunistic").deliver(mail())
        Relay("127.0.0.1", host.port, starttls="opportunistic").deliver(mail())
        assert secure.encrypted == [True] and host.encrypted == [False]

    @pytest.mark.parametrize("answer", ["454 TLS not available", "220 Go ahead\r\n250 injected", DROP])
    def test_opportunistic_goes_on_in_the_clear_when_tls_fails(self, secure, answer):
        secure.answers["STARTTLS"] = answer
        Relay("127.0.0.1", secure.port, starttls="opportunistic").deliver(mail())
        assert secure.encrypted == [False] and len(secure.talks) == 2

    @pytest.mark.parametrize("implicit", [True, False])
    def test_a_handshake_that_is_not_answered_is_not_waited_for_for_ever(self, secure, implicit, trusting, monkeypatch):
        monkeypatch.setattr(client, "COMMAND_TIME", 0.2)
        with Host(tls=secure.tls) as host:
            host.answers["" if implicit else "STARTTLS"] = SILENCE if implicit else "220 Go ahead" + DEAF
            options = {"ssl": trusting} if implicit else {"starttls": trusting}
            with pytest.raises(TimeoutError):
                Relay("localhost", host.port, **options).deliver(mail())
            assert host.got == []

    def test_what_is_said_in_the_clear_behind_starttls_ends_it(self, secure, trusting):
        secure.answers["STARTTLS"] = "220 Go ahead\r\n250-host.test\r\n250 AUTH PLAIN"
        with pytest.raises(smtplib.SMTPServerDisconnected, match="in the clear"):
            Relay("127.0.0.1", secure.port, starttls=trusting, username="me", password="x").deliver(mail())
        assert not any("AUTH" in line for line in secure.talks[0])

    @pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
    def test_one_lamson_logs_in_at_another_and_sends_under_tls(self, certificate, trusting, implicit):
        files = {"certificate": str(certificate / "cert.pem"), "key": str(certificate / "key.pem")}
        asked, got = [], []

        def auth(user, password):
            asked.append((user, password))
            return password == "secret"

        @route(".+")
        @stateless
        def START(message):
            got.append(message.envelope)

        receiver = SMTPReceiver("localhost", 0, **files, implicit_tls=implicit, auth=auth, require_auth=True)
        receiver.start()
        try:
            how = {"ssl" if implicit else "starttls": trusting}
            relay = Relay("localhost", receiver.port, username="me", password="secret", **how)
            relay.deliver(mail("x@y.z", "a@b.c"))
            relay.deliver(mail("x@y.z"))
            assert len(got) == 3 and got[-1] == ("a@b.c", ["x@y.z"]) and asked == [("me", "secret")]
            with pytest.raises(smtplib.SMTPAuthenticationError):
                Relay("localhost", receiver.port, username="me", password="wrong", **how).deliver(mail())
            relay.close()
        finally:
            receiver.close()

    def test_a_word_that_is_no_setting_is_an_error(self):
        with pytest.raises(ValueError, match="'sometimes'"):
            Relay(starttls="sometimes")
        with pytest.raises(ValueError, match="'opportunistic'"):
            Relay(ssl="opportunistic")


# --- to the domains' own hosts -------------------------------------------------------------------------------------


@pytest.fixture
def direct(names, host):
    """A relay without a smart host, for servers on the port of `host`."""
    relay = Relay(None, host.port)
    relay.hosts = MailHosts(names.resolver())
    return relay


class TestWithoutASmartHost:
    def test_the_name_of_a_relay_and_the_host_of_an_address(self, names):
        relay = Relay(None)
        relay.hosts = MailHosts(names.resolver())
        names.zone["example.test", "MX"] = ["20 b.test.", "10 a.test."]
        assert relay.resolve_relay_host("Joe <joe@example.test>") == "a.test"
        assert relay.resolve_relay_host("user@localhost") == "localhost"
        assert Relay("mail.test.com").resolve_relay_host("joe@example.test") == "mail.test.com"
        assert repr(Relay("mail.test.com", 26)) == "<Relay to (mail.test.com:26)>"

    def test_recipients_of_one_domain_go_in_one_transaction(self, direct, names, host):
        names.zone["one.test", "MX"] = names.zone["two.test", "MX"] = ["10 mx.test."]
        names.zone["mx.test", "A"] = ["127.0.0.1"]
        direct.deliver(mail("a@one.test", "b@two.test", "c@One.Test"))
        assert [got[1] for got in host.got] == [["a@one.test", "c@One.Test"], ["b@two.test"]]
        assert len(host.talks) == 1, "both domains have the same host"

    def test_the_next_host_is_tried_when_the_first_cannot_be_reached(self, direct, names, host):
        names.zone["example.test", "MX"] = ["10 gone.test.", "15 nameless.test.", "20 mx.test."]
        names.zone["gone.test", "A"] = ["127.0.0.9", "127.0.0.8"]
        names.zone["mx.test", "A"] = ["127.0.0.1"]
        direct.deliver(mail("a@example.test"))
        assert host.got == [("a@b.c", ["a@example.test"], RAW)]

    @pytest.mark.parametrize(
        ("key", "reply"),
        [("", "421 Busy"), ("", "554 Go away"), ("EHLO", DROP), ("MAIL", "421 Closing"), ("DATA", DROP)],
    )
    def test_the_next_host_is_tried_when_the_first_goes_away(self, direct, names, host, key, reply):
        names.zone["example.test", "MX"] = ["10 first.test.", "20 mx.test."]
        names.zone["first.test", "A"] = ["127.0.0.2"]
        names.zone["mx.test", "A"] = ["127.0.0.1"]
        with Host().listen(host.port, "127.0.0.2") as first:
            first.answers[key] = reply
            direct.deliver(mail("a@example.test"))
        assert (first.got, host.got) == ([], [("a@b.c", ["a@example.test"], RAW)])

    @pytest.mark.parametrize(("key", "reply"), [("RCPT", "450 Later"), ("RCPT", "550 Never"), (".", DROP)])
    def test_the_next_host_is_not_tried_after_an_answer_or_in_doubt(self, direct, names, host, key, reply):
        names.zone["example.test", "MX"] = ["10 first.test.", "20 mx.test."]
        names.zone["first.test", "A"] = ["127.0.0.2"]
        names.zone["mx.test", "A"] = ["127.0.0.1"]
        with Host().listen(host.port, "127.0.0.2") as first:
            first.answers[key] = reply
            with pytest.raises(smtplib.SMTPException):
                direct.deliver(mail("a@example.test"))
        assert first.got == host.got == []

    def test_five_addresses_are_tried_at_most(self, direct, names, host):
        names.zone["example.test", "MX"] = ["10 gone.test.", "20 mx.test."]
        names.zone["mx.test", "A"] = ["127.0.0.1"]
        gone = names.zone["gone.test", "A"] = [f"127.0.0.{number}" for number in range(11, 15)]
        direct.deliver(mail("a@example.test"))
        assert len(host.got) == 1
        gone.append("127.0.0.15")
        direct.hosts = MailHosts(names.resolver())
        with pytest.raises(ConnectionRefusedError):
            direct.deliver(mail("a@example.test"))
        assert len(host.got) == 1

    @pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
    def test_a_domain_without_mx_gets_its_mail_at_its_own_address_which_may_be_ipv6(self, direct, names, host):
        names.zone["six.test", "AAAA"] = ["::1"]
        names.zone["both.test", "A"] = ["127.0.0.9"]
        names.zone["both.test", "AAAA"] = ["::1"]
        with Host().listen(host.port, "::1") as six:
            direct.deliver(mail("a@six.test"))
            direct.deliver(mail("a@both.test"))
            assert [got[1] for got in six.got] == [["a@six.test"], ["a@both.test"]]

    def test_an_address_literal(self, direct, host):
        direct.deliver(mail("a@[127.0.0.1]"))
        assert host.got[0][1] == ["a@[127.0.0.1]"]

    def test_each_domain_has_its_own_outcome(self, direct, names, host):
        names.zone["good.test", "A"] = ["127.0.0.1"]
        names.zone["null.test", "MX"] = ["0 ."]
        names.zone["broken.test", "MX"] = BROKEN
        host.answers["RCPT TO:<no@good.test>"] = "550 no"
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            direct.deliver(mail("a@null.test", "yes@good.test", "a@broken.test", "no@good.test", "a@missing.test"))
        codes = {recipient: code for recipient, (code, _) in caught.value.recipients.items()}
        assert codes == {"a@null.test": 550, "a@broken.test": 451, "no@good.test": 550, "a@missing.test": 550}
        assert host.got == [("a@b.c", ["yes@good.test"], RAW)]

    def test_one_domain_that_takes_no_mail_raises_what_it_is(self, direct):
        with pytest.raises(NoMailHost, match="there is no domain missing.test"):
            direct.deliver(mail("a@missing.test"))


# --- with a queue --------------------------------------------------------------------------------------------------


@pytest.fixture
def durable(host, tmp_path):
    return Relay("127.0.0.1", host.port, queue=tmp_path / "outgoing")


class TestWithAQueue:
    @pytest.mark.parametrize(
        ("key", "told"),
        [
            ("", "421 Busy"),
            ("EHLO", DROP),
            ("MAIL", "451 Later"),
            ("MAIL", SILENCE),
            ("RCPT", "450 Later"),
            ("DATA", "452 Full"),
            (".", "451 Later"),
            (".", DROP),
            (".", SILENCE),
        ],
    )
    def test_what_cannot_be_delivered_now_is_on_disk(self, durable, host, tmp_path, monkeypatch, key, told):
        monkeypatch.setattr(client, "COMMAND_TIME", 0.05)
        monkeypatch.setattr(client, "END_TIME", 0.05)
        host.answers[key] = told
        durable.deliver(mail("a@y.z", "b@y.z", sender=""))
        ((sender, recipients, content, reason),) = entries(tmp_path / "outgoing")
        assert (sender, recipients, content) == ("", ["a@y.z", "b@y.z"], RAW)
        assert reason.startswith("127.0.0.1 said: 4" if told[0] == "4" and key not in ("", "") else "") and reason
        assert host.got == []

    def test_a_server_that_is_not_there(self, tmp_path):
        Relay("127.0.0.1", free_port(), queue=tmp_path / "outgoing").deliver(mail())
        ((_, recipients, _, reason),) = entries(tmp_path / "outgoing")
        assert (recipients, reason) == (["x@y.z"], "cannot send to 127.0.0.1: Connection refused")

    def test_each_recipient_is_in_one_place(self, durable, host, tmp_path, undeliverable):
        host.answers["RCPT TO:<no@y.z>"] = "550 5.1.1 Nobody"
        host.answers["RCPT TO:<later@y.z>"] = "450 4.2.1 Later"
        durable.deliver(mail("yes@y.z", "no@y.z", "later@y.z"))
        assert [got[1] for got in host.got] == [["yes@y.z"]]
        assert entries(tmp_path / "outgoing") == [("a@b.c", ["later@y.z"], RAW, "127.0.0.1 said: 450 4.2.1 Later")]
        assert entries(undeliverable.dir) == [("a@b.c", ["no@y.z"], RAW, "127.0.0.1 said: 550 5.1.1 Nobody")]

    @pytest.mark.parametrize("key", ["", "MAIL", "RCPT", "DATA", "."])
    def test_what_is_refused_for_good_is_undeliverable_at_once(self, durable, host, tmp_path, undeliverable, key):
        host.answers[key] = "554 5.7.1 Never"
        durable.deliver(mail())
        assert entries(tmp_path / "outgoing") == []
        ((sender, recipients, content, reason),) = entries(undeliverable.dir)
        assert (sender, recipients, content) == ("a@b.c", ["x@y.z"], RAW)
        assert reason == "127.0.0.1 said: 554 5.7.1 Never"

    def test_without_a_queue_for_what_is_undeliverable_the_caller_keeps_it(self, durable, host, tmp_path):
        host.answers["RCPT TO:<no@y.z>"] = "550 no"
        host.answers["RCPT TO:<later@y.z>"] = "450 later"
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            durable.deliver(mail("no@y.z", "later@y.z"))
        assert caught.value.recipients == {"no@y.z": (550, b"no")}
        assert [each[1] for each in entries(tmp_path / "outgoing")] == [["later@y.z"]]

    def test_a_disk_that_does_not_take_it_is_an_error(self, durable, host, tmp_path):
        host.answers["RCPT"] = "450 later"
        (tmp_path / "outgoing/tmp").rmdir()
        with pytest.raises(FileNotFoundError):
            durable.deliver(mail())

    @pytest.mark.parametrize("setting", ["tls", "login"])
    def test_what_is_wrong_with_the_relays_own_settings_is_no_reason_to_give_up(
        self, host, tmp_path, undeliverable, setting
    ):
        host.extensions += ("AUTH PLAIN",)
        host.answers["AUTH"] = "535 Wrong password"
        options = {"starttls": True} if setting == "tls" else {"username": "me", "password": "old"}
        Relay("127.0.0.1", host.port, queue=tmp_path / "outgoing", **options).deliver(mail())
        assert len(entries(tmp_path / "outgoing")) == 1 and entries(undeliverable.dir) == []

    def test_each_domain_has_an_entry_of_its_own(self, direct, names, host, tmp_path, undeliverable):
        relay = Relay(None, host.port, queue=tmp_path / "outgoing")
        relay.hosts = direct.hosts
        names.zone["good.test", "A"] = ["127.0.0.1"]
        names.zone["null.test", "MX"] = ["0 ."]
        names.zone["broken.test", "MX"] = names.zone["worse.test", "MX"] = BROKEN
        relay.deliver(mail("a@broken.test", "a@null.test", "a@good.test", "b@broken.test", "a@worse.test", "a@no.test"))
        assert [got[1] for got in host.got] == [["a@good.test"]]
        assert [each[1] for each in entries(tmp_path / "outgoing")] == [
            ["a@broken.test", "b@broken.test"],
            ["a@worse.test"],
        ]
        assert {(*each[1], each[3]) for each in entries(undeliverable.dir)} == {
            ("a@null.test", "null.test takes no mail"),
            ("a@no.test", "there is no domain no.test"),
        }

    def test_one_who_is_wanted_later_waits_though_the_message_is_refused(self, durable, host, tmp_path, undeliverable):
        host.answers["RCPT TO:<later@y.z>"] = "450 Later"
        host.answers["."] = "554 No"
        durable.deliver(mail("a@y.z", "later@y.z"))
        assert [each[1] for each in entries(tmp_path / "outgoing")] == [["later@y.z"]]
        assert [each[1] for each in entries(undeliverable.dir)] == [["a@y.z"]]

    @pytest.mark.parametrize(("limit", "files"), [(3 * len(RAW), 3), (3 * len(RAW) - 1, 1)])
    def test_a_message_to_many_domains_does_not_fill_the_disk(self, tmp_path, monkeypatch, limit, files):
        monkeypatch.setattr(relay_module, "COPIES", limit)
        monkeypatch.setattr(RetryQueue, "running", True)  # and yet no thread takes what is handed over
        relay = Relay(None, queue=tmp_path / "outgoing")
        relay.deliver(mail("a@one.test", "b@two.test", "c@three.test", "d@one.test"))
        found = entries(tmp_path / "outgoing")
        assert len(found) == files and {(sender, content) for sender, _, content, _ in found} == {("a@b.c", RAW)}
        recipients = sorted(recipient for each in found for recipient in each[1])
        assert recipients == ["a@one.test", "b@two.test", "c@three.test", "d@one.test"]

    def test_one_host_that_refuses_for_good_and_one_that_is_gone_may_be_better_later(
        self, direct, names, host, tmp_path, undeliverable
    ):
        relay = Relay(None, host.port, queue=tmp_path / "outgoing")
        relay.hosts = direct.hosts
        names.zone["example.test", "MX"] = ["10 gone.test.", "20 mx.test."]
        names.zone["gone.test", "A"] = ["127.0.0.9"]
        names.zone["mx.test", "A"] = ["127.0.0.1"]
        host.answers[""] = "554 Go away"
        relay.deliver(mail("a@example.test"))
        assert len(entries(tmp_path / "outgoing")) == 1 and entries(undeliverable.dir) == []

    def test_a_host_that_timed_out_is_left_alone_for_a_while(self, durable, host, tmp_path, monkeypatch):
        monkeypatch.setattr(client, "COMMAND_TIME", 0.05)
        now = 1000.0
        durable.clock = lambda: now
        host.answers["MAIL"] = [SILENCE, None]
        durable.deliver(mail("a@y.z"))
        durable.deliver(mail("b@y.z"))
        assert len(host.talks) == 1 and len(entries(tmp_path / "outgoing")) == 2
        now += 61
        durable.deliver(mail("c@y.z"))
        assert [got[1] for got in host.got] == [["c@y.z"]]

    def test_the_queue_is_tried_again_between_start_and_close(self, host, tmp_path, monkeypatch):
        host.answers["RCPT"] = ["450 later", None]
        relay = Relay("127.0.0.1", host.port, queue=tmp_path / "outgoing")
        relay.deliver(mail())
        assert host.got == []
        relay.outgoing.clock = lambda: 2**31
        arrived = threading.Event()
        host.when_got = lambda content: arrived.set()
        relay.start()
        assert arrived.wait(30)
        relay.close()
        assert host.got == [("a@b.c", ["x@y.z"], RAW)]
        assert entries(tmp_path / "outgoing") == []
        assert host.talks[0][-1] == "QUIT"


@pytest.mark.parametrize(
    "address",
    ['"victim@evil.example\r,x"@test.com', '"a, b@c.d"@test.com', "(a)b@c.d", '"<b@c.d>"@test.com', "a b@c.d"],
)
def test_an_address_of_the_envelope_is_never_taken_apart(address):
    message = MailRequest("peer", address, [address], RAW)
    assert relay_module._recipients(message, None) == [address]
    assert relay_module._sender(message, None) == address
    assert message.route_to == {address.lower()} and message.route_from == address.lower()


def test_a_reply_goes_to_one_sender_however_many_the_header_names():
    sent = []

    class Catcher(Relay):
        def _send(self, host, sender, recipients, content):
            sent.append(recipients)

    Catcher().reply(MailRequest("", "a@b.c", "d@e.f", b"From: x@y.z, q@r.s\r\n\r\n"), "me@b.c", "Re", "Body")
    assert sent == [["x@y.z"]]
