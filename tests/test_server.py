"""Receivers over real sockets and real Maildirs."""

import contextlib
import errno
import os
import smtplib
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from lamson import server, settling
from lamson.errors import SMTPError
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import MemoryStorage, Outcome, Router, route, route_like, stateless
from lamson.server import LMTPReceiver, QueueReceiver, SMTPReceiver
from processes import eventually

CERTS = Path(__file__).parent / "certs"
RAW = b"From: a@example.com\r\nTo: list@test.com\r\nSubject: hi\r\nMessage-ID: <1@example.com>\r\n\r\nHello\r\n"


@pytest.fixture
def receiver():
    receivers = []

    def start(**settings):
        receivers.append(SMTPReceiver("127.0.0.1", 0, **settings))
        receivers[-1].start()
        return receivers[-1]

    yield start
    for one in receivers:
        one.close()


@pytest.fixture
def taken():
    """What the handlers got, from a route that takes anything."""
    messages = []

    @route(".+")
    @stateless
    def START(message):
        messages.append(message)

    return messages


def client(receiver):
    return smtplib.SMTP("127.0.0.1", receiver.port, timeout=30)


def sending(receiver):
    """A client that has sent a message, and has not been told yet what became of it."""
    smtp = client(receiver)
    smtp.ehlo()
    smtp.mail("a@b.c")
    smtp.rcpt("d@e.f")
    smtp.docmd("DATA")
    smtp.send(RAW + b".\r\n")
    return smtp


class TestSMTPReceiver:
    def test_one_that_cannot_serve_leaves_nothing_behind(self, monkeypatch, tmp_path):
        receiver = SMTPReceiver("127.0.0.1", 0, retry_queue=str(tmp_path / "retries"))
        listen_at, served = receiver._listen_at, []

        async def refuse_the_second(sock, factory):
            if served:
                raise OSError("No.")
            served.append(sock)
            return await listen_at(sock, factory)

        monkeypatch.setattr(receiver, "_listen_at", refuse_the_second)
        receiver.bind()
        other = socket.create_server(("127.0.0.1", 0))
        receiver._sockets.append(other)
        threads = threading.enumerate()
        with pytest.raises(OSError, match="No."):
            receiver.start()
        assert other.fileno() == served[0].fileno() == -1 and receiver._loop is None
        eventually(lambda: threading.enumerate() == threads, lambda: f"the end of the threads: {threading.enumerate()}")
        monkeypatch.undo()
        receiver.start()
        receiver.close()

    def test_bytes_and_envelope_arrive_as_they_were_sent(self, receiver, taken):
        with client(receiver()) as smtp:
            smtp.sendmail("a@example.com", ["list@test.com"], RAW)
        message = taken[0]
        assert (message.original, message.From, message.To) == (RAW, "a@example.com", ["list@test.com"])
        assert message.Peer[0] == "127.0.0.1"

    def test_a_message_of_25_megabytes_and_a_line_of_100000_characters_arrive(self, receiver, taken):
        big = b"Subject: big\r\n\r\n" + b"x" * 100_000 + b"\r\n" + (b"0123456789" * 7 + b"\r\n.\r\n") * 330_000
        stuffed = big.replace(b"\r\n.\r\n", b"\r\n..\r\n")
        assert 25_000_000 - 400_000 < len(big) < 25 * 1024 * 1024
        with client(receiver()) as smtp:
            smtp.ehlo()
            smtp.mail("a@example.com")
            smtp.rcpt("list@test.com")
            smtp.docmd("DATA")
            smtp.send(stuffed + b".\r\n")
            assert smtp.getreply()[0] == 250
        assert taken[0].original == big

    def test_the_port_is_bound_by_bind_and_named_when_it_is_taken(self, receiver):
        port = receiver().port
        other = SMTPReceiver("127.0.0.1", port)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            other.bind()
        own = SMTPReceiver("127.0.0.1", 0)
        own.bind()
        socket.create_connection(("127.0.0.1", own.port)).close()
        own.close()

    def test_a_host_that_is_not_known_is_named(self):
        with pytest.raises(OSError, match="cannot listen on no-such-host.invalid:2525: "):
            SMTPReceiver("no-such-host.invalid", 2525).bind()

    def test_localhost_is_every_address_of_that_name(self, taken):
        one = SMTPReceiver("localhost", 0)
        one.start()
        try:
            for *_, address in socket.getaddrinfo("localhost", one.port, type=socket.SOCK_STREAM):
                socket.create_connection(address[:2], timeout=5).close()
        finally:
            one.close()

    def test_what_is_no_option_is_an_error_that_names_those_there_are(self):
        with pytest.raises(TypeError, match="no option 'prt'. It has host, port, .*, size_limit, "):
            SMTPReceiver(host="127.0.0.1", prt=0)
        with pytest.raises(TypeError, match="port is '8823'. It has to be a number"):
            SMTPReceiver("127.0.0.1", "8823")

    def test_a_wrong_unknown_recipients_is_an_error_that_names_it(self):
        with pytest.raises(ValueError, match="'drop'"):
            SMTPReceiver("127.0.0.1", 0, unknown_recipients="drop")

    def test_close_finishes_what_is_being_handled_and_says_421_to_who_waits(self, receiver):
        inside, go_on = threading.Event(), threading.Event()

        @route(".+")
        def START(message):
            inside.set()
            assert go_on.wait(30)

        one = receiver()
        idle, busy = client(one), client(one)
        idle.ehlo()
        replies = []
        thread = threading.Thread(target=lambda: replies.append(busy.sendmail("a@b.c", "d@e.f", RAW)))
        thread.start()
        assert inside.wait(30)
        closing = threading.Thread(target=one.close)
        closing.start()
        assert idle.getreply()[0] == 421
        assert closing.is_alive()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", one.port), timeout=5)
        go_on.set()
        closing.join(30)
        thread.join(30)
        assert replies == [{}] and not closing.is_alive()

    def test_a_client_that_hears_421_in_place_of_an_answer_has_its_message_handled_by_nobody(self, receiver, taken):
        one = receiver()
        with contextlib.closing(client(one)) as smtp:
            smtp.ehlo()
            smtp.mail("a@b.c")
            smtp.rcpt("d@e.f")
            assert smtp.docmd("DATA")[0] == 354

            def end():  # the message comes in, and the server stops before anybody has looked at it
                (connection,) = one.connections
                connection.data_received(RAW + b".\r\n")
                connection.shut_down()

            one._loop.call_soon_threadsafe(end)
            assert smtp.getreply()[0] == 421
            one.close()
        assert not taken

    def test_a_client_that_leaves_while_its_message_is_handled_takes_nothing_with_it(self, receiver):
        inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

        @route(".+")
        def START(message):
            inside.set()
            assert go_on.wait(30)
            done.set()

        one = receiver()
        smtp = sending(one)
        assert inside.wait(30)
        smtp.close()
        closing = threading.Thread(target=one.close)
        closing.start()
        go_on.set()
        closing.join(30)
        assert done.is_set() and not closing.is_alive()

    def test_a_failing_handler_is_a_250_with_an_undeliverable_queue_and_a_451_without(self, receiver, tmp_path, caplog):
        @route(".+")
        def START(message):
            raise ValueError("no luck")

        one = receiver()
        with client(one) as smtp, pytest.raises(smtplib.SMTPDataError) as caught:
            smtp.sendmail("a@b.c", "d@e.f", RAW)
        assert caught.value.smtp_code == 451 and b"no luck" not in caught.value.smtp_error
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        with client(one) as smtp:
            smtp.sendmail("a@b.c", "d@e.f", RAW)
        message = Router.UNDELIVERABLE_QUEUE.pop()[1]
        assert (message.original, message.From, message.To) == (RAW, "a@b.c", ["d@e.f"])
        assert "ValueError: no luck" in caplog.text and "test_server.py" in caplog.text

    @pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 452), (errno.EDQUOT, 452), (errno.EROFS, 451)])
    def test_a_queue_that_cannot_be_written_leaves_the_message_to_the_client(self, receiver, number, code):
        class Full:
            def push(self, message, reason):
                raise OSError(number, "No space left on device")

        Router.UNDELIVERABLE_QUEUE = Full()
        with client(receiver()) as smtp, pytest.raises(smtplib.SMTPDataError) as caught:
            smtp.sendmail("a@b.c", "d@e.f", RAW)
        assert caught.value.smtp_code == code

    def test_another_check_may_say_which_recipients_are_known(self, taken):
        class Choosy(SMTPReceiver):
            def knows_recipient(self, address):
                return address == "one@test.com"

        one = Choosy("127.0.0.1", 0, unknown_recipients="refuse")
        one.start()
        try:
            with client(one) as smtp:
                refused = smtp.sendmail("a@b.c", ["one@test.com", "two@test.com"], RAW)
        finally:
            one.close()
        assert refused["two@test.com"][0] == 550 and refused["two@test.com"][1].startswith(b"5.1.1 ")
        assert [message.To for message in taken] == [["one@test.com"]]

    def test_two_thousand_messages_from_twenty_clients_leave_every_sender_in_its_own_state(self, receiver):
        @route(".+")
        def START(message):
            return ONE

        @route(".+")
        def ONE(message):
            return TWO

        @route(".+")
        def TWO(message):
            return START

        one = receiver()
        errors = []

        def send(number):
            try:
                with client(one) as smtp:
                    for step in range(100):
                        smtp.sendmail(f"s{(number + step) % 10}@b.c", "d@e.f", RAW)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        # 2,000 messages from 10 senders: 200 steps each, and 200 = 3 * 66 + 2.
        assert {Router.get_state(__name__, MailRequest("", f"s{n}@b.c", "d@e.f", b"")) for n in range(10)} == {"TWO"}

    def test_process_message_returns_nothing_or_the_reply_line(self, taken):
        one = SMTPReceiver()
        assert one.process_message("peer", "a@b.c", "d@e.f", RAW) is None

        @route(".+")
        @stateless
        def REFUSE(message):
            raise SMTPError(550)

        reply = one.process_message("peer", "a@b.c", ["d@e.f"], RAW.decode())
        assert reply == "550 Permanent Failure Mail Delivery Protocol Status"

    def test_a_reply_takes_whatever_text_there_is(self):
        one = SMTPReceiver()

        @route(".+")
        def START(message):
            raise SMTPError(550, "{x} %s \x1b[2J я\nsecond\r\n")

        reply = one.process_message("peer", "a@b.c", ["d@e.f"], RAW)
        assert reply == "550-{x} %s \\x1b[2J \\u044f\r\n550 second"

    def test_a_code_that_refuses_nothing_refuses_for_now(self, caplog):
        @route(".+")
        def START(message):
            raise SMTPError(250, "Fine.")

        assert SMTPReceiver().process_message("peer", "a@b.c", ["d@e.f"], RAW).startswith("451 ")
        assert "250 refuses nothing" in caplog.text

    def test_one_slow_sender_does_not_keep_the_others_waiting_under_LOCKING_sender(self, receiver, monkeypatch):
        monkeypatch.setattr(server, "HANDLER_THREADS", 2)
        Router.LOCKING = "sender"
        go_on = threading.Event()

        @route(".+")
        @stateless
        def START(message):
            assert message.route_from != "slow@b.c" or go_on.wait(30)

        one = receiver()
        threads = [
            threading.Thread(target=lambda: client(one).sendmail("slow@b.c", "d@e.f", RAW), daemon=True)
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        with client(one) as smtp:
            smtp.sendmail("fast@b.c", "d@e.f", RAW)
        go_on.set()
        for thread in threads:
            thread.join(30)

    def test_a_handler_that_hangs_does_not_hold_close_for_ever(self, receiver, monkeypatch, caplog):
        monkeypatch.setattr(server, "SHUTDOWN_TIME", 0.2)
        inside, go_on = threading.Event(), threading.Event()

        @route(".+")
        def START(message):
            inside.set()
            go_on.wait(30)

        one = receiver()
        with contextlib.closing(sending(one)):
            assert inside.wait(30)
            one.close()
            assert "1 messages are still being handled" in caplog.text
            go_on.set()

    def test_a_changed_handler_counts_at_rcpt_too(self, app, receiver):
        (app / "one.py").write_text("from lamson.routing import *\n@route('old@test.com')\ndef START(m): pass\n")
        Router.load(["one"])
        Router.RELOAD = True
        one = receiver(unknown_recipients="refuse")
        assert not one.knows_recipient("new@test.com")
        (app / "one.py").write_text("from lamson.routing import *\n@route('new@test.com')\ndef ANOTHER(m): pass\n")
        assert one.knows_recipient("NEW@test.com")


class SlowDisk(MemoryStorage):
    """States that are on disk when `go_on` is set."""

    def __init__(self):
        super().__init__()
        self.waiting, self.go_on, self.syncs, self.error = threading.Event(), threading.Event(), 0, None

    def unsynced(self):
        return bool(self.states) and not self.syncs

    def sync(self):
        self.waiting.set()
        assert self.go_on.wait(30)
        if self.error:
            raise self.error
        self.syncs += 1


class TestStatesOnDisk:
    @pytest.fixture
    def disk(self):
        @route("(name)@test.com", name=".+")
        def START(message, name):
            return NEXT

        @route_like(START)
        def NEXT(message, name):
            pass

        Router.STATE_STORE = SlowDisk()
        return Router.STATE_STORE

    def test_a_client_hears_250_when_the_state_is_on_disk_and_not_before(self, receiver, disk):
        one = receiver()
        answers = []

        def send():
            with smtplib.SMTP("127.0.0.1", one.port, timeout=30) as client:
                answers.append(client.sendmail("a@b.c", ["d@test.com"], RAW))

        sending = threading.Thread(target=send)
        sending.start()
        assert disk.waiting.wait(30)
        assert answers == []
        disk.go_on.set()
        sending.join()
        assert answers == [{}]

    def test_a_disk_that_fails_leaves_the_message_to_the_client(self, receiver, disk):
        disk.error = OSError(28, "No space left on device")
        disk.go_on.set()
        one = receiver()
        with (
            smtplib.SMTP("127.0.0.1", one.port, timeout=30) as client,
            pytest.raises(smtplib.SMTPDataError, match="451"),
        ):
            client.sendmail("a@b.c", ["d@test.com"], RAW)

    def test_a_queue_keeps_its_message_until_then(self, tmp_path, disk):
        disk.error = OSError(28, "No space left on device")
        disk.go_on.set()
        queue = Queue(tmp_path / "work")
        queue.push(MailRequest("test", "a@b.c", "d@test.com", RAW))
        one = QueueReceiver(tmp_path / "work")
        one.start(one_shot=True)
        assert queue.count() == 1
        disk.error = None
        one.start(one_shot=True)
        assert queue.count() == 0 and disk.syncs


def test_no_handler_runs_for_what_could_not_be_kept(receiver, tmp_path, monkeypatch):
    ran = []

    @route("(name)@test.com", name=".+")
    @stateless
    def START(message, name):
        ran.append(name)

    Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")

    def full(size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Router.UNDELIVERABLE_QUEUE, "check_room", full)
    refusal = "452 4.3.1 No space left for mail, try again later"
    assert receiver().process_message("peer", "a@b.c", ["one@test.com"], RAW) == refusal
    to = ["One@test.com", "two@test.com"]
    assert LMTPReceiver(port=0).process_each("peer", "a@b.c", to, RAW) == {
        "one@test.com": refusal,
        "two@test.com": refusal,
    }
    work = Queue(tmp_path / "work")
    work.push(MailRequest("test", "a@b.c", "one@test.com", RAW))
    for _ in range(5):
        QueueReceiver(tmp_path / "work").start(one_shot=True)
    assert work.count() == 1 and ran == []
    monkeypatch.undo()
    QueueReceiver(tmp_path / "work").start(one_shot=True)
    assert work.count() == 0 and ran == ["one"]


def test_there_has_to_be_room_for_the_copy_of_each_recipient(tmp_path, taken, monkeypatch):
    Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
    asked = []
    monkeypatch.setattr(Router.UNDELIVERABLE_QUEUE, "check_room", asked.append)
    to = ["one@test.com", "two@test.com", "three@test.com"]
    assert SMTPReceiver(port=0).process_message("peer", "a@b.c", to, RAW) is None
    LMTPReceiver(port=0).process_each("peer", "a@b.c", to, RAW)
    assert asked == [3 * len(RAW)] * 2


def test_the_undeliverable_queue_is_drained_when_its_disk_is_full(tmp_path, taken, monkeypatch):
    Router.UNDELIVERABLE_QUEUE = box = Queue(tmp_path / "undeliverable")
    box.push(MailRequest("peer", "a@b.c", ["list@test.com"], RAW))

    def full(size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(box, "check_room", full)
    QueueReceiver(box.dir).start(one_shot=True)
    assert len(taken) == 1 and box.count() == 0


def test_the_folder_of_a_socket_says_who_may_connect_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        one = LMTPReceiver(str(tmp_path / "lmtp"))
        one.bind()
    finally:
        os.umask(before)
    try:
        assert (tmp_path / "lmtp").stat().st_mode & 0o777 == 0o666
    finally:
        one.close()
    assert not (tmp_path / "lmtp").exists()


class TestSettle:
    def outcome(self, *args, **kw):
        return Outcome("d@e.f", *args, **kw)

    def test_everything_safe_is_accepted(self):
        assert settling.settle(MailRequest("", "a@b.c", "d@e.f", RAW), [self.outcome(handled=True)]) is None

    def test_of_a_mixed_result_the_refused_copies_are_kept(self, tmp_path):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        refused = Outcome("no@e.f", error=SMTPError(550, "No."))
        message = MailRequest("", "a@b.c", ["d@e.f", "no@e.f"], RAW)
        assert settling.settle(message, [self.outcome(handled=True), refused]) is None
        assert Router.UNDELIVERABLE_QUEUE.pop()[1].To == ["no@e.f"]

    def test_of_a_mixed_result_what_is_refused_for_now_is_routed_again_later(self, tmp_path):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        answers = {
            "Later@test.com": [SMTPError(450, "Later."), None],
            "never@test.com": [SMTPError(450), SMTPError(550)],
        }

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            error = answers.get(message.envelope[1][0], [None]).pop(0)
            if error:
                raise error

        one = SMTPReceiver("127.0.0.1", 0, retry_queue=str(tmp_path / "deferred"))
        to = ["good@test.com", "Later@test.com", "never@test.com"]
        assert one.process_message("peer", "a@b.c", to, RAW) is None
        assert Router.UNDELIVERABLE_QUEUE.count() == 0
        deferred = Queue(tmp_path / "deferred")
        assert sorted(entry.recipients + [entry.reason[:3]] for entry in deferred.entries()) == [
            ["Later@test.com", "450"],
            ["never@test.com", "450"],
        ]
        one.retries.clock = lambda: time.time() + 3600
        assert one.retries.retry() == 2
        assert deferred.count() == 0 and answers == {"Later@test.com": [], "never@test.com": []}
        assert Router.UNDELIVERABLE_QUEUE.pop()[1].envelope == ("a@b.c", ["never@test.com"])

    def test_of_a_mixed_result_that_cannot_be_kept_the_client_hears(self):
        refused = Outcome("no@e.f", error=SMTPError(550, "No."))
        assert str(settling.settle(MailRequest("", "a@b.c", [], RAW), [self.outcome(True), refused])) == "550 No."

    def test_of_several_refusals_a_temporary_one_wins(self):
        outcomes = [self.outcome(error=SMTPError(550)), self.outcome(error=SMTPError(450, "Later."))]
        assert str(settling.settle(MailRequest("", "a@b.c", [], RAW), outcomes)) == "450 Later."

    def test_a_refusal_for_good_is_not_asked_for_again_because_another_copy_is_wanted_later(self, tmp_path):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        calls = []

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            calls.append(name)
            raise SMTPError(int(name[-3:]), name)

        one = SMTPReceiver("127.0.0.1", 0, retry_queue=str(tmp_path / "deferred"))
        assert one.process_message("peer", "a@b.c", ["late450@test.com", "no550@test.com"], RAW) is None
        assert [entry.recipients for entry in Queue(tmp_path / "deferred").entries()] == [["late450@test.com"]]
        assert [entry.recipients for entry in Router.UNDELIVERABLE_QUEUE.entries()] == [["no550@test.com"]]
        for codes in ((450, 451), (550, 552)):
            recipients = [f"x{code}@test.com" for code in codes]
            assert one.process_message("peer", "a@b.c", recipients, RAW).startswith(str(codes[0])), "all of one mind"
        assert Queue(tmp_path / "deferred").count() == Router.UNDELIVERABLE_QUEUE.count() == 1
        one.retries.clock = lambda: time.time() + 3600
        assert one.retries.retry() == 1
        assert calls.count("late450") == 2 and calls.count("no550") == 1

    def test_what_no_route_takes_is_refused_for_good_and_what_no_state_takes_for_now(self):
        @route("d@e.f")
        def END(message):
            pass

        assert settling.settle(MailRequest("", "a@b.c", [], RAW), [self.outcome()]).code == 451
        assert settling.settle(MailRequest("", "a@b.c", [], RAW), [Outcome("x@y.z")]).code == 550


class TestLMTPReceiver:
    @pytest.fixture(params=["port", "socket"])
    def lmtp(self, request, tmp_path):
        host = "127.0.0.1" if request.param == "port" else str(tmp_path / "lmtp")
        one = LMTPReceiver(host, 0, unknown_recipients="refuse")
        one.start()
        yield one
        one.close()
        assert request.param == "port" or not (tmp_path / "lmtp").exists()

    def test_each_recipient_gets_its_own_reply_and_no_handler_runs_twice(self, lmtp):
        calls = []

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            calls.append((name, message.From, message.original))
            if name == "no":
                raise SMTPError(550, "No.")
            if name == "later":
                raise SMTPError(450, "Later.")
            if name == "fails":
                raise ValueError("no luck")

        with smtplib.LMTP(lmtp.host, lmtp.port) as client:
            client.ehlo_or_helo_if_needed()
            assert client.mail("a@b.c")[0] == 250
            assert client.rcpt("stranger@elsewhere.org")[0] == 550
            for name in ("Yes", "no", "later", "fails"):
                assert client.rcpt(f"{name}@test.com")[0] == 250
            assert client.docmd("DATA")[0] == 354
            client.send(RAW + b".\r\n")
            replies = [client.getreply() for _ in range(4)]
        assert [reply[0] for reply in replies] == [250, 550, 450, 451]
        assert sorted(calls) == [(name, "a@b.c", RAW) for name in ("fails", "later", "no", "yes")]

    def test_close_finishes_what_is_being_handled_and_says_421_to_who_waits(self, lmtp):
        inside, go_on = threading.Event(), threading.Event()

        @route(".+")
        @stateless
        def START(message):
            inside.set()
            assert go_on.wait(30)

        idle, busy = smtplib.LMTP(lmtp.host, lmtp.port), smtplib.LMTP(lmtp.host, lmtp.port)
        with contextlib.closing(idle), contextlib.closing(busy):
            idle.ehlo()
            busy.ehlo()
            busy.mail("a@b.c")
            for name in ("one", "two"):
                assert busy.rcpt(f"{name}@test.com")[0] == 250
            assert busy.docmd("DATA")[0] == 354
            busy.send(RAW + b".\r\n")
            assert inside.wait(30)
            closing = threading.Thread(target=lmtp.close)
            closing.start()
            assert idle.getreply()[0] == 421
            assert closing.is_alive()
            go_on.set()
            assert [busy.getreply()[0] for _ in range(3)] == [250, 250, 421]
            closing.join(30)
            assert not closing.is_alive()

    @pytest.mark.parametrize("where", ["port", "socket"])
    @pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
    def test_a_certificate_and_logins_count_on_a_socket_as_on_a_port(self, tmp_path, taken, where, implicit):
        host, certificate = ("127.0.0.1" if where == "port" else str(tmp_path / "lmtp")), Path(tmp_path / "cert.pem")
        certificate.write_bytes((CERTS / "one.pem").read_bytes())
        one = LMTPReceiver(
            host,
            0,
            certificate=str(certificate),
            implicit_tls=implicit,
            require_tls=True,
            auth=lambda user, password: (user, password) == ("zed", "secret"),
            require_auth=True,
        )
        one.start()
        context = ssl.create_default_context(cafile=str(certificate))
        context.check_hostname = False
        try:
            with smtplib.LMTP() as client:
                client._host = "one.test"  # which smtplib wants to tell the server in the handshake
                client.timeout = 30
                if implicit:
                    with socket.socket(socket.AF_UNIX if where == "socket" else socket.AF_INET) as plain:
                        plain.connect(host if where == "socket" else (host, one.port))
                        client.sock = context.wrap_socket(plain)
                    assert client.getreply()[0] == 220
                else:
                    client.connect(host, one.port)
                    client.ehlo()
                    assert client.docmd("MAIL FROM:<a@b.c>") == (530, b"Must issue a STARTTLS command first")
                    client.starttls(context=context)
                client.ehlo()
                assert client.docmd("MAIL FROM:<a@b.c>") == (530, b"5.7.0 Authentication required")
                client.login("zed", "secret")
                assert client.sendmail("a@b.c", ["d@e.f"], RAW) == {}
        finally:
            one.close()
        assert [message.original for message in taken] == [RAW]

    def test_a_socket_without_a_certificate_that_can_be_read_is_not_made(self, tmp_path):
        certificate = tmp_path / "cert.pem"
        certificate.write_text("this is no certificate")
        with pytest.raises(OSError, match="cannot use the certificate"):
            LMTPReceiver(str(tmp_path / "lmtp"), certificate=str(certificate)).bind()
        assert not (tmp_path / "lmtp").exists()

    def test_a_socket_that_a_dead_server_left_is_replaced_and_that_of_a_living_one_is_not(self, tmp_path):
        path = str(tmp_path / "lmtp")
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        one, other = LMTPReceiver(path), LMTPReceiver(path)
        one.bind()
        with pytest.raises(OSError, match="cannot listen on .*/lmtp: Address already in use"):
            other.bind()
        one.close()

    def test_a_socket_that_may_not_be_removed_does_not_keep_the_server_from_ending(self, tmp_path, monkeypatch, caplog):
        path = str(tmp_path / "lmtp")
        lmtp = LMTPReceiver(path)
        lmtp.start()

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied", path)

        monkeypatch.setattr(Path, "unlink", refuse)
        lmtp.close()
        assert f"left behind: {path}, which the next start replaces: Permission denied" in caplog.text


class TestQueueReceiver:
    def test_routes_with_the_envelope_that_was_queued(self, tmp_path, taken):
        Queue(tmp_path / "in").push(MailRequest("peer", "a@b.c", ["bcc@test.com"], RAW))
        QueueReceiver(str(tmp_path / "in")).start(one_shot=True)
        assert (taken[0].From, taken[0].To, taken[0].original) == ("a@b.c", ["bcc@test.com"], RAW)
        assert Queue(tmp_path / "in").count() == 0

    def test_what_fails_goes_to_undeliverable_or_stays(self, tmp_path):
        @route(".+")
        def START(message):
            raise SMTPError(550, "No.")

        box = Queue(tmp_path / "in")
        box.push(RAW)
        box.push(RAW)
        QueueReceiver(str(tmp_path / "in")).start(one_shot=True)
        assert box.count() == 2
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        QueueReceiver(str(tmp_path / "in")).start(one_shot=True)
        assert box.count() == 0 and Router.UNDELIVERABLE_QUEUE.count() == 2

    def test_a_temporary_refusal_is_tried_three_times_and_only_for_its_recipient(self, tmp_path):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        tries = []

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            tries.append(name)
            if name == "later":
                raise SMTPError(450, "Later.")
            if name == "never":
                raise SMTPError(550, "Never.")

        box = Queue(tmp_path / "in")
        box.push(MailRequest("peer", "a@b.c", ["good@test.com", "later@test.com", "never@test.com"], RAW))
        receiver = QueueReceiver(str(tmp_path / "in"))
        receiver.start(one_shot=True)
        assert sorted(tries) == ["good", "later", "never"]
        assert box.get(box.keys()[0]).envelope == ("a@b.c", ["later@test.com"])
        assert box.get(box.keys()[0]).original == RAW
        receiver.start(one_shot=True)
        assert box.count() == 1
        receiver.start(one_shot=True)
        assert sorted(tries) == ["good", "later", "later", "later", "never"]
        assert box.count() == 0
        kept = [Router.UNDELIVERABLE_QUEUE.pop()[1].envelope for _ in range(2)]
        assert kept == [("a@b.c", ["never@test.com"]), ("a@b.c", ["later@test.com"])]

    def test_draining_the_undeliverable_queue_tries_each_message_once(self, tmp_path):
        box = Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        box.push(RAW)
        box.push(RAW)
        tries = []

        @route(".+")
        @stateless
        def START(message):
            tries.append(message)
            raise ConnectionRefusedError("the old server is down")

        QueueReceiver(str(tmp_path / "undeliverable")).start(one_shot=True)
        assert len(tries) == 2 and box.count() == 2

    def test_what_cannot_be_read_is_moved_aside_and_the_rest_is_handled(self, tmp_path, taken, caplog):
        box = Queue(tmp_path / "in")
        (tmp_path / "in/new/1.a-folder").mkdir()
        box.push(RAW)
        QueueReceiver(str(tmp_path / "in")).start(one_shot=True)
        assert len(taken) == 1 and box.count() == 0
        assert (tmp_path / "in/unreadable/1.a-folder").is_dir() and "cannot be read" in caplog.text

    def test_a_message_that_takes_the_process_with_it_is_set_aside_after_three_times(self, tmp_path, taken):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        box = Queue(tmp_path / "in")
        box.push(MailRequest("peer", "a@b.c", ["list@test.com"], RAW))
        for _ in range(3):
            with box.claim():
                pass  # as after a crash: claimed, and neither handled nor given back
        QueueReceiver(str(tmp_path / "in")).start(one_shot=True)
        assert not taken and box.count() == 0 and Router.UNDELIVERABLE_QUEUE.count() == 1

    def test_oversized_messages_are_moved(self, tmp_path, taken):
        Queue(tmp_path / "in").push(RAW)
        QueueReceiver(str(tmp_path / "in"), size_limit=10, oversize_dir=str(tmp_path / "big")).start(one_shot=True)
        assert not taken and Queue(tmp_path / "big").count() == 1

    def test_close_makes_start_return(self, tmp_path, taken):
        one = QueueReceiver(str(tmp_path / "in"), sleep=60)
        thread = threading.Thread(target=one.start)
        thread.start()
        one.close()
        thread.join(30)
        assert not thread.is_alive()


def test_undeliverable_message_pushes_when_there_is_a_queue(tmp_path):
    assert server.undeliverable_message(RAW, "nothing") is None
    Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
    key = server.undeliverable_message(RAW, "Router failed")
    assert Router.UNDELIVERABLE_QUEUE.get(key).original == RAW


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (550, "550 Permanent Failure Mail Delivery Protocol Status"),
        (400, "400 Persistent Transient Failure Other or Undefined Status"),
        (425, "425 Persistent Transient Failure Mailbox Status"),
        (999, "999 "),
    ],
)
def test_an_SMTPError_without_a_message_has_the_words_of_rfc_3463(code, text):
    assert str(server.SMTPError(code)) == text
    assert str(server.SMTPError(code, "Mine.")) == f"{code} Mine."
