"""Queues: what is pushed is on disk and comes out as it went in, envelope included."""

import errno
import os
import socket
import subprocess
import sys
import textwrap
from collections import Counter
from email.message import EmailMessage
from types import SimpleNamespace

import pytest

from brokers import done_by_threads
from lamson import queue
from lamson.errors import QueueError
from lamson.mail import MailRequest, MailResponse
from lamson.queue import Queue

RAW = b"From: a@example.com\r\nTo: list@test.com\r\nSubject: hi\r\n\r\nHello\r\n"


@pytest.fixture
def box(tmp_path):
    return Queue(tmp_path / "queue")


def request(data=RAW, sender="zed@example.com", to=("list@test.com",)):
    return MailRequest("peer", sender, list(to) if to is not None else None, data)


class TestInAndOut:
    def test_messages_come_out_in_the_order_they_went_in(self, box):
        keys = [box.push(b"Subject: %d\r\n\r\n" % number) for number in range(20)]
        assert box.keys() == keys and box.count() == 20
        assert [box.pop()[0] for _ in range(20)] == keys
        assert box.pop() == (None, None) and box.count() == 0

    def test_a_request_comes_back_with_its_bytes_and_its_envelope(self, box):
        box.push(request(to=["list@test.com", "Secret@test.com"]))
        message = box.pop()[1]
        assert message.original == RAW
        assert message.From == "zed@example.com"
        assert message.To == ["list@test.com", "Secret@test.com"]
        assert message.route_to == {"list@test.com", "secret@test.com"}

    def test_the_file_opens_with_the_standard_headers_of_the_envelope(self, box, tmp_path):
        key = box.push(request(to=["a@test.com", "b@test.com"]))
        assert (tmp_path / "queue/new" / key).read_bytes() == (
            b"Delivered-To: a@test.com\r\nDelivered-To: b@test.com\r\nReturn-Path: <zed@example.com>\r\n" + RAW
        )

    @pytest.mark.parametrize(
        "raw",
        [
            b"Return-Path: <other@example.com>\r\nDelivered-To: other@test.com\r\nSubject: x\r\n\r\nBody\r\n",
            b"Delivered-To: other@test.com\r\nReturn-Path: <other@example.com>\r\n\r\nBody\r\n",
            b"Delivered-To: other@test.com\nSubject: unix\n\nBody\n",
            b"Subject: mixed\r\n\r\nbare \n and \r and \x00 and \xff\n.\n..\r\n",
            b"no header at all",
            b"\r\nonly a body\r\n",
            b"",
            b"\n",
        ],
    )
    def test_bytes_of_a_message_that_looks_like_an_envelope_or_like_nothing_stay_as_they_are(self, box, raw):
        box.push(request(raw))
        message = box.pop()[1]
        assert message.original == raw
        assert message.envelope == ("zed@example.com", ["list@test.com"])

    def test_the_null_sender_and_unicode_addresses_come_back(self, box):
        box.push(request(sender="", to=["почта@пример.рф"]))
        message = box.pop()[1]
        assert (message.From, message.To) == ("", ["почта@пример.рф"])

    def test_a_message_without_envelope_is_routed_by_its_headers(self, box):
        box.push(RAW)
        message = box.pop()[1]
        assert message.envelope == (None, None)
        assert (message.route_from, message.route_to) == ("a@example.com", {"list@test.com"})

    def test_str_bytes_responses_and_email_messages_can_be_pushed(self, box):
        email = EmailMessage()
        email["Subject"] = "of the standard library"
        for item in (RAW.decode(), RAW, MailResponse(To="a@b.c", From="d@e.f", Subject="s", Body="b"), email):
            box.push(item)
        subjects = [box.pop()[1]["subject"] for _ in range(4)]
        assert subjects == ["hi", "hi", "s", "of the standard library"]

    def test_something_else_is_refused(self, box):
        with pytest.raises(QueueError, match="42"):
            box.push(42)
        assert box.count() == 0

    def test_an_address_with_a_line_end_is_refused(self, box):
        with pytest.raises(QueueError, match="line end"):
            box.push(request(to=["a@test.com\r\nBcc: victim@test.com"]))
        assert box.count() == 0

    def test_get_leaves_and_remove_takes(self, box):
        key = box.push(request())
        assert box.get(key).original == RAW and box.count() == 1
        box.remove(key)
        assert box.get(key) is None and box.count() == 0
        with pytest.raises(QueueError, match=key):
            box.remove(key)

    @pytest.mark.parametrize("key", ["", "../../etc/passwd", "/etc/passwd", ".", "..", "no-such-key"])
    def test_a_key_is_never_a_path(self, box, key):
        assert box.get(key) is None and not box.oversize(key)

    def test_clear_takes_everything(self, box):
        for _ in range(5):
            box.push(RAW)
        box.clear()
        assert box.count() == 0 and box.pop() == (None, None)

    def test_what_is_pushed_after_a_listing_is_found_when_the_listed_ones_are_gone(self, box):
        keys = [box.push(RAW) for _ in range(3)]
        box.pop()
        box.remove(keys[1])
        box.remove(keys[2])
        last = box.push(RAW)
        assert box.pop()[0] == last

    def test_a_mail_program_may_have_seen_the_message(self, box, tmp_path):
        key = box.push(request())
        os.rename(tmp_path / "queue/new" / key, tmp_path / "queue/cur" / (key + ":2,S"))
        assert box.keys() == [key] and box.get(key).original == RAW
        assert box.pop()[0] == key and box.count() == 0

    def test_nothing_is_left_when_the_disk_does_not_take_it(self, box, tmp_path, monkeypatch):
        def full(handle):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            box.push(RAW)
        assert not list((tmp_path / "queue/tmp").iterdir()) and box.count() == 0

    def test_file_and_folder_are_synced_before_the_key_is_returned(self, box, monkeypatch):
        synced = []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_mode), real(handle)))
        box.push(RAW)
        assert [oct(mode)[2:4] for mode in synced] == ["10", "40"]  # a file, then a folder

    def test_the_reason_is_kept_in_front_and_not_part_of_the_message(self, box, tmp_path):
        key = box.push(request(), reason="550 No.\r\nReally: нет")
        raw = (tmp_path / "queue/new" / key).read_bytes()
        assert raw.startswith("X-Lamson-Reason: 550 No. Really: нет\r\nDelivered-To: list@test.com\r\n".encode())
        assert queue.envelope_reason(raw) == "550 No. Really: нет"
        assert box.get(key).original == RAW and box.get(key).envelope == ("zed@example.com", ["list@test.com"])
        assert queue.envelope_reason(RAW) is None
        assert queue.envelope_reason(b"X-Lamson-Reason: a stranger's\r\n" + RAW) is None

    def test_entries_tell_what_there_is_without_reading_it_whole(self, box):
        keys = [box.push(request(to=["a@test.com", "b@test.com"]), reason="550 No."), box.push(RAW), box.push(b"")]
        first, second, third = box.entries()
        assert first[:3] == (keys[0], "zed@example.com", ["a@test.com", "b@test.com"])
        assert (first.reason, second.reason) == ("550 No.", "")
        assert second[:4] == (keys[1], "a@example.com", ["list@test.com"], len(RAW))
        assert third[:4] == (keys[2], "", [], 0) and 0 <= third.age < 60


CALLS = ("fsync", "listdir", "scandir", "stat", "rename", "unlink", "open")


@pytest.fixture
def calls(monkeypatch):
    """Counts what is asked of the operating system: the cost of a step, which clocks do not tell reliably."""
    found = Counter()

    def counted(name, real):
        def call(*args, **kw):
            found[name] += 1
            return real(*args, **kw)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return found


class TestFlatCosts:
    """What one message costs is the same in a queue of ten messages and of a thousand."""

    def filled(self, tmp_path, depth):
        box = Queue(tmp_path / f"of{depth}")
        for number in range(depth):
            (tmp_path / f"of{depth}/new" / f"{number:010}.filled").write_bytes(RAW)
        return box

    def costs(self, tmp_path, calls, work):
        """What `work` asks for in a queue of each depth."""
        found = []
        for depth in (10, 1000):
            box = self.filled(tmp_path, depth)
            box.keys()
            calls.clear()
            work(box)
            found.append(dict(calls))
        return found

    def test_push_lists_nothing_and_syncs_once_for_the_file_and_once_for_the_folder(self, tmp_path, calls):
        shallow, deep = self.costs(tmp_path, calls, lambda box: box.push(RAW))
        assert shallow == deep == {"fsync": 2, "rename": 1, "open": 1}

    def test_get_of_a_message_that_nobody_has_seen_asks_for_one_file(self, tmp_path, calls):
        shallow, deep = self.costs(tmp_path, calls, lambda box: box.get("0000000005.filled"))
        assert shallow == deep == {"stat": 1}

    @pytest.mark.parametrize("flags", ["", ":2,", ":2,S", ":2,a", ":2,ab", ":2,RSabc"])
    def test_get_of_a_message_that_was_seen_or_claimed_lists_nothing(self, tmp_path, calls, flags):
        def get(box):
            key = "0000000005.filled"
            os.rename(f"{box.dir}/new/{key}", f"{box.dir}/cur/{key}{flags}")
            assert box.get(key).original == RAW

        shallow, deep = self.costs(tmp_path, calls, get)
        assert shallow == deep and "listdir" not in deep and "scandir" not in deep

    def test_get_of_a_message_with_flags_that_nobody_expects_finds_it_all_the_same(self, tmp_path, calls):
        box = self.filled(tmp_path, 10)
        os.rename(f"{box.dir}/new/0000000005.filled", f"{box.dir}/cur/0000000005.filled:2,DFPRSTq")
        assert box.get("0000000005.filled").original == RAW
        assert calls["listdir"] == 1

    def test_count_is_one_listing_of_each_folder(self, tmp_path, calls):
        shallow, deep = self.costs(tmp_path, calls, lambda box: box.count())
        assert shallow == deep == {"listdir": 2}

    def test_popping_everything_lists_once_at_the_beginning_and_once_at_the_end(self, tmp_path, calls):
        def drain(box):
            while box.pop()[0] is not None:
                pass

        shallow, deep = self.costs(tmp_path, calls, drain)
        assert shallow == {"listdir": 4, "open": 10, "unlink": 10}
        assert deep == {"listdir": 4, "open": 1000, "unlink": 1000}

    def test_claiming_everything_lists_once_at_the_beginning_and_once_at_the_end(self, tmp_path, calls):
        def drain(box):
            while True:
                with box.claim() as claim:
                    if claim is None:
                        return
                    claim.done()

        shallow, deep = self.costs(tmp_path, calls, drain)
        assert shallow == {"listdir": 4, "open": 10, "rename": 10, "unlink": 10}
        assert deep == {"listdir": 4, "open": 1000, "rename": 1000, "unlink": 1000}

    def test_a_look_into_an_empty_queue_is_one_listing_of_each_folder(self, box, calls):
        with box.claim() as claim:
            assert claim is None
        assert calls == {"listdir": 2}

    def test_clear_takes_one_step_for_each(self, tmp_path, calls):
        shallow, deep = self.costs(tmp_path, calls, lambda box: box.clear())
        assert (shallow, deep) == ({"listdir": 2, "unlink": 10}, {"listdir": 2, "unlink": 1000})


class TestUnreadable:
    def test_what_is_no_file_is_moved_aside_and_the_rest_is_popped(self, box, tmp_path, caplog):
        os.mkfifo(tmp_path / "queue/new/1.pipe")
        (tmp_path / "queue/new/2.folder").mkdir()
        os.symlink("loop", tmp_path / "queue/new/loop")
        key = box.push(RAW)
        assert box.pop()[0] == key and box.pop() == (None, None)
        assert sorted(os.listdir(tmp_path / "queue/unreadable")) == ["1.pipe", "2.folder", "loop"]
        assert caplog.text.count("cannot be read") == 3

    def test_a_process_that_has_too_much_open_moves_nothing_aside(self, box, monkeypatch):
        key = box.push(RAW)

        def exhausted(*args, **kw):
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as full, pytest.raises(OSError, match="Too many"):
            full.setattr(os, "open", exhausted)
            box.pop()
        assert box.pop()[0] == key


class TestLimits:
    def test_messages_over_the_limit_are_moved(self, tmp_path):
        box = Queue(tmp_path / "queue", pop_limit=100, oversize_dir=tmp_path / "big")
        big, small = box.push(RAW + b"x" * 100), box.push(b"Subject: small\r\n\r\n")
        assert box.oversize(big) and not box.oversize(small)
        assert box.pop()[0] == small
        assert Queue(tmp_path / "big").keys() == [big]

    def test_messages_over_the_limit_are_dropped_when_there_is_no_place_for_them(self, tmp_path, caplog):
        box = Queue(tmp_path / "queue", pop_limit=10)
        key = box.push(RAW)
        assert box.pop() == (None, None) and box.count() == 0
        assert f"dropped: {key}" in caplog.text

    def test_a_safe_queue_does_not_tell_the_host(self, tmp_path):
        assert socket.gethostname() in Queue(tmp_path / "plain").push(RAW)
        assert socket.gethostname() not in Queue(tmp_path / "safe", safe=True).push(RAW)


class TestClaims:
    def test_a_claimed_message_leaves_the_queue_when_it_is_done(self, box):
        key = box.push(request())
        with box.claim() as claim:
            assert claim.key == key and claim.message.original == RAW and box.count() == 1
            claim.done()
        assert box.count() == 0

    def test_an_empty_queue_gives_no_claim(self, box):
        with box.claim() as claim:
            assert claim is None

    def test_a_claim_that_is_not_done_gives_the_message_back(self, box):
        key = box.push(request())
        with pytest.raises(ZeroDivisionError), box.claim():
            1 / 0  # noqa: B018
        with box.claim() as claim:
            assert claim.key == key

    def test_a_claim_counts_how_often_it_was_made_and_keeps_the_flags_of_mail_programs(self, box, tmp_path):
        key = box.push(request())
        for count in (1, 2):
            with box.claim() as claim:
                assert (claim.key, claim.count) == (key, count)
        assert (tmp_path / "queue/cur" / (key + ":2,ab")).exists() and box.keys() == [key]
        os.rename(tmp_path / "queue/cur" / (key + ":2,ab"), tmp_path / "queue/cur" / (key + ":2,FSab"))
        with box.claim() as claim:
            assert claim.count == 3
            assert (tmp_path / "queue/cur" / (key + ":2,FSabc")).exists()
            claim.done()
        assert box.count() == 0

    def test_a_claim_that_was_made_far_too_often_counts_on_without_more_letters(self, box, tmp_path):
        key = box.push(request())
        letters = "abcdefghijklmnopqrstuvwxyz"
        os.rename(tmp_path / "queue/new" / key, tmp_path / "queue/cur" / f"{key}:2,{letters}")
        with box.claim() as claim:
            assert claim.count == 26

    def test_nobody_else_gets_a_claimed_message(self, box, tmp_path):
        first, second = box.push(RAW), box.push(RAW)
        other = Queue(tmp_path / "queue")
        with box.claim() as one, other.claim() as two, box.claim() as three:
            assert (one.key, two.key, three) == (first, second, None)
            assert other.pop() == (None, None)

    def test_a_mail_program_may_move_a_claimed_message(self, box, tmp_path):
        key = box.push(request())
        with box.claim() as claim:
            os.rename(tmp_path / "queue/cur" / (key + ":2,a"), tmp_path / "queue/cur" / (key + ":2,aS"))
            claim.done()
        assert box.count() == 0

    def test_a_process_that_is_killed_gives_its_claim_back(self, box, tmp_path):
        key = box.push(request())
        script = """
            import sys, time
            from lamson.queue import Queue
            with Queue(sys.argv[1]).claim() as claim:
                print(claim.key, flush=True)
                time.sleep(60)
        """
        command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "queue")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline().strip() == key
            with box.claim() as claim:
                assert claim is None
            child.kill()
        with box.claim() as claim:
            assert claim.key == key

    def test_eight_threads_share_the_work_and_nobody_does_it_twice(self, box, tmp_path):
        keys = [box.push(RAW) for _ in range(100)]
        assert sorted(done_by_threads(tmp_path / "queue")) == sorted(keys) and box.count() == 0


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_the_envelope_has_the_line_ends_of_the_message(end):
    joined = queue.join_envelope("a@b", ["c@d"], b"Subject: x" + end)
    assert joined == b"Delivered-To: c@d" + end + b"Return-Path: <a@b>" + end + b"Subject: x" + end
    assert queue.split_envelope(joined) == ("a@b", ["c@d"], b"Subject: x" + end)


@pytest.mark.parametrize(
    "change, code",
    [
        ({}, None),
        ({"f_bavail": 10}, errno.ENOSPC),
        ({"f_favail": 0}, errno.ENOSPC),
        ({"f_favail": 0, "f_files": 0}, None),  # a file system that counts no files
        ({"f_flag": os.ST_RDONLY}, errno.EROFS),
    ],
)
def test_a_queue_knows_whether_there_is_room_for_a_message(tmp_path, monkeypatch, change, code):
    queue = Queue(tmp_path / "queue")
    disk = {"f_bavail": 1000, "f_frsize": 4096, "f_files": 1000, "f_favail": 10, "f_flag": 0}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**{**disk, **change}))
    if code is None:
        queue.check_room(1000)
        with pytest.raises(OSError, match="No space"):
            queue.check_room(1000 * 4096)
    else:
        with pytest.raises(OSError) as caught:
            queue.check_room(1000)
        assert caught.value.errno == code
