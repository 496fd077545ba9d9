"""The retry queue: when an entry is tried, what is left of it, and that no process takes it to its grave."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from lamson import outgoing, queue
from lamson.mail import MailRequest
from lamson.outgoing import Failure, RetryQueue
from lamson.queue import Maildir
from lamson.relay import Relay
from processes import PATIENCE, eventually
from sink import DROP, Host

RAW = b"From: a@example.com\r\nSubject: hi\r\n\r\nHello\r\n"
DAY = 24 * 3600


class Clock:
    """Now, as far as the queue is concerned."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


class Attempts:
    """What the queue calls. `plan` says what becomes of a recipient; whoever is not in it gets the message."""

    def __init__(self):
        self.plan = {}
        self.made = []  # (recipients) of each attempt
        self.given_up = []  # (sender, recipients, content, reason)
        self.nowhere = False

    def __call__(self, message):
        sender, recipients = message.envelope
        self.made.append(recipients)
        if isinstance(self.plan, Exception):
            raise self.plan
        return {recipient: self.plan[recipient] for recipient in recipients if recipient in self.plan}

    def give_up(self, message, reason):
        if self.nowhere:
            raise OSError("No space left on device")
        self.given_up.append((*message.envelope, message.original, reason))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def attempts():
    return Attempts()


@pytest.fixture
def retries(tmp_path, attempts, clock):
    return RetryQueue(tmp_path / "outgoing", attempts, attempts.give_up, clock=clock)


def push(retries, *recipients, sender="me@x.y", content=RAW, reason="451 Later"):
    return retries.push(MailRequest("relay", sender, list(recipients) or ["a@x.y"], content), reason)


def entries(retries):
    """key -> (sender, recipients, content, reason)"""
    found = {}
    for path in retries.mbox.files():
        raw = path.read_bytes()
        found[queue.key_of(path)] = (*queue.split_envelope(raw), queue.envelope_reason(raw))
    return found


def make_due(retries, key):
    os.utime(retries.mbox.find(key), (0, 0))


def push_due(retries, *recipients, **message):
    """One that has waited long enough."""
    key = push(retries, *recipients, **message)
    make_due(retries, key)
    return key


class TestWhen:
    def test_the_first_attempt_is_made_after_about_a_minute(self, retries, attempts, clock):
        push(retries)
        assert retries.retry() == 0
        clock.ahead += 40
        assert retries.retry() == 0
        clock.ahead += 40
        assert retries.retry() == 1
        assert attempts.made == [["a@x.y"]] and entries(retries) == {}

    def test_waits_double_up_to_an_hour_for_five_days_and_then_it_is_given_up(self, retries, attempts, clock):
        attempts.plan["a@x.y"] = Failure("451 Still later")
        start = clock()
        push(retries)
        times = []
        while not attempts.given_up:
            (path,) = retries.mbox.files()
            clock.ahead += path.stat().st_mtime - clock() + 0.001
            assert retries.retry() == 1
            times.append(clock() - start)
        assert attempts.given_up == [("me@x.y", ["a@x.y"], RAW, "451 Still later")] and entries(retries) == {}
        waits = [later - before for before, later in zip([0, *times], times, strict=False)]
        assert 45 <= waits[0] <= 76
        for age, wait in zip(times[:-2], waits[1:-1], strict=True):
            assert 0.75 * min(max(age, 60), 3600) - 1 <= wait <= 1.25 * min(max(age, 60), 3600) + 1
        assert 5 * DAY - 1 <= times[-1] <= 5 * DAY + 10
        assert 100 <= len(times) <= 180

    def test_entries_of_one_moment_do_not_come_back_in_one(self, retries):
        for _ in range(20):
            push(retries)
        assert len({round(path.stat().st_mtime) for path in retries.mbox.files()}) > 5

    def test_the_longest_due_comes_first(self, retries, attempts, clock):
        keys = [push(retries, f"{number}@x.y") for number in range(3)]
        for key, due in zip(keys, (20, 30, 10), strict=True):
            os.utime(retries.mbox.find(key), (due, due))
        assert retries.retry() == 3
        assert attempts.made == [["2@x.y"], ["0@x.y"], ["1@x.y"]]

    @pytest.mark.parametrize("days", [1, 400])
    def test_what_came_in_while_the_clock_was_ahead_is_due_when_it_is_put_back(self, retries, attempts, clock, days):
        attempts.plan["later@x.y"] = Failure("451 Still later")
        clock.ahead = days * DAY
        push(retries, "a@x.y")
        push(retries, "later@x.y")
        assert retries.retry() == 0
        clock.ahead = 0
        assert retries.retry() == 2
        assert sorted(attempts.made) == [["a@x.y"], ["later@x.y"]]
        assert retries.retry() == 0, "from here on it goes by the clock again"
        clock.ahead = 76
        assert retries.retry() == 1 and attempts.made.pop() == ["later@x.y"] and not attempts.given_up

    def test_a_clock_that_goes_on_by_a_day_costs_an_attempt_and_no_mail(self, retries, attempts, clock):
        attempts.plan["a@x.y"] = Failure("451 Still later")
        push(retries)
        clock.ahead = DAY
        assert retries.retry() == 1 and retries.retry() == 0
        clock.ahead = 0
        assert len(entries(retries)) == 1 and not attempts.given_up
        assert retries.retry() == 1, "it is dated a day ahead"


class TestWhatIsLeft:
    def test_only_those_who_did_not_get_it(self, retries, attempts):
        attempts.plan = {"b@x.y": Failure("450 busy"), "c@x.y": Failure("550 never", permanent=True)}
        key = push_due(retries, "a@x.y", "b@x.y", "c@x.y")
        assert retries.retry() == 1
        assert entries(retries) == {key: ("me@x.y", ["b@x.y"], RAW, "450 busy")}
        assert attempts.given_up == [("me@x.y", ["c@x.y"], RAW, "550 never")]
        assert list((retries.mbox.path / "tmp").iterdir()) == []
        attempts.plan = {}
        make_due(retries, key)
        assert retries.retry() == 1
        assert attempts.made == [["a@x.y", "b@x.y", "c@x.y"], ["b@x.y"]] and entries(retries) == {}

    def test_each_reason_is_told_once_with_all_whom_it_kept_from_it(self, retries, attempts):
        spam, gone = Failure("554 spam", permanent=True), Failure("550 gone", permanent=True)
        attempts.plan = {"a@x.y": spam, "b@x.y": gone, "c@x.y": spam}
        push_due(retries, "a@x.y", "b@x.y", "c@x.y", sender="")
        retries.retry()
        assert attempts.given_up == [("", ["a@x.y", "c@x.y"], RAW, "554 spam"), ("", ["b@x.y"], RAW, "550 gone")]

    def test_the_reason_of_the_last_failure_stays_with_the_entry_in_one_line(self, retries, attempts):
        attempts.plan = {"a@x.y": Failure("450 x\r\nBcc: y"), "b@x.y": Failure("451 z"), "c@x.y": Failure("451 z")}
        key = push_due(retries, "a@x.y", "b@x.y", "c@x.y")
        assert entries(retries)[key][3] == "451 Later"
        retries.retry()
        assert entries(retries)[key] == ("me@x.y", ["a@x.y", "b@x.y", "c@x.y"], RAW, "450 x Bcc: y; 451 z")

    def test_an_error_in_an_attempt_is_a_failure_for_all(self, retries, attempts):
        attempts.plan = ValueError("a bug")
        key = push_due(retries, "a@x.y", "b@x.y")
        assert retries.retry() == 1
        assert entries(retries)[key][1:] == (["a@x.y", "b@x.y"], RAW, "a bug") and attempts.given_up == []

    def test_what_cannot_be_given_up_stays(self, retries, attempts, clock):
        attempts.plan = {"a@x.y": Failure("550 never", permanent=True), "b@x.y": Failure("450 later")}
        attempts.nowhere = True
        key = push_due(retries, "a@x.y", "b@x.y")
        clock.ahead = 6 * DAY
        retries.retry()
        assert entries(retries)[key][1] == ["a@x.y", "b@x.y"]
        assert retries.retry() == 0, "it waits for a while"
        attempts.nowhere = False
        clock.ahead += 2 * 3600
        assert retries.retry() == 1
        assert [each[1] for each in attempts.given_up] == [["a@x.y"], ["b@x.y"]] and entries(retries) == {}

    def test_what_a_full_disk_could_not_note_is_not_forgotten(self, retries, attempts, clock, monkeypatch):
        attempts.plan = {"b@x.y": Failure("450 later"), "c@x.y": Failure("550 never", permanent=True)}
        key = push_due(retries, "a@x.y", "b@x.y", "c@x.y")
        full = pytest.MonkeyPatch()
        full.setattr(Maildir, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert retries.retry() == 1
        full.undo()
        assert entries(retries)[key][1] == ["a@x.y", "b@x.y", "c@x.y"]
        clock.ahead += 100
        assert retries.retry() == 1
        assert attempts.made[1] == ["b@x.y"] and entries(retries)[key][1] == ["b@x.y"]
        assert len(attempts.given_up) == 1

    def test_a_message_that_somebody_put_there_goes_where_its_headers_say(self, retries, attempts, clock):
        clock.ahead = 100
        retries.mbox.add(b"From: Me <me@x.y>\r\nTo: a@x.y, B <b@x.y>\r\n\r\nHello\r\n")
        assert retries.retry() == 1
        assert sorted(attempts.made[0]) == ["a@x.y", "b@x.y"] and entries(retries) == {}

    def test_a_message_for_nobody_is_given_up(self, retries, attempts, clock):
        clock.ahead = 100
        retries.mbox.add(b"Subject: to whom?\r\n\r\n")
        attempts.nowhere = True
        assert retries.retry() == 1 and len(entries(retries)) == 1
        assert retries.retry() == 0
        attempts.nowhere = False
        clock.ahead += 3700
        assert retries.retry() == 1
        assert attempts.given_up == [("", [], b"Subject: to whom?\r\n\r\n", "it has no recipient")]
        assert attempts.made == [] and entries(retries) == {}

    def test_an_entry_whose_name_tells_no_time_is_tried_once(self, retries, attempts):
        attempts.plan = {"a@x.y": Failure("450 later")}
        path = retries.mbox.find(push_due(retries))
        path.rename(path.with_name("from-a-backup"))
        assert retries.retry() == 1
        assert attempts.given_up == [("me@x.y", ["a@x.y"], RAW, "450 later")] and entries(retries) == {}

    def test_a_folder_that_is_gone_is_no_end(self, retries, caplog):
        for folder in ("new", "cur", "tmp"):
            (retries.mbox.path / folder).rmdir()
        assert retries.retry() == 0
        assert "cannot be read" in caplog.text


class TestOthersAtWork:
    """Mail programs, people, and other processes on the same folder."""

    @pytest.mark.parametrize("plan", [{}, {"a@x.y": Failure("450 later")}], ids=["delivered", "deferred"])
    def test_a_mail_program_moves_the_file_meanwhile(self, retries, attempts, plan, monkeypatch):
        def attempt(message):
            new = retries.mbox.path / "new" / key
            new.rename(retries.mbox.path / "cur" / f"{key}:2,S")
            return plan

        key = push_due(retries)
        retries.attempt = attempt
        assert retries.retry() == 1
        assert [path.name for path in retries.mbox.files()] == ([f"{key}:2,S"] if plan else [])
        assert retries.retry() == 0

    def test_a_mail_program_moves_the_file_in_the_last_moment(self, retries, attempts, monkeypatch):
        def replace(self, path, content):
            os.rename(path, retries.mbox.path / "cur" / f"{key}:2,S")
            usual(self, path, content)

        usual = Maildir.replace
        monkeypatch.setattr(Maildir, "replace", replace)
        attempts.plan = {"a@x.y": Failure("450 later")}
        key = push_due(retries)
        retries.retry()
        assert list(entries(retries).values()) == [("me@x.y", ["a@x.y"], RAW, "450 later")]
        assert len(retries.mbox.files()) == 1

    @pytest.mark.parametrize("plan", [{}, {"a@x.y": Failure("450 later")}], ids=["delivered", "deferred"])
    def test_what_somebody_removes_meanwhile_stays_removed(self, retries, attempts, plan):
        def attempt(message):
            retries.mbox.find(key).unlink()
            return plan

        key = push_due(retries)
        retries.attempt = attempt
        assert retries.retry() == 1 and entries(retries) == {}

    def test_nobody_tries_what_another_has_in_hand_or_has_done(self, retries, tmp_path, clock, attempts):
        other = RetryQueue(tmp_path / "outgoing", attempts, attempts.give_up, clock=clock)
        seen = []

        def attempt(message):
            seen.append(other.retry())
            return {"a@x.y": Failure("450 later")}

        push_due(retries)
        path = retries.mbox.files()[0]
        retries.attempt = attempt
        assert retries.retry() == 1 and seen == [0] and attempts.made == []
        assert other._try(path) is False, "its listing was from before"
        path.unlink()
        assert other._try(path) is False

    def test_many_threads_try_each_entry_once(self, retries, tmp_path, clock, attempts):
        for number in range(60):
            push_due(retries, f"{number}@x.y")
        queues = [RetryQueue(tmp_path / "outgoing", attempts, attempts.give_up, clock=clock) for _ in range(4)]
        threads = [threading.Thread(target=each.retry) for each in queues]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Counter(recipients[0] for recipients in attempts.made) == {f"{n}@x.y": 1 for n in range(60)}


class TestRetryNow:
    def test_it_tries_what_is_not_due_yet_and_tells_what_became_of_it(self, retries, attempts):
        keys = [push(retries, *who) for who in (["a@x.y"], ["b@x.y", "c@x.y"], ["d@x.y"], ["e@x.y"])]
        attempts.plan = {"b@x.y": Failure("550 No", True), "c@x.y": Failure("450 Not yet")}
        attempts.plan["d@x.y"] = Failure("550 No", True)
        assert retries.retry_now([*keys[:3], "no-such-key"]) == {
            keys[1]: Failure("550 No; 450 Not yet"),
            keys[2]: Failure("550 No", permanent=True),
            "no-such-key": Failure("it is not there, or another program is handling it"),
        }
        assert attempts.made == [["a@x.y"], ["b@x.y", "c@x.y"], ["d@x.y"]]
        assert {key: entry[1] for key, entry in entries(retries).items()} == {keys[1]: ["c@x.y"], keys[3]: ["e@x.y"]}
        assert retries.retry() == 0  # and what has failed waits again

    def test_one_that_another_process_is_trying_is_left_to_it(self, retries, attempts):
        key = push(retries)
        with retries.mbox.hold(str(retries.mbox.find(key))) as held:
            assert held is not None
            assert "another program" in retries.retry_now([key])[key].reason
        assert retries.retry_now([key]) == {} and attempts.made == [["a@x.y"]]


def test_a_look_asks_once_about_each_entry_and_serves_all_that_become_due_before_the_next(
    retries, attempts, clock, monkeypatch
):
    now = time.time()
    monkeypatch.setattr(Clock, "__call__", lambda self: now + self.ahead)  # however slow this machine is
    waits = []
    monkeypatch.setattr(retries._guard, "wait", waits.append)
    listed, asked = Counter(), Counter()
    listdir, stat = os.listdir, os.stat
    for number in range(200):
        due = clock() + (number if number < 20 else 1000)
        os.utime(retries.mbox.find(push(retries, f"{number}@x.y")), (due, due))
    monkeypatch.setattr(os, "listdir", lambda path: (listed.update([path]), listdir(path))[1])
    monkeypatch.setattr(os, "stat", lambda path, **kw: (asked.update([path]), stat(path, **kw))[1])
    for second in range(20):
        clock.ahead = second + 0.5
        retries._try(retries._next())
        assert not waits and retries._next() is None
        assert 0 < waits.pop() <= outgoing.LOOK
    assert attempts.made == [[f"{number}@x.y"] for number in range(20)]
    assert set(listed.values()) == {1} and set(asked.values()) == {1} and len(asked) == 200


class TestTheThread:
    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch):
        monkeypatch.setattr(outgoing, "BREATH", 0.02)
        monkeypatch.setattr(outgoing, "LOOK", 0.02)

    def test_it_tries_what_is_due_and_what_comes_later(self, retries, attempts, clock):
        push_due(retries, "a@x.y")
        retries.start()
        try:
            eventually(lambda: attempts.made == [["a@x.y"]], "the first one")
            push(retries, "b@x.y")
            clock.ahead = 100
            eventually(lambda: attempts.made[1:] == [["b@x.y"]], "the second one")
        finally:
            retries.close()
        assert entries(retries) == {}

    def test_close_waits_for_the_attempt_in_hand_and_starts_no_other(self, retries, attempts, clock):
        started, go_on = threading.Event(), threading.Event()

        def attempt(message):
            started.set()
            assert go_on.wait(PATIENCE)
            return attempts(message)

        retries.attempt = attempt
        for number in range(3):
            push_due(retries, f"{number}@x.y")
        retries.start()
        assert started.wait(PATIENCE)
        closing = threading.Thread(target=retries.close)
        closing.start()
        eventually(retries._closing.is_set, "close")
        assert closing.is_alive()
        go_on.set()
        closing.join(PATIENCE)
        assert len(attempts.made) == 1 and len(entries(retries)) == 2
        retries.start()
        eventually(lambda: len(attempts.made) == 3, "the others, after another start")
        retries.close()

    def test_close_does_not_wait_for_ever(self, retries, monkeypatch, caplog):
        monkeypatch.setattr(outgoing, "CLOSE_TIME", 0.05)
        started, go_on = threading.Event(), threading.Event()

        def attempt(message):
            started.set()
            go_on.wait(PATIENCE)
            return {}

        retries.attempt = attempt
        push_due(retries)
        retries.start()
        assert started.wait(PATIENCE)
        (thread,) = retries._running
        retries.close()
        assert "has not ended" in caplog.text and len(entries(retries)) == 1
        go_on.set()
        thread.join(PATIENCE)

    def test_what_is_handed_over_is_tried_at_once_in_its_order(self, tmp_path, attempts, clock, monkeypatch):
        monkeypatch.setattr(outgoing, "LOOK", 3600)  # it does not wait for the next look at the folder
        retries = RetryQueue(tmp_path / "outgoing", attempts, attempts.give_up, clock=clock)
        assert not retries.running
        retries.start()
        push_due(retries, "seen@x.y")
        assert retries.running
        for number in range(20):
            if number == 10:
                eventually(lambda: len(attempts.made) >= 10, "all that was handed over")  # and it sleeps again
            retries.hand_over(MailRequest("relay", "me@x.y", [f"{number}@x.y"], RAW))
        eventually(lambda: len(attempts.made) >= 20, "all that was handed over")
        retries.close()
        assert [each for each in attempts.made if each != ["seen@x.y"]] == [[f"{number}@x.y"] for number in range(20)]

    def test_what_is_handed_over_waits_on_disk_when_it_fails(self, tmp_path, attempts, clock):
        attempts.plan["a@x.y"] = Failure("451 Later")
        retries = RetryQueue(tmp_path / "outgoing", attempts, attempts.give_up, clock=clock)
        retries.start()
        key = retries.hand_over(MailRequest("relay", "me@x.y", ["a@x.y"], RAW))
        eventually(lambda: entries(retries)[key][3] == "451 Later", "the reason of the failure")
        retries.close()
        assert entries(retries) == {key: ("me@x.y", ["a@x.y"], RAW, "451 Later")}
        assert retries.retry() == 0, "it is due in a minute"

    def test_an_entry_that_cannot_be_written_again_does_not_end_the_thread(self, tmp_path, attempts, clock, caplog):
        attempts.plan["a\rb@x.y"] = Failure("451 Later")
        retries = RetryQueue(tmp_path / "outgoing", attempts, attempts.give_up, clock=clock)
        broken = retries.mbox.path / "new" / f"{int(time.time())}.M1P1Q1.here"
        broken.write_bytes(b"Delivered-To: a\rb@x.y\nReturn-Path: <c@x.y>\n\nHello\n")
        os.utime(broken, (0, 0))
        push_due(retries, "d@x.y")
        retries.start()
        eventually(lambda: ["d@x.y"] in attempts.made, "the next one")
        retries.close()
        assert broken.exists() and attempts.made.count(["a\rb@x.y"]) == 1, "it waits"
        assert f"{broken.name} cannot be tried" in caplog.text

    def test_a_slow_attempt_does_not_hold_up_the_others(self, tmp_path, attempts, clock):
        go_on = threading.Event()

        def attempt(message):
            if message.To == ["slow@x.y"]:
                assert go_on.wait(PATIENCE)
            return attempts(message)

        retries = RetryQueue(tmp_path / "outgoing", attempt, attempts.give_up, clock=clock, threads=2)
        for recipient in ("slow@x.y", "a@x.y", "b@x.y"):
            push_due(retries, recipient)
        retries.start()
        eventually(lambda: sorted(attempts.made) == [["a@x.y"], ["b@x.y"]], "the quick ones")
        go_on.set()
        retries.close()
        assert len(attempts.made) == 3


# --- processes that die --------------------------------------------------------------------------------------------

OWNER = """
import json, sys, time
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.relay import Relay
from lamson.routing import Router

what, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
Router.UNDELIVERABLE_QUEUE = Queue("undeliverable")
relay = Relay("127.0.0.1", port, queue="outgoing")
if what == "deliver":
    for number in range(count, 10**6):
        recipients = [f"{number}@x.y", f"{number}@z.y"]
        relay.deliver(MailRequest("test", "me@x.y", recipients, b"Subject: %d\\r\\n\\r\\n" % number))
        print(number, flush=True)  # from here on it must not be lost
else:
    relay.outgoing.clock = lambda: 2**31
    relay.start()
    while relay.outgoing.mbox.files():
        time.sleep(0.01)
    relay.close()
"""


class Owner:
    """A process that delivers numbered messages, or works on the queue."""

    def __init__(self, folder, what, port, count=0):
        command = [sys.executable, "-c", OWNER, what, str(port), str(count)]
        self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)

    def kill(self):
        """End it as a power cut would. Returns the numbers that it took responsibility for."""
        self.process.send_signal(signal.SIGKILL)
        printed = self.process.communicate()[0].split(b"\n")[:-1]
        return list(map(int, printed))


def waiting(folder):
    """(number, recipient) of every copy that waits in a queue."""
    found = Counter()
    for box in ("outgoing", "undeliverable"):
        for path in Maildir(folder / box).files():
            _, recipients, content = queue.split_envelope(path.read_bytes())
            found.update((number_of(content), recipient) for recipient in recipients)
    return found


def number_of(content):
    return int(content.split(b"\r\n")[0].removeprefix(b"Subject: "))


class TestWhenItsOwnerDies:
    def test_what_deliver_took_is_delivered_or_on_disk(self, tmp_path):
        """The owner is killed while it delivers to a server that drops, refuses and defers as chance will have it."""
        chance = random.Random(5)
        replies = [None] * 8 + [DROP, "450 Later", "550 Never"]
        with Host() as host:
            for key in ("MAIL", "RCPT", "DATA", "."):
                host.answers[key] = lambda line: chance.choice(replies)
            sure, next_number = set(), 0
            for _ in range(5):
                enough = len(host.got) + chance.randrange(5, 30)
                killing = threading.Event()
                host.when_got = lambda content, enough=enough, event=killing: len(host.got) >= enough and event.set()
                owner = Owner(tmp_path, "deliver", host.port, next_number)
                assert killing.wait(PATIENCE)
                sure.update(owner.kill())
                next_number = max(sure, default=-1) + 1_000
            delivered = Counter(
                (number_of(content), each) for _, recipients, content in host.got for each in recipients
            )
        kept = waiting(tmp_path)
        assert len(sure) > 20
        wanted = {(number, f"{number}@{domain}") for number in sure for domain in ("x.y", "z.y")}
        assert wanted <= set(delivered) | set(kept), "nothing is lost"
        assert max(delivered.values()) == 1
        # Only what a connection that broke after the message has left in doubt may be there and waiting, too.
        assert not any(count > 1 for count in kept.values())

    def test_the_next_owner_goes_on_and_only_what_was_in_hand_arrives_twice(self, tmp_path):
        """The owner is killed again and again when the server has just taken a message, and has not answered yet."""
        with Host() as host:
            relay = Relay("127.0.0.1", host.port, queue=tmp_path / "outgoing")
            host.answers["MAIL"] = "451 Later"
            for number in range(60):
                content = b"Subject: %d\r\n\r\n" % number
                relay.deliver(MailRequest("test", "me@x.y", [f"{number}@x.y", f"{number}@z.y"], content))
            relay.close()
            assert len(waiting(tmp_path)) == 120 and host.got == []
            host.answers = {}
            kills, hold = 0, threading.Lock()

            def kill_every_seventh(content):
                nonlocal kills
                with hold:
                    if len(host.got) % 7 == 0:
                        owner.process.send_signal(signal.SIGKILL)
                        owner.process.wait()
                        kills += 1

            host.when_got = kill_every_seventh
            while waiting(tmp_path):
                with hold:
                    owner = Owner(tmp_path, "retry", host.port)
                owner.process.communicate(timeout=PATIENCE)
            delivered = Counter(number_of(content) for _, _, content in host.got)
        assert set(delivered) == set(range(60)), "nothing is lost"
        assert kills >= 5
        # An owner has four attempts in hand at most.
        assert sum(delivered.values()) - 60 <= 4 * kills
