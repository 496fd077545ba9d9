"""The relay over real sockets: what the other server gets."""

import smtplib
import socket
from email.message import EmailMessage

import pytest

from lamson.mail import MailRequest, MailResponse
from lamson.relay import Relay, on_the_wire
from lamson.routing import Router, route, stateless
from sink import Sink

RAW = b"From: a@example.com\r\nTo: list@test.com\r\nSubject: hi\r\nMessage-ID: <1@example.com>\r\n\r\nHello\r\n"


class TestRelay:
    @pytest.fixture
    def sink(self):
        with Sink() as sink:
            yield sink

    def test_a_request_is_passed_on_byte_for_byte_with_its_envelope(self, sink):
        raw = RAW + b".dots\r\n..\r\n8-bit \xff\r\n"
        Relay("127.0.0.1", sink.port).deliver(MailRequest("peer", "bounce@b.c", ["x@y.z"], raw))
        sender, recipients, content, options = sink.got[0]
        assert (sender, recipients, content) == ("bounce@b.c", ["x@y.z"], raw)
        assert "BODY=8BITMIME" in options

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

    def test_a_response_goes_to_all_its_headers_and_hides_bcc(self, sink):
        message = MailResponse(To="A <a@b.c>, b@b.c", From="Me <me@b.c>", Subject="s", Body="b")
        message["Cc"] = "c@b.c"
        message["Bcc"] = "secret@b.c"
        Relay("127.0.0.1", sink.port).deliver(message)
        sender, recipients, content, _ = sink.got[0]
        assert (sender, recipients) == ("me@b.c", ["a@b.c", "b@b.c", "c@b.c", "secret@b.c"])
        assert b"secret" not in content and b"c@b.c" in content and b"\n" not in content.replace(b"\r\n", b"")
        assert message["Bcc"] == "secret@b.c"

    def test_send_and_reply(self, sink):
        relay = Relay("127.0.0.1", sink.port)
        relay.send("x@y.z", "me@b.c", "Subject", "Body")
        relay.reply(MailRequest("", "a@b.c", "d@e.f", RAW), "me@b.c", "Re", "Body")
        assert [got[1] for got in sink.got] == [["x@y.z"], ["a@example.com"]]

    def test_an_address_in_unicode_goes_out_with_smtputf8(self, sink):
        Relay("127.0.0.1", sink.port).deliver(MailRequest("", "я@b.c", "ю@y.z", RAW))
        assert sink.got[0][:2] == ("я@b.c", ["ю@y.z"]) and "SMTPUTF8" in sink.got[0][3]

    def test_a_server_that_is_not_there_is_an_error(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                Relay("127.0.0.1", free.getsockname()[1]).deliver(MailRequest("", "a@b.c", "d@e.f", RAW))

    def test_a_recipient_that_is_refused_is_an_error_even_when_others_are_not(self, sink):
        sink.refuse["no@y.z"] = "550 Not here"
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            Relay("127.0.0.1", sink.port).deliver(MailRequest("", "a@b.c", ["yes@y.z", "no@y.z"], RAW))
        assert set(caught.value.recipients) == {"no@y.z"}
        assert sink.got[0][1] == ["yes@y.z"]

    def test_a_message_for_nobody_is_an_error(self, sink):
        with pytest.raises(ValueError, match="no recipient"):
            Relay("127.0.0.1", sink.port).deliver(MailResponse(From="a@b.c", Subject="s", Body="b"))

    def test_its_name_and_the_host_of_a_local_domain(self):
        assert repr(Relay("mail.test.com", 26)) == "<Relay to (mail.test.com:26)>"
        assert Relay(None).resolve_relay_host("user@localhost") == "localhost"

    def test_an_email_message_goes_out_without_bcc_and_keeps_its_own(self, sink):
        message = EmailMessage()
        message["From"], message["To"], message["Bcc"] = "me@b.c", "a@b.c", "secret@b.c"
        message.set_content("Body")
        Relay("127.0.0.1", sink.port).deliver(message)
        assert sink.got[0][1] == ["a@b.c", "secret@b.c"] and b"secret" not in sink.got[0][2]
        assert message["Bcc"] == "secret@b.c"

    def test_a_server_without_smtputf8_gets_domains_in_ascii_and_no_local_parts_in_unicode(self):
        with Sink(utf8=False) as plain:
            relay = Relay("127.0.0.1", plain.port)
            relay.deliver(MailRequest("", "a@bücher.example", ["c@пример.example"], RAW))
            assert plain.got[0][:2] == ("a@xn--bcher-kva.example", ["c@xn--e1afmkfd.example"])
            with pytest.raises(smtplib.SMTPNotSupportedError, match="я@b.c"):
                relay.deliver(MailRequest("", "a@b.c", ["я@b.c"], RAW))

    def test_headers_in_utf8_are_declared_and_those_in_another_charset_are_not(self, sink):
        relay = Relay("127.0.0.1", sink.port)
        relay.deliver(MailRequest("", "a@b.c", "d@e.f", "Subject: я\r\n\r\n".encode()))
        relay.deliver(MailRequest("", "a@b.c", "d@e.f", b"Subject: caf\xe9\r\n\r\n"))
        relay.deliver(MailRequest("", "a@b.c", "d@e.f", "Subject: x\r\n\r\nя\r\n".encode()))
        assert ["SMTPUTF8" in options for _, _, _, options in sink.got] == [True, False, False]


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
    assert on_the_wire(content) == sent
