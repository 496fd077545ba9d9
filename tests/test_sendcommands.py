"""Tests for lamson.sendcommands, which talk to real servers: send and sendmail. For blast see test_mailboxes.py."""

import socket

import pytest

from commandline import refused, run
from lamson.mail import MailRequest
from sink import Sink


@pytest.fixture
def server():
    with Sink() as server:
        yield server


def send(port, *argv, code=0):
    return run("send", "-port", str(port), "-sender", "me@mydomain.com", "-to", "test@test.com", *argv, code=code)


def test_send_sends_a_mail_and_shows_the_conversation(folder, server):
    said = send(server.port, "-subject", "My test.", "-body", "Hi there.").stdout.splitlines()
    (mail,) = server.got
    assert mail[:2] == ("me@mydomain.com", ["test@test.com"])
    assert b"Subject: My test.\r\n" in mail.content
    assert mail.content.endswith(b"\r\n\r\nHi there.\r\n")
    assert f"connect: to ('127.0.0.1', {server.port})" in said
    assert "send: rcpt to:<test@test.com>" in map(str.lower, said)
    assert "reply: 250 OK" in said
    assert "send: Hi there." in said
    assert all(line.startswith(("connect: ", "send: ", "reply: ")) for line in said)


def test_send_with_debug_0_shows_nothing(folder, server):
    done = send(server.port, "-debug", "0")
    assert done.stdout == done.stderr == ""


def test_send_sends_to_several_and_with_a_body_that_begins_with_dashes(folder, server):
    run("send", "-port", str(server.port), "-sender", "Me <me@x.com>", "-to", "a@x.com, B <b@x.com>", "-body", "-- hé")
    (mail,) = server.got
    assert mail[:2] == ("me@x.com", ["a@x.com", "b@x.com"])
    assert MailRequest(None, None, None, mail.content).body() == "-- hé"


def test_send_attaches_a_file(folder, server):
    (folder / "some data.bin").write_bytes(bytes(range(256)))
    send(server.port, "-body", "Here.", "-attach", "some data.bin", "-debug", "0")
    message = MailRequest(None, None, None, server.got[0].content)
    part = next(part for part in message.to_message().walk() if part.get_filename())
    assert part.get_filename() == "some data.bin"
    assert part.get_payload(decode=True) == bytes(range(256))


def test_send_attaches_a_file_whose_name_does_not_say_what_it_is(folder, server):
    (folder / "README").write_bytes(b"Read this.\n")
    send(server.port, "-attach", "README")
    (part,) = MailRequest(None, None, None, server.got[0].content).attachments()
    assert part == ("README", "application/octet-stream", b"Read this.\n")


def test_send_wants_addresses_and_nobody_may_be_the_sender(folder, server):
    assert "-sender takes an address, not 'a b'" in refused("send", "-sender", "a b", "-to", "a@x.com", code=2)
    assert "-to takes an address, not ''" in refused("send", "-sender", "a@x.com", "-to", "", code=2)
    run("send", "-port", str(server.port), "-sender", "<>", "-to", "a@x.com")
    assert [mail.sender for mail in server.got] == ["<>"]


def test_send_refuses_to_attach_what_is_not_there(folder, server):
    done = send(server.port, "-attach", "missing.txt", code=1)
    assert done.stderr == "lamson: Cannot attach 'missing.txt', and no data was given: No such file or directory.\n"
    assert server.got == []


def test_send_is_refused_with_what_the_server_said(folder, server):
    server.refuse["test@test.com"] = "550 5.1.1 never heard of"
    assert send(server.port, code=1).stderr == "lamson: refused: test@test.com: 550 5.1.1 never heard of.\n"


def test_send_is_refused_when_nobody_listens(folder):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert f"cannot send to 127.0.0.1:{port}: Connection refused" in send(port, code=1).stderr


def test_send_logs_in_after_starttls_and_keeps_the_password_to_itself(folder, tls):
    with Sink(tls_context=tls, require_starttls=True, auth_required=True) as server:
        login = ["-username", "zed", "-password", "secret"]
        said = send(server.port, "-starttls", *login).stdout
        assert server.logins == [(b"zed", b"secret")]
        assert len(server.got) == 1
        assert "send: AUTH " in said and "(secret)" in said
        assert "AHplZABzZWNyZXQ" not in said
        refusal = send(server.port, "-starttls", "-username", "zed", "-password", "wrong", code=1).stderr
        assert refusal.startswith("lamson: refused: 535 ")


def test_send_speaks_tls_from_the_start(folder, tls):
    with Sink(ssl_context=tls) as server:
        send(server.port, "-ssl")
        assert len(server.got) == 1


def test_send_says_that_a_server_does_not_begin_with_tls(folder, server):
    assert "it does not begin with TLS. Leave out -ssl, or try -starttls" in send(server.port, "-ssl", code=1).stderr


def sendmail(port, *argv, content=b"From: Me <me@x.com>\n\nHi.\n", code=0):
    return run("sendmail", "-port", str(port), *argv, code=code, input=content, text=False)


def test_sendmail_sends_what_it_reads_as_it_is(folder, server):
    content = b"X-Odd:   spaces\n\ttoo\nFrom: Me <me@x.com>\nTo: a@x.com\n\n\xff\xfe 8 bits\n.\n..\nFrom here\n\nend \n"
    done = sendmail(server.port, "--", "a@x.com", "b@x.com", content=content)
    assert done.stdout == done.stderr == b""
    (mail,) = server.got
    assert mail[:2] == ("me@x.com", ["a@x.com", "b@x.com"])
    assert mail.content == content.replace(b"\n", b"\r\n")


def test_sendmail_makes_one_kind_of_line_end_of_all(folder, server):
    sendmail(server.port, "a@x.com", content=b"From: me@x.com\r\nTo: a@x.com\n\nbare\rand\r\nboth\n")
    assert server.got[0].content == b"From: me@x.com\r\nTo: a@x.com\r\n\r\nbare\r\nand\r\nboth\r\n"


def test_sendmail_takes_the_bcc_header_out(folder, server):
    sendmail(server.port, "a@x.com", content=b"From: me@x.com\nBcc: secret@x.com,\n other@x.com\nTo: a@x.com\n\nHi.\n")
    assert server.got[0].content == b"From: me@x.com\r\nTo: a@x.com\r\n\r\nHi.\r\n"


def test_sendmail_understands_what_mail_programs_say_to_sendmail(folder, server):
    words = "-oem -oi -i -B8BITMIME -N delay,failure -R hdrs -F MyName -fbounces@x.com -v -bm -odi -- a@x.com"
    sendmail(server.port, *words.split())
    assert [mail[:2] for mail in server.got] == [("bounces@x.com", ["a@x.com"])]


@pytest.mark.parametrize(
    "words", ["-f bounces@x.com a@x.com", "-r bounces@x.com a@x.com", "-f <bounces@x.com> -- a@x.com"]
)
def test_sendmail_takes_the_sender_that_is_given(folder, server, words):
    sendmail(server.port, *words.split())
    assert server.got[0].sender == "bounces@x.com"


def test_sendmail_takes_recipients_from_the_headers_when_told(folder, server):
    content = b"From: me@x.com\nTo: A <a@x.com>, b@x.com\nCc: c@x.com\nBcc: d@x.com\n\nHi.\n"
    sendmail(server.port, "-oi", "-ti", content=content)
    assert server.got[0].recipients == ["a@x.com", "b@x.com", "c@x.com", "d@x.com"]
    assert b"d@x.com" not in server.got[0].content


def test_sendmail_exits_as_sendmail_does(folder, server):
    assert b"no recipient" in sendmail(server.port, code=64).stderr
    server.refuse = {"gone@x.com": "550 no", "later@x.com": "450 busy"}
    assert b"gone@x.com: 550 no" in sendmail(server.port, "gone@x.com", code=69).stderr
    assert b"later@x.com: 450 busy" in sendmail(server.port, "later@x.com", code=75).stderr
    assert sendmail(1, "a@x.com", code=75).stderr.startswith(b"lamson: cannot send to 127.0.0.1:1: ")


def test_sendmail_still_refuses_options_of_nobody(folder):
    assert "there is no option -prot, did you mean -port?" in refused("sendmail", "-prot", "25", code=2)
