"""What becomes of a message that nobody takes or somebody fails on, and which functions run at the same time."""

import contextlib
import sys
import threading

import pytest

from handling import mail, write_module
from lamson import routing
from lamson.errors import SMTPError
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import (
    MemoryStorage,
    Router,
    RoutingBase,
    nolocking,
    route,
    stateless,
)
from lamson.states import KeyedLocks


class TestUndeliverable:
    @pytest.fixture
    def queue(self, tmp_path):
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        return Router.UNDELIVERABLE_QUEUE

    def test_each_recipient_that_nothing_takes_is_kept(self, queue):
        @route("known@test.com")
        def START(message):
            pass

        outcomes = Router.deliver_each(mail(["known@test.com", "Lost@test.com", "gone@test.com"]))
        kept = [queue.get(key) for key in queue.keys()]
        assert sorted(message.To for message in kept) == [["Lost@test.com"], ["gone@test.com"]]
        assert all(message.original == mail().original and message.From == "zed@example.com" for message in kept)
        assert {outcome.recipient: (outcome.handled, outcome.queued) for outcome in outcomes} == {
            "known@test.com": (True, False),
            "lost@test.com": (False, True),
            "gone@test.com": (False, True),
        }

    def test_a_stateless_function_counts_as_taken(self, queue):
        @route(".+")
        @stateless
        def LOG(message):
            pass

        Router.deliver(mail())
        assert queue.count() == 0

    def test_a_message_for_nobody_is_kept(self, queue):
        Router.deliver(MailRequest("queue", None, None, b"Subject: to nobody\r\n\r\nHello\r\n"))
        assert queue.count() == 1

    def test_a_function_that_fails_leaves_the_message_as_it_came_and_moves_to_ERROR(self, queue, app, caplog):
        write_module(
            app,
            "failing",
            """
            @route(".+")
            def START(message):
                message["Subject"] = "changed"
                raise ValueError("no luck")

            @route(".+")
            def ERROR(message):
                return START
            """,
        )
        Router.load(["failing"])
        outcome = Router.deliver_each(mail())[0]
        assert outcome.queued and isinstance(outcome.error, ValueError) and outcome.safe
        assert Router.in_error(sys.modules["failing"].START, mail())
        assert queue.count() == 1
        assert queue.pop()[1].original == mail().original
        assert "ValueError: no luck" in caplog.text
        Router.deliver(mail())
        assert queue.count() == 0
        assert Router.get_state("failing", mail()) == "START"

    def test_a_function_that_exits_fails_like_any_other_and_ends_nothing(self, queue):
        @route(".+")
        def START(message):
            sys.exit(3)

        assert isinstance(Router.deliver_each(mail())[0].error, SystemExit)
        assert queue.count() == 1

    def test_without_ERROR_the_state_stays(self, queue):
        @route(".+")
        def START(message):
            raise ValueError("no luck")

        Router.deliver(mail())
        assert Router.in_state(START, mail())

    def test_without_a_queue_nobody_but_the_client_has_the_message(self):
        @route("fails@test.com")
        def START(message):
            raise ValueError("no luck")

        failed, unknown = Router.deliver_each(mail("fails@test.com")) + Router.deliver_each(mail("other@test.com"))
        assert not failed.safe and not unknown.safe
        assert isinstance(failed.error, ValueError) and unknown.error is None

    def test_a_queue_that_fails_is_told_in_the_outcome(self, caplog):
        class FullDisk:
            def push(self, message, reason):
                raise OSError(28, "No space left on device")

        Router.UNDELIVERABLE_QUEUE = FullDisk()
        outcome = Router.deliver_each(mail())[0]
        assert not outcome.safe and outcome.error.errno == 28
        assert "No space left" in caplog.text

    def test_errors_come_through_without_LOG_EXCEPTIONS_and_the_message_is_kept_all_the_same(self, queue):
        Router.LOG_EXCEPTIONS = False

        @route(".+")
        def START(message):
            raise ValueError("no luck")

        with pytest.raises(ValueError, match="no luck"):
            Router.deliver(mail())
        assert queue.count() == 1

    def test_an_SMTPError_comes_through_after_the_other_recipients_had_their_turn(self, queue):
        calls = []

        @route("(name)@test.com", name=".+")
        def START(message, name):
            calls.append(name)
            if name == "no":
                raise SMTPError(550, "Closed.")

        with pytest.raises(SMTPError, match="550 Closed."):
            Router.deliver(mail(["no@test.com", "yes@test.com"]))
        assert sorted(calls) == ["no", "yes"]
        assert queue.count() == 0

    def test_a_refusal_stays_one_when_another_function_has_failed(self, queue):
        @route(".+")
        @stateless
        def FAILS(message):
            raise ValueError("no luck")

        @route(".+")
        def START(message):
            raise SMTPError(550, "No.")

        assert not Router.deliver_each(mail())[0].safe

    def test_a_state_store_that_fails_costs_one_recipient_and_no_other(self, queue, caplog):
        class Broken(MemoryStorage):
            def get(self, key, sender):
                raise OSError("database is locked")

        Router.STATE_STORE = Broken()
        handled = []

        @route("good@test.com")
        @stateless
        def GOOD(message):
            handled.append(message.recipient)

        @route("bad@test.com")
        def START(message):
            pass

        outcomes = {
            outcome.recipient: outcome for outcome in Router.deliver_each(mail(["good@test.com", "bad@test.com"]))
        }
        assert handled == ["good@test.com"] and outcomes["good@test.com"].safe
        assert outcomes["bad@test.com"].queued and "database is locked" in caplog.text

    def test_what_one_recipients_function_changes_another_ones_does_not_see(self, queue):
        seen = []

        @route("(name)@test.com", name=".+")
        def START(message, name):
            seen.append((name, message["Subject"], message.recipient))
            message["Subject"] = f"[{name}] {message['Subject']}"

        Router.deliver(mail(["one@test.com", "two@test.com"]))
        assert sorted(seen) == [("one", "hi", "one@test.com"), ("two", "hi", "two@test.com")]

    def test_a_function_may_deliver_its_message_again(self, queue):
        seen = []

        @route("one@test.com")
        @stateless
        def ONE(message):
            if not seen:
                seen.append(message.recipient)
                Router.deliver(message)
            seen.append(message.recipient)

        Router.deliver(mail("one@test.com"))
        assert seen == ["one@test.com"] * 3

    def test_call_safely_moves_the_sender_and_keeps_what_fails(self, queue):
        @route(".+")
        def START(message, name=None):
            return END

        @route(".+")
        def END(message):
            raise ValueError("no luck")

        Router.call_safely(START, mail(), {"name": "x"})
        assert Router.in_state(END, mail())
        Router.call_safely(END, mail(), {})
        assert queue.count() == 1


class TestLocking:
    def run_two(self, sender_one, sender_two, patience=0.3):
        """Deliver two messages at once; return how many handlers were ever inside at the same time.

        The first one waits inside for the second, for as many seconds as `patience` has.
        """
        inside, most = [], []
        both = threading.Barrier(2)

        @route(".+")
        def START(message):
            inside.append(1)
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(timeout=patience)
            most.append(len(inside))
            inside.pop()

        threads = [threading.Thread(target=Router.deliver, args=(mail(sender=s),)) for s in (sender_one, sender_two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return max(most)

    def test_one_function_at_a_time_by_default(self):
        assert Router.LOCKING == "all"
        assert self.run_two("a@b", "c@d") == 1

    def test_senders_do_not_wait_for_each_other_under_LOCKING_sender(self):
        Router.LOCKING = "sender"
        assert self.run_two("a@b", "c@d", patience=30) == 2

    def test_one_senders_messages_wait_for_each_other_under_LOCKING_sender(self):
        Router.LOCKING = "sender"
        assert self.run_two("a@b", "a@b") == 1

    def test_nolocking_functions_run_side_by_side(self):
        both = threading.Barrier(2)

        @route(".+")
        @nolocking
        def START(message):
            both.wait(timeout=10)

        threads = [threading.Thread(target=Router.deliver, args=(mail(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not both.broken

    @pytest.mark.parametrize("locking", ["all", "sender"])
    def test_a_handler_may_deliver_to_the_router_itself(self, locking):
        Router.LOCKING = locking
        calls = []

        @route("outer@test.com")
        def START(message):
            Router.deliver(mail("inner@test.com"))
            calls.append("outer")

        @route("inner@test.com")
        @stateless
        def INNER(message):
            calls.append("inner")

        Router.deliver(mail("outer@test.com"))
        assert calls == ["inner", "outer"]

    @pytest.mark.parametrize("locking", ["all", "sender"])
    def test_two_thousand_messages_from_twenty_threads_leave_every_sender_in_its_own_state(self, locking):
        Router.LOCKING = locking
        names = [f"S{number}" for number in range(7)]
        states = {}

        def make(name, following):
            def state(message):
                return states[following]

            state.__name__ = state.__qualname__ = name
            return state

        for number, name in enumerate(["START", *names]):
            states[name] = route(".+")(make(name, ["START", *names][(number + 1) % 8]))

        def client(number):
            for message in range(100):
                Router.deliver(mail(sender=f"sender{(number + message) % 10}@test.com"))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = ["START", *names][200 % 8]  # 2,000 messages of 10 senders: 200 steps each
        assert {Router.get_state(__name__, mail(sender=f"sender{n}@test.com")) for n in range(10)} == {expected}

    def test_a_sender_who_was_moved_on_meanwhile_is_looked_up_again(self):
        """The state that the store names first may be another one when the lock is had."""
        calls = []

        class Moving(MemoryStorage):
            reads = 0

            def get(self, key, sender):
                self.reads += 1
                return "LATER" if self.reads == 1 else "EARLIER"

        Router.STATE_STORE = Moving()

        @route(".+")
        def EARLIER(message):
            calls.append("EARLIER")

        @route(".+")
        @stateless
        def COUNT(message):
            calls.append("COUNT")

        @route(".+")
        def LATER(message):
            calls.append("LATER")

        assert Router.deliver_each(mail())[0].handled
        assert calls == ["COUNT", "EARLIER"]

    def test_locks_of_senders_are_forgotten_when_nobody_holds_them(self):
        locks = KeyedLocks()
        with locks.hold("a"), locks.hold("b"), locks.hold("a"):
            assert set(locks._locks) == {"a", "b"}
        assert not locks._locks

    def test_an_unknown_kind_of_locking_is_an_error_that_names_it(self):
        Router.LOCKING = "everybody"
        Router.LOG_EXCEPTIONS = False

        @route(".+")
        def START(message):
            pass

        with pytest.raises(routing.RoutingError, match="'everybody'"):
            Router.deliver(mail())


class TestAround:
    """What every function is called in."""

    def test_it_is_entered_in_order_and_left_before_the_state_changes(self, fresh_router):
        seen = []

        @contextlib.contextmanager
        def around(name):
            seen.append(f"enter {name}")
            yield
            seen.append(f"leave {name} in {Router.get_state(__name__, message)}")

        def AFTER(message):
            """A state to go to."""

        @route("around@example.com")
        def START(message):
            seen.append("call")
            return AFTER

        Router.AROUND = [lambda: around(1), lambda: around(2)]
        message = MailRequest("", "zed@example.com", "around@example.com", b"")
        Router.deliver(message)
        assert seen == ["enter 1", "enter 2", "call", "leave 2 in START", "leave 1 in START"]
        assert Router.get_state(__name__, message) == "AFTER"

    def test_one_that_fails_at_the_end_makes_the_function_fail(self, fresh_router, tmp_path):
        @contextlib.contextmanager
        def around():
            yield
            raise OSError("no space left")

        def AFTER(message):
            """A state to go to."""

        @route("around@example.com")
        def START(message):
            return AFTER

        Router.AROUND = [around]
        Router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        message = MailRequest("", "zed@example.com", "around@example.com", b"")
        (outcome,) = Router.deliver_each(message)
        assert isinstance(outcome.error, OSError)
        assert (outcome.handled, outcome.queued) == (False, True)
        assert Router.get_state(__name__, message) == "START"


@pytest.mark.parametrize("url", [None, "sqlite:///{}/states.db"], ids=["threads", "processes"])
def test_handlers_that_deliver_to_each_other_do_not_wait_for_ever(url, tmp_path, monkeypatch):
    """With the storage on a file, two storages of it stand for two processes."""
    from lamson import states
    from lamson.database import SQLAlchemyStorage

    monkeypatch.setattr(states, "PATIENCE_INSIDE", 0.3)
    shared = MemoryStorage()
    routers = []
    for _ in range(2):
        router = RoutingBase()
        router.LOCKING = "sender"
        router.STATE_STORE = SQLAlchemyStorage(url.format(tmp_path)) if url else shared
        router.UNDELIVERABLE_QUEUE = Queue(tmp_path / "undeliverable")
        routers.append(router)
    both_inside = threading.Barrier(2, timeout=30)
    done = []

    def make(router, other):
        def HANDLER(message):
            if message.route_from == "outer@x.y":
                both_inside.wait()
                router.deliver(MailRequest("test", "inner@x.y", f"{other}@x.y", "Hi.\n"))
            done.append((HANDLER.__module__, message.route_from))

        return HANDLER

    for router in routers:
        for name, other in (("one", "two"), ("two", "one")):
            handler = make(router, other)
            handler.__module__, handler.__name__ = name, "START"
            router.register_route(f"{name}@x.y", handler)
        # The sender's own name is no part of what is locked here, so that the two are in each other's way.
        store = router.STATE_STORE
        monkeypatch.setattr(router, "_sender_lock", lambda func, message, at=store: at.lock(func.__module__, ""))
    threads = [
        threading.Thread(target=router.deliver, args=[MailRequest("test", "outer@x.y", f"{name}@x.y", "Hi.\n")])
        for router, name in zip(routers, ("one", "two"), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert {("one", "outer@x.y"), ("two", "outer@x.y")} <= set(done)
    kept = [entry.reason for entry in routers[0].UNDELIVERABLE_QUEUE.entries()]
    assert kept and all("Perhaps each of two handlers waits for the other" in reason for reason in kept)
    assert len(kept) + len(done) == 4, "each of the four messages was handled or kept"
