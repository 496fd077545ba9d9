"""Queues over brokers: the same steps as in a folder, with real brokers that are killed, and workers that are."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading
import time
from itertools import count
from pathlib import Path

import kombu
import pytest

from brokers import RabbitMQ, Redis, done_by_threads
from lamson import brokerlink
from lamson.brokerlink import BrokerError, Link, Place, linked
from lamson.errors import QueueError, SMTPError
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import Router, route, stateless
from lamson.server import QueueReceiver, SMTPReceiver
from processes import eventually

RAW = b"From: a@example.com\r\nTo: list@test.com\r\nSubject: hi\r\n\r\nHello\r\n"
numbers = count()


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    with Redis(tmp_path_factory.mktemp("redis")) as broker:
        yield broker


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory):
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


def a_name():
    return f"q{next(numbers)}"


@pytest.fixture(params=["memory", "redis", "rabbitmq"])
def url(request):
    """The URL of a queue that nobody has used, for each broker."""
    if request.param == "memory":
        return f"memory://?queue={a_name()}"
    return request.getfixturevalue(request.param).url(a_name())


@pytest.fixture(params=["redis", "rabbitmq"])
def served(request):
    """The URL of a queue that other processes can reach; a dead one's messages come back within a second or so."""
    options = {"visibility_timeout": 1} if request.param == "redis" else {}
    return request.getfixturevalue(request.param).url(a_name(), **options)


@pytest.fixture
def box(url):
    return Queue(url)


def request(data=RAW, sender="zed@example.com", to=("list@test.com",)):
    return MailRequest("peer", sender, list(to) if to is not None else None, data)


class TestInAndOut:
    def test_messages_come_out_in_the_order_they_went_in(self, box):
        keys = [box.push(b"Subject: %d\r\n\r\n" % number) for number in range(20)]
        assert box.count() == 20 and box.keys() == keys
        assert [box.pop()[0] for _ in range(20)] == keys
        assert box.pop() == (None, None) and box.count() == 0

    @pytest.mark.parametrize(
        "raw",
        [
            RAW,
            b"Delivered-To: other@test.com\nReturn-Path: <other@example.com>\n\nBody\n",
            b"Subject: mixed\r\n\r\nbare \n and \r and \x00 and \xff\n.\n..\r\n",
            bytes(range(256)),
            b"",
            b"\n",
            b"x" * 3_000_000,
        ],
        ids=["usual", "envelope", "mixed", "binary", "empty", "newline", "large"],
    )
    def test_bytes_and_envelope_come_back_exactly(self, box, raw):
        box.push(request(raw, to=["list@test.com", "почта@пример.рф"]))
        message = box.pop()[1]
        assert message.original == raw
        assert message.envelope == ("zed@example.com", ["list@test.com", "почта@пример.рф"])

    def test_bytes_without_an_envelope_come_back_exactly(self, box):
        for raw in (RAW, b"", bytes(range(256))):
            box.push(raw)
            assert box.pop()[1].original == raw

    def test_get_leaves_and_remove_takes_and_the_others_keep_their_order(self, box):
        keys = [box.push(request()) for _ in range(4)]
        assert box.get(keys[1]).original == RAW and box.get("no-such-key") is None
        box.remove(keys[2])
        with pytest.raises(QueueError, match=keys[2]):
            box.remove(keys[2])
        assert box.keys() == [keys[0], keys[1], keys[3]]

    def test_entries_tell_what_there_is(self, box):
        keys = [box.push(request(to=["a@test.com", "b@test.com"]), reason="550 No."), box.push(RAW)]
        first, second = box.entries()
        assert first[:3] == (keys[0], "zed@example.com", ["a@test.com", "b@test.com"])
        assert (first.reason, second.reason) == ("550 No.", "")
        assert second[:4] == (keys[1], "a@example.com", ["list@test.com"], len(RAW)) and 0 <= second.age < 60

    def test_clear_takes_everything(self, box):
        for _ in range(5):
            box.push(RAW)
        box.clear()
        assert box.count() == 0 and box.pop() == (None, None)

    def test_messages_over_the_limit_are_moved_or_dropped(self, url, tmp_path):
        box = Queue(url, pop_limit=100, oversize_dir=tmp_path / "big")
        big, small = box.push(RAW + b"x" * 100), box.push(b"Subject: small\r\n\r\n")
        assert box.oversize(big) and not box.oversize(small)
        assert box.pop()[0] == small
        assert Queue(tmp_path / "big").keys() == [big]
        box.push(RAW + b"x" * 100)
        assert Queue(url, pop_limit=100).pop() == (None, None) and box.count() == 0

    def test_messages_over_the_limit_are_moved_from_a_folder_to_a_broker(self, url, tmp_path):
        box = Queue(tmp_path / "in", pop_limit=10, oversize_dir=url)
        key = box.push(RAW)
        assert box.pop() == (None, None) and box.count() == 0
        assert Queue(url).pop()[0] == key

    def test_what_another_program_has_put_there_can_be_read(self, url):
        place = Place.of(url)
        with kombu.Connection(place.url) as connection:
            connection.SimpleQueue(place.queue).put({"not": "mail"})
            kombu.Producer(connection.channel()).publish(
                "Subject: zip\n\nHello\n", routing_key=place.queue, serializer="raw", compression="zlib"
            )
        box = Queue(url)
        key = box.keys()[0]
        assert len(key) == 32 and box.get(key).original == b'{"not": "mail"}'
        with box.claim() as claim:
            assert claim.key == key
            claim.done()
        assert box.pop()[1]["subject"] == "zip"

    def test_what_cannot_be_read_is_moved_to_the_dead_and_the_rest_is_handled(self, url, caplog):
        box, place = Queue(url), Place.of(url)
        assert box.count() == 0  # on AMQP there is a queue from here on
        with kombu.Connection(place.url) as connection:
            kombu.Producer(connection.channel()).publish(
                b"no zip",
                routing_key=place.queue,
                headers={"compression": "application/x-gzip"},
                content_type="message/rfc822",
                content_encoding="binary",
            )
        key = box.push(RAW)
        assert box.pop()[0] == key and box.pop() == (None, None)
        assert "cannot be read" in caplog.text and Queue(dead(url)).count() == 1


def dead(url):
    queue = Place.of(url).queue
    return url.replace(f"queue={queue}", f"queue={queue}.dead")


class TestClaims:
    def test_a_claim_takes_the_message_out_when_it_is_done_and_not_before(self, box):
        key = box.push(request())
        with box.claim() as claim:
            assert (claim.key, claim.count, claim.message.original) == (key, 1, RAW)
        with box.claim() as claim:
            assert (claim.key, claim.count) == (key, 2)
            claim.done()
        with box.claim() as claim:
            assert claim is None

    def test_an_error_leaves_the_message(self, box):
        key = box.push(request())
        with pytest.raises(ZeroDivisionError), box.claim():
            1 / 0  # noqa: B018
        with box.claim() as claim:
            assert (claim.key, claim.count) == (key, 2)

    def test_looking_at_a_message_is_no_claim(self, box):
        keys = [box.push(request()) for _ in range(3)]
        for _ in range(4):
            assert box.keys() == keys and box.get(keys[1])
        with box.claim(lambda key: key == keys[2]) as claim:
            assert (claim.key, claim.count) == (keys[2], 1)
            claim.done()
        for key in keys[:2]:
            with box.claim() as claim:
                assert (claim.key, claim.count) == (key, 1)
                claim.done()

    def test_one_that_nobody_wants_is_not_looked_for_for_ever(self, box):
        keys = [box.push(request()) for _ in range(3)]
        with box.claim(lambda key: False) as claim:
            assert claim is None
        assert sorted(box.keys()) == sorted(keys)

    def test_nobody_else_gets_a_claimed_message(self, box, url):
        first, second = box.push(RAW), box.push(RAW)
        other = Queue(url)
        with box.claim() as one, other.claim() as two, box.claim() as three:
            assert (one.key, two.key, three) == (first, second, None)
            assert other.pop() == (None, None)
            third = other.push(RAW)
            one.done()
        assert [box.pop()[0] for _ in range(3)] == [third, second, None]

    def test_a_claim_is_narrowed_to_the_recipients_that_are_left(self, box):
        key = box.push(request(to=["a@test.com", "b@test.com"]))
        with box.claim() as claim:
            claim.narrow(["b@test.com"], "450 Later")
        (entry,) = box.entries()
        assert (entry.key, entry.recipients, entry.reason) == (key, ["b@test.com"], "450 Later")
        with box.claim() as claim:
            assert claim.count == 2 and claim.message.original == RAW
            claim.done()
        assert box.count() == 0

    def test_eight_threads_share_the_work_and_nobody_does_it_twice(self, box, url):
        keys = [box.push(RAW) for _ in range(100)]
        assert sorted(done_by_threads(url)) == sorted(keys) and box.count() == 0


class TestQueueReceiver:
    def test_it_routes_a_message_by_its_envelope_and_takes_it_out(self, url):
        taken = []

        @route("(name)@test.com", name="[a-z]+")
        @stateless
        def START(message, name):
            taken.append((name, message.original))

        Queue(url).push(request(to=["joe@test.com", "ann@test.com"]))
        QueueReceiver(url).start(one_shot=True)
        assert sorted(taken) == [("ann", RAW), ("joe", RAW)] and Queue(url).count() == 0

    def test_what_is_wanted_later_stays_for_three_attempts(self, url, tmp_path):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        attempts = []

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            attempts.append(name)
            if name == "later":
                raise SMTPError(450, "Not now.")

        Queue(url).push(request(to=["later@test.com", "good@test.com"]))
        for left in (1, 1, 0):
            QueueReceiver(url).start(one_shot=True)
            assert Queue(url).count() == left
        assert sorted(attempts) == ["good", "later", "later", "later"]
        (entry,) = Router.UNDELIVERABLE_QUEUE.entries()
        assert (entry.recipients, entry.reason) == (["later@test.com"], "450 Not now.")

    def test_without_an_undeliverable_queue_it_goes_to_the_dead_after_three_failures(self, url):
        failing = [True]

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            if failing:
                raise ValueError("no luck")

        key = Queue(url).push(request(to=["a@test.com"]))
        for _ in range(3):
            QueueReceiver(url).start(one_shot=True)
            assert Queue(url).keys() == [key]
        QueueReceiver(url).start(one_shot=True)
        assert Queue(url).count() == 0
        (entry,) = Queue(dead(url)).entries()
        assert (entry.key, entry.recipients) == (key, ["a@test.com"])
        assert entry.reason == "3 attempts to handle it did not end well"
        assert QueueReceiver(dead(url)).retry([key, "no-such-key"]).keys() == {key, "no-such-key"}
        failing.clear()
        assert QueueReceiver(dead(url)).retry([key]) == {} and Queue(dead(url)).count() == 0


CLAIM = """
    import sys, time
    from lamson.queue import Queue
    with Queue(sys.argv[1]).claim() as claim:
        print(claim and f"{claim.key} {claim.count}", flush=True)
        if claim:
            time.sleep(600)
"""


class TestDeath:
    """Workers that are killed, and brokers that are."""

    def claimed_and_killed(self, place):
        """What a process has claimed before it was killed: key and count. None when there was nothing to claim."""
        command = [sys.executable, "-c", textwrap.dedent(CLAIM), str(place)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            line = child.stdout.readline().strip()
            child.kill()
        return None if line == "None" else line

    def test_a_message_that_kills_its_worker_three_times_is_undeliverable(self, served, tmp_path):
        self.killed_three_times(served, tmp_path)
        Queue(served).push(request(to=["b@test.com"]))
        Router.UNDELIVERABLE_QUEUE = None
        for _ in range(3):
            eventually(lambda: self.claimed_and_killed(served), "a claim")
        eventually(lambda: QueueReceiver(served).start(one_shot=True) or Queue(dead(served)).count(), "the dead")
        (entry,) = Queue(dead(served)).entries()
        assert entry.recipients == ["b@test.com"] and "3 attempts" in entry.reason

    def test_so_it_is_in_a_folder(self, tmp_path):
        self.killed_three_times(tmp_path / "queue", tmp_path)

    def killed_three_times(self, place, tmp_path):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        handled = []

        @route(".+")
        @stateless
        def START(message):
            handled.append(message)

        box = Queue(place)
        key = box.push(request(to=["a@test.com"]))
        for claims in (1, 2, 3):
            assert eventually(lambda: self.claimed_and_killed(place), "a claim") == f"{key} {claims}"
        eventually(
            lambda: QueueReceiver(str(place)).start(one_shot=True) or Router.UNDELIVERABLE_QUEUE.count(),
            "the end of it",
        )
        (entry,) = Router.UNDELIVERABLE_QUEUE.entries()
        assert entry.recipients == ["a@test.com"] and "3 attempts to handle it did not end" in entry.reason
        assert not handled and box.count() == 0

    def test_what_is_in_hand_for_long_is_not_given_to_others(self, redis, monkeypatch):
        box = Queue(redis.url(a_name(), visibility_timeout=1))
        signs = []
        keep = Link.keep
        monkeypatch.setattr(Link, "keep", lambda self, message: (keep(self, message), signs.append(message)))
        key = box.push(RAW)
        with box.claim() as claim:
            eventually(lambda: len(signs) > 10, "signs of life")  # four a second
            assert box.pop() == (None, None)
            claim.done()
        assert key and box.count() == 0

    def test_an_amqp_broker_hears_that_we_are_alive_while_a_handler_takes_its_time(self, rabbitmq, monkeypatch):
        monkeypatch.setattr(brokerlink, "SILENCE", 2)
        monkeypatch.setattr(brokerlink, "KEEP", 0.5)
        monkeypatch.setattr(brokerlink, "_keepers", {})  # one that is there may wait as long as it had to before
        signs = []
        keep = Link.keep
        monkeypatch.setattr(Link, "keep", lambda self, message: (keep(self, message), signs.append(message)))
        box = Queue(rabbitmq.url(a_name()))
        box.push(RAW)
        with box.claim() as claim:
            eventually(lambda: len(signs) > 14, "signs of life")  # seven seconds, more than three silences
            assert box.pop() == (None, None)
            claim.done()
        assert box.count() == 0 and box.pop() == (None, None)

    def test_a_process_that_dies_while_it_takes_a_message_from_redis_takes_nothing_with_it(self, redis, monkeypatch):
        box = Queue(redis.url(a_name(), visibility_timeout=1))
        key = box.push(RAW)

        def died(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
            from lamson.redischannel import QoS

            dying.setattr(QoS, "append", died)
            box.pop()
        assert box.count() == 0
        found = eventually(lambda: (popped := box.pop())[0] and popped, "its return")
        assert found[0] == key and found[1].original == RAW

    def test_machines_whose_clocks_differ_do_not_take_what_the_other_has_in_hand(self, redis, monkeypatch):
        import kombu.transport.redis

        box = Queue(redis.url(a_name(), visibility_timeout=60))
        box.push(RAW)

        def tomorrow(clock=time.time):
            return clock() + 86400

        with box.claim() as claim:
            with monkeypatch.context() as later:
                later.setattr(time, "time", tomorrow)
                later.setattr(kombu.transport.redis, "time", tomorrow)
                link = Link(box.mbox.place)
                assert link.take() is None
                link.close()
            claim.done()
        assert box.count() == 0

    def test_what_is_no_message_is_moved_out_of_the_list(self, redis, caplog):
        from redis import Redis as Client

        url = redis.url(a_name())
        name = Place.of(url).queue
        with Client(port=redis.port) as client:
            client.rpush(name, b"\xff no JSON", b"[1]", b'{"properties": {}}')
            key = Queue(url).push(RAW)
            assert Queue(url).pop()[0] == key and Queue(url).pop() == (None, None)
            assert client.llen(f"{name}.unreadable") == 3 and "no message" in caplog.text

    @pytest.mark.parametrize("kind", [Redis, RabbitMQ])
    def test_what_was_pushed_survives_the_brokers_death_and_a_push_without_it_is_an_error(self, kind, tmp_path):
        with kind(tmp_path / "broker") as broker:
            box = Queue(broker.url("posts"))
            keys = [box.push(request()) for _ in range(20)]
            with box.claim() as claim:
                broker.kill()
                with pytest.raises(BrokerError, match="queue=posts"):
                    box.push(RAW)
                with pytest.raises(OSError, match="queue=posts"):
                    claim.done()
            broker.start()
            eventually(lambda: set(keys[1:]) <= set(box.keys()), lambda: f"all of {keys} among {box.keys()}")
            last = box.push(RAW)
            assert box.keys()[-1] == last

    def test_a_receiver_goes_on_when_its_broker_is_back(self, tmp_path, caplog):
        handled = []

        @route(".+")
        @stateless
        def START(message):
            handled.append(message["subject"])

        with Redis(tmp_path / "broker") as broker:
            receiver = QueueReceiver(broker.url("posts"), sleep=0.05)
            receiver.bind()
            thread = threading.Thread(target=receiver.start)
            thread.start()
            try:
                receiver.queue.push(request(b"Subject: one\n\n"))
                eventually(lambda: handled == ["one"], "the first")
                broker.kill()
                eventually(lambda: "cannot be read" in caplog.text, "a word about it")
                with pytest.raises(OSError, match="queue=posts"):
                    receiver.bind()
                broker.start()
                receiver.queue.push(request(b"Subject: two\n\n"))
                eventually(lambda: handled == ["one", "two"], "the second")
            finally:
                receiver.close()
                thread.join()

    def test_a_client_keeps_its_message_when_neither_queue_of_a_broker_takes_it(self):
        gone = "redis://127.0.0.1:1/0?queue="
        Router.UNDELIVERABLE_QUEUE = Queue(gone + "undeliverable")

        @route("(name)@test.com", name=".+")
        @stateless
        def START(message, name):
            Queue(gone + "posts").push(message)

        receiver = SMTPReceiver("127.0.0.1", 0)
        assert receiver.process_message("peer", "a@b.c", ["d@test.com", "e@test.com"], RAW).startswith("451 4.3.0 ")


class TestTheAdministratorsQueues:
    def declare(self, broker, name, **arguments):
        with kombu.Connection(Place.of(broker.url(name)).url) as connection:
            kombu.Queue(name, channel=connection.channel(), queue_arguments=arguments).declare()

    def test_a_queue_of_another_type_is_taken_as_it_is(self, rabbitmq):
        self.declare(rabbitmq, "quorum", **{"x-queue-type": "quorum"})
        box = Queue(rabbitmq.url("quorum"))
        keys = [box.push(request()) for _ in range(3)]
        assert [box.pop()[0] for _ in range(3)] == keys

    def test_a_message_that_the_broker_refuses_is_an_error(self, rabbitmq):
        self.declare(rabbitmq, "full", **{"x-max-length": 1, "x-overflow": "reject-publish"})
        box = Queue(rabbitmq.url("full"))
        box.push(RAW)
        with pytest.raises(BrokerError):
            box.push(RAW)
        assert box.count() == 1

    def test_a_message_for_a_queue_that_was_deleted_is_an_error(self, rabbitmq):
        box = Queue(rabbitmq.url("deleted"))
        box.push(RAW)
        with kombu.Connection(box.mbox.place.url) as connection:
            connection.channel().queue_delete("deleted")
        with pytest.raises(BrokerError, match="NO_ROUTE"):
            box.push(RAW)
        assert box.push(RAW) and box.count() == 1  # over a new connection, which makes it anew

    def test_a_queue_that_a_policy_keeps_short_refuses_and_loses_nothing(self, rabbitmq):
        box = Queue(rabbitmq.url("short"))
        keys = [box.push(RAW) for _ in range(3)]
        rabbitmq.control("set_policy", "short", "^short$", '{"max-length": 3, "overflow": "reject-publish"}')
        eventually(lambda: refused(box), "a refusal")
        with box.claim() as claim:
            assert claim.key in keys  # and in vain
        assert set(keys) <= set(box.keys())

    def test_a_virtual_host_of_another_name_is_another_place(self, rabbitmq):
        rabbitmq.control("add_vhost", "my/mail")
        rabbitmq.control("set_permissions", "-p", "my/mail", "guest", ".*", ".*", ".*")
        there = Queue(rabbitmq.url("posts").replace("//?", "/my%2Fmail?"))
        there.push(RAW)
        assert (there.count(), Queue(rabbitmq.url("posts")).count()) == (1, 0)
        with pytest.raises(BrokerError, match="vhost nowhere not found"):
            Queue(rabbitmq.url("posts").replace("//?", "/nowhere?")).push(RAW)

    def test_a_claim_in_a_queue_that_was_deleted_is_an_error_and_later_ones_go_to_a_new_queue(self, rabbitmq):
        box = Queue(rabbitmq.url("vanished"))
        box.push(RAW)
        with pytest.raises(BrokerError, match="NO_ROUTE"), box.claim() as claim:
            with kombu.Connection(box.mbox.place.url) as connection:
                connection.channel().queue_delete("vanished")
            assert claim.count == 1
        assert box.push(RAW) and box.count() == 1


def refused(box):
    """Whether the broker refuses a message for this queue."""
    try:
        box.push(RAW)
    except BrokerError:
        return True
    return False


class TestBrokersThatTakeNothing:
    """They hang, or are full. What is asked comes to an end, and what they have can be had again."""

    @pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
    @pytest.mark.parametrize("asked", ["push", "count", "pop", "clear", "keys", "claim"])
    def test_one_that_hangs_is_an_error(self, kind, asked, request, monkeypatch):
        monkeypatch.setattr(brokerlink, "ANSWER_TIME", 0.5)
        monkeypatch.setattr(brokerlink, "CONNECT_TIME", 0.5)
        broker = request.getfixturevalue(kind)
        box = Queue(broker.url(a_name(), visibility_timeout=1) if kind == "redis" else broker.url(a_name()))
        keys = {box.push(RAW), box.push(RAW)}
        with contextlib.ExitStack() as claimed:
            if asked == "claim":
                claimed.enter_context(box.claim())
            with broker.hanging(), pytest.raises(BrokerError, match="queue="):
                {"push": lambda: box.push(RAW), "claim": claimed.close}.get(asked, getattr(box, asked))()
        monkeypatch.undo()
        found = set()
        if asked == "pop":  # it was asked twice, as may be: what it was asked first it has done, and nobody heard
            assert box_pop(box) in keys
        elif asked != "clear":  # which the broker has done all the same, later
            eventually(lambda: found.add(box_pop(box)) or found >= keys, "both")

    def test_a_rabbitmq_without_memory_is_an_error_and_gives_out_what_it_has(self, rabbitmq, monkeypatch):
        monkeypatch.setattr(brokerlink, "ANSWER_TIME", 2)
        monkeypatch.setattr(brokerlink, "SILENCE", 2)  # so that it says once a second that it is there
        box = Queue(rabbitmq.url(a_name()))
        keys = [box.push(RAW) for _ in range(3)]
        rabbitmq.control("set_vm_memory_high_watermark", "0.00000001")
        try:
            for content in (RAW, RAW + b"x" * 20_000_000):
                with pytest.raises(BrokerError, match="queue="):
                    box.push(content)
            assert box.pop()[0] == keys[0]
            with box.claim() as claim:
                assert claim.key == keys[1]
                claim.done()
        finally:
            rabbitmq.control("set_vm_memory_high_watermark", "0.6")
        last = eventually(lambda: not refused(box) and box.push(RAW), "room")
        popped = [box.pop()[0] for _ in range(box.count())]
        assert popped[0] == keys[2] and popped[-1] == last

    def test_a_redis_without_memory_is_an_error_and_gives_out_what_it_has(self, redis):
        from redis import Redis as Client

        box = Queue(redis.url(a_name(), visibility_timeout=1))
        keys = [box.push(RAW) for _ in range(4)]
        with Client(port=redis.port) as client:
            try:
                client.config_set("maxmemory", "1mb")
                with pytest.raises(BrokerError, match="maxmemory"):
                    box.push(RAW)
                assert box.count() == 4 and box.pop()[0] == keys[0]
                with box.claim() as claim:
                    claim._held._link.keep(claim._held.message)
                    claim.done()
                assert box.pop()[0] == keys[2]
                with pytest.raises(BrokerError, match="maxmemory"), box.claim() as claim:
                    pass  # in vain, and there is no room to put it back
                assert claim.key == keys[3]
            finally:
                client.config_set("maxmemory", "0")
        assert eventually(lambda: box_pop(box), "the one whose claim was in vain") == keys[3]

    def test_a_redis_without_memory_moves_what_is_no_message_and_can_be_cleared(self, redis):
        from redis import Redis as Client

        box = Queue(redis.url(a_name()))
        keys = [box.push(RAW) for _ in range(2)]
        with Client(port=redis.port) as client:
            client.rpush(box.mbox.place.queue, b"no message")
            try:
                client.config_set("maxmemory", "1mb")
                assert box_pop(box) == keys[0]
                box.clear()
            finally:
                client.config_set("maxmemory", "0")
            assert client.llen(f"{box.mbox.place.queue}.unreadable") == 1
        assert box.count() == 0

    def test_a_redis_that_throws_old_mail_away_is_refused(self, redis):
        from redis import Redis as Client

        with Client(port=redis.port) as client:
            try:
                client.config_set("maxmemory-policy", "allkeys-lru")
                with pytest.raises(BrokerError, match="noeviction"):
                    Queue(redis.url(a_name())).push(RAW)
            finally:
                client.config_set("maxmemory-policy", "noeviction")

    def test_a_redis_that_forgets_mail_when_it_crashes_says_so_once(self, redis, caplog):
        from redis import Redis as Client

        box = Queue(redis.url(a_name()))
        with Client(port=redis.port) as client:
            try:
                client.config_set("appendonly", "no")
                box.push(RAW)
                with box.claim() as claim:
                    box.push(RAW)  # over a second connection
                    claim.done()
            finally:
                client.config_set("appendonly", "yes")
        assert caplog.text.count("appendonly no") == 1

    def test_a_redis_that_we_may_not_ask_about_itself_is_taken_as_it_is(self, redis):
        from redis import Redis as Client

        with Client(port=redis.port) as client:
            client.acl_setuser("modest", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
        box = Queue(redis.url(a_name()).replace("redis://", "redis://modest:any@"))
        assert box.push(RAW) == box.pop()[0]

    def test_a_redis_that_becomes_a_replica_is_an_error_and_what_was_claimed_comes_back(self, redis):
        from redis import Redis as Client

        box = Queue(redis.url(a_name(), visibility_timeout=1))
        keys = [box.push(RAW) for _ in range(3)]
        with Client(port=redis.port) as client:
            try:
                for end in ("done", "in vain"):
                    with pytest.raises(BrokerError, match="read only"), box.claim() as claim:
                        client.replicaof("127.0.0.1", "1")
                        if end == "done":
                            claim.done()
                    with pytest.raises(BrokerError, match="read only"):
                        box.push(RAW)
                    with pytest.raises(BrokerError, match="read only"):
                        box.pop()
                    client.replicaof("no", "one")
            finally:
                client.replicaof("no", "one")
        found = set()
        eventually(lambda: found.add(box_pop(box)) or found >= set(keys), "all three")

    @pytest.mark.parametrize("harm", ["script_flush", "client_kill"])
    def test_a_redis_that_forgets_scripts_or_connections_between_the_steps_is_no_harm(self, redis, harm):
        from redis import Redis as Client

        box = Queue(redis.url(a_name(), visibility_timeout=60))
        with Client(port=redis.port) as client:

            def do_harm():
                if harm == "script_flush":
                    client.script_flush()
                    return
                for other in client.client_list():
                    if other["id"] != str(client.client_id()):
                        client.client_kill_filter(_id=other["id"])

            do_harm()
            keys = [box.push(RAW) for _ in range(2)]
            do_harm()
            with box.claim() as claim:
                do_harm()
                assert claim.key == keys[0]
                claim.done()
            do_harm()
            with box.claim() as claim:
                do_harm()
            do_harm()
            assert box.count() == 1
            do_harm()
            assert box.pop()[0] == keys[1]
            assert not client.exists(f"{box.mbox.place.queue}.claimed")


def box_pop(box):
    return box.pop()[0]


class TestTheThreadThatTellsOfOurBeingAlive:
    def test_without_a_thread_nothing_is_claimed_and_the_message_waits(self, served, monkeypatch):
        box = Queue(served)
        key = box.push(request())
        monkeypatch.setattr(brokerlink, "_keepers", {})
        with monkeypatch.context() as starved:

            def none_left(self):
                raise RuntimeError("can't start new thread")

            starved.setattr(threading.Thread, "start", none_left)
            for _ in range(4):
                with pytest.raises(BrokerError, match="can't start new thread"), box.claim():
                    pass
                assert box.count() == 1
        with box.claim() as claim:
            assert (claim.key, claim.count) == (key, 1)
            assert brokerlink._keepers[box.mbox.place.url]._thread.is_alive()
            claim.done()

    def test_one_connection_that_is_busy_does_not_keep_the_others_from_being_told(self, redis, monkeypatch):
        told = []
        keep = Link._keep
        monkeypatch.setattr(Link, "_keep", lambda self, message: (keep(self, message), told.append(self)))
        boxes = [Queue(redis.url(a_name(), visibility_timeout=1)) for _ in range(2)]
        for box in boxes:
            box.push(RAW)
        with boxes[0].claim() as busy, boxes[1].claim() as other:
            with busy._held._link._guard:
                before = len(told)
                eventually(lambda: len(told) > before + 4, "signs of life")
                assert busy._held._link not in told[before + 1 :]
            busy.done()
            other.done()

    def test_a_broker_that_hangs_does_not_keep_another_one_from_being_told(self, redis, monkeypatch):
        told, hanging, over = [], threading.Event(), threading.Event()
        boxes = [Queue(redis.url(a_name(), visibility_timeout=1)) for _ in range(2)]
        boxes.append(Queue(redis.url(a_name(), visibility_timeout=1).replace("/0?", "/1?")))
        keep = Link._keep

        def keep_or_hang(self, message):
            if self.place.url.endswith("/1"):
                hanging.set()
                over.wait()
            keep(self, message)
            told.append(self.place.queue)

        monkeypatch.setattr(Link, "_keep", keep_or_hang)
        with contextlib.ExitStack() as claimed:
            for box in boxes:
                box.push(RAW)
                claimed.enter_context(box.claim())
                claimed.callback(over.set)
            assert hanging.wait(60)
            before = len(told)
            eventually(lambda: {box.mbox.place.queue for box in boxes[:2]} <= set(told[before + 2 :]), "signs of life")

    def test_an_error_that_nobody_has_thought_of_does_not_end_it(self, redis, monkeypatch, caplog):
        told = []

        def keep(self, message):
            told.append(self)
            raise AttributeError("no such thing")

        monkeypatch.setattr(Link, "keep", keep)
        box = Queue(redis.url(a_name(), visibility_timeout=1))
        box.push(RAW)
        with box.claim() as claim:
            eventually(lambda: len(told) > 2, "a second try")
            claim.done()
        assert "no such thing" in caplog.text


class TestConnections:
    def test_one_is_kept_for_the_next_message(self, served):
        place = Place.of(served)
        Queue(served).push(RAW)
        (link,) = brokerlink._idle[place]
        Queue(served).push(RAW)
        Queue(served).pop()
        assert brokerlink._idle[place] == [link]

    def test_a_child_does_not_use_its_parents(self, served, tmp_path):
        script = """
            import os, sys
            from lamson.queue import Queue
            box = Queue(sys.argv[1])
            box.push(b"first")
            child = os.fork()
            for number in range(50):
                box.push(b"Subject: %d\\n\\n" % number)
            if child:
                assert os.waitpid(child, 0)[1] == 0
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(script), served], check=True, timeout=60)
        assert Queue(served).count() == 101

    def test_one_that_the_broker_has_closed_is_not_used_again(self, rabbitmq, monkeypatch):
        monkeypatch.setattr(brokerlink, "SILENCE", 1)
        box = Queue(rabbitmq.url(a_name()))
        box.push(RAW)
        (link,) = brokerlink._idle[box.mbox.place]
        eventually(lambda: not link.alive(), "the broker's good-bye")
        box.push(RAW)
        assert box.count() == 2


class TestTLS:
    @pytest.mark.parametrize("kind", [Redis, RabbitMQ])
    def test_the_certificate_has_to_be_trusted_and_the_hosts(self, kind, tmp_path):
        certificates = Path(__file__).parent / "certs"
        with kind(tmp_path / "broker", certificate=certificates / "one.pem") as broker:
            trusting = broker.url("posts", ca_certs=certificates / "one.pem")
            box = Queue(trusting)
            key = box.push(RAW)
            assert box.pop()[0] == key
            for stranger in (
                broker.url("posts"),  # nobody whom the system trusts has signed it
                broker.url("posts", ca_certs=certificates / "two.pem"),
                trusting.replace("127.0.0.1", "127.1"),  # a name of this host that the certificate does not have
            ):
                with pytest.raises(BrokerError, match="(?i)certificate"):
                    Queue(stranger).push(RAW)
            assert box.count() == 0


class TestPlace:
    @pytest.mark.parametrize(
        ("url", "words"),
        [
            ("redis://localhost/0", "redis://localhost/0\\?queue=posts"),
            ("amqp://me:secret@host//?queue=a/b", "amqp://me:\\*\\*\\*@host//.*letters, digits"),
            ("sqs://x?queue=posts", "amqp, amqps, redis, rediss, memory"),
            ("http://me:secret@x?queue=posts", "amqp, amqps, redis, rediss, memory"),
            ("redis://x?queue=a&visibility_timeout=soon", "number of seconds"),
            ("redis://x?queue=a&heartbeat=1&foo", "and not heartbeat, foo"),
        ],
    )
    def test_one_that_cannot_be_is_refused_and_shows_no_password(self, url, words):
        with pytest.raises(QueueError, match=words) as caught:
            Queue(url)
        assert "secret" not in str(caught.value)

    def test_the_password_is_not_shown(self):
        box = Queue("amqp://me:secret@localhost//?queue=posts")
        assert box.dir == "amqp://me:***@localhost//?queue=posts" and "secret" not in repr(box.dir)

    @pytest.mark.parametrize("url", ["redis://127.0.0.1:1/no-number?queue=a", "amqp://127.0.0.1:no-number//?queue=a"])
    def test_one_that_kombu_cannot_read_is_an_error_of_the_queues(self, url):
        with pytest.raises(QueueError, match="no-number"):
            Queue(url).push(RAW)

    def test_nobody_there_is_an_error_at_the_first_use(self):
        box = Queue("redis://:secret@127.0.0.1:1/0?queue=posts")
        with pytest.raises(BrokerError) as caught:
            box.push(RAW)
        assert "secret" not in str(caught.value) and "queue=posts" in str(caught.value)

    def test_without_kombu_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "kombu.connection", None)
        with pytest.raises(QueueError, match=r"lamson\[broker\]"), linked(Place.of("memory://?queue=without")):
            pass

    def test_threads_that_need_kombu_at_the_same_moment_all_get_it(self):
        script = """
            import sys, threading
            from lamson.queue import Queue
            together, counts = threading.Barrier(16), []

            def count(number):
                together.wait()
                counts.append(Queue("memory://?queue=posts").count())

            sys.setswitchinterval(1e-5)
            threads = [threading.Thread(target=count, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert counts == [0] * 16
        """
        for _ in range(3):
            subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)

    def test_kombu_is_imported_by_nobody_who_needs_no_broker(self, tmp_path):
        script = (
            "import sys, lamson.server, lamson.utils, lamson.queue, lamson.commands\n"
            f"lamson.queue.Queue({str(tmp_path / 'queue')!r}).push(b'')\n"
            "assert not {'kombu', 'amqp', 'redis'} & set(sys.modules), sys.modules.keys()\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class TestTheCommandLine:
    def lamson(self, *argv, code=0, cwd=None):
        command = [sys.executable, "-P", "-m", "lamson", *argv]
        done = subprocess.run(command, capture_output=True, timeout=60, cwd=cwd)
        assert done.returncode == code, done
        return (done.stdout if code == 0 else done.stderr).decode()

    def test_queue_looks_into_a_brokers_queue(self, served):
        box = Queue(served)
        keys = [box.push(request(), reason="550 No.") for _ in range(4)]
        assert self.lamson("queue", "-name", served, "-count") == "4\n"
        assert self.lamson("queue", "-name", served, "-keys").split() == keys
        assert self.lamson("queue", "-name", served, "-get", keys[1]).encode() == RAW
        assert self.lamson("queue", "-name", served, "-list").count("    550 No.\n") == 4
        self.lamson("queue", "-name", served, "-remove", keys[2])
        assert self.lamson("queue", "-name", served, "-pop").encode() == RAW
        assert box.keys() == [keys[1], keys[3]]
        self.lamson("queue", "-name", served, "-clear")
        assert "is empty" in self.lamson("queue", "-name", served, "-pop", code=1)

    def test_queue_without_a_broker_is_refused_in_a_line(self):
        refused = self.lamson("queue", "-name", "amqp://me:secret@127.0.0.1:1//?queue=posts", "-count", code=1)
        assert refused.startswith("lamson: amqp://me:***@127.0.0.1:1//?queue=posts: ") and refused.count("\n") == 1

    def test_a_project_receives_from_a_broker_and_keeps_undeliverable_mail_there(self, served, tmp_path):
        self.lamson("gen", "-project", "p", cwd=tmp_path)
        project = tmp_path / "p"
        boot = project / "config/boot.py"
        undeliverable = dead(served)
        text = boot.read_text().replace('queue.Queue("run/undeliverable")', f"queue.Queue({undeliverable!r})")
        boot.write_text(text.replace("import Relay, SMTPReceiver", "import QueueReceiver, Relay").replace(
            "SMTPReceiver(**settings.receiver_config)", f"QueueReceiver({served!r}, sleep=0.1)"
        ))  # fmt: skip
        handler = project / "app/handlers/sample.py"
        works = handler.read_text()
        handler.write_text(
            works + "\n\ndef deliver(message):\n    raise ValueError('no luck')\n\nrelay.deliver = deliver\n"
        )
        self.lamson("start", cwd=project)
        try:
            key = Queue(served).push(request(to=["joe@test.com"]))
            eventually(lambda: Queue(undeliverable).count() == 1, "undeliverable mail")
        finally:
            self.lamson("stop", cwd=project)
        assert key and Queue(served).count() == 0
        handler.write_text(works + "\n\nrelay.deliver = lambda message: open('done', 'a').write(message.recipient)\n")
        self.lamson("queue", "-name", undeliverable, "-retry", "ALL", cwd=project)
        assert (project / "done").read_text() == "joe@test.com" and Queue(undeliverable).count() == 0

    def test_start_is_refused_when_the_broker_is_not_there(self, tmp_path):
        self.lamson("gen", "-project", "p", cwd=tmp_path)
        boot = tmp_path / "p/config/boot.py"
        boot.write_text(boot.read_text().replace("import Relay, SMTPReceiver", "import QueueReceiver, Relay").replace(
            "SMTPReceiver(**settings.receiver_config)", "QueueReceiver('redis://127.0.0.1:1/0?queue=posts')"
        ))  # fmt: skip
        assert "redis://127.0.0.1:1/0?queue=posts: " in self.lamson("start", code=1, cwd=tmp_path / "p")
        assert not Path(tmp_path / "p/run/smtp.pid").exists() and os.listdir(tmp_path / "p/run") is not None
