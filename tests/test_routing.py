"""Routes, states, and what becomes of a message that nobody takes or somebody fails on."""

import contextlib
import importlib
import os
import sys
import textwrap
import threading

import pytest

from lamson import routetable, routing
from lamson.errors import LamsonError, SMTPError
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import (
    MemoryStorage,
    Router,
    RoutingBase,
    ShelveStorage,
    StateStorage,
    nolocking,
    route,
    route_like,
    stateless,
)
from lamson.states import KeyedLocks


def mail(to="list@test.com", sender="zed@example.com"):
    return MailRequest("peer", sender, to, b"Subject: hi\r\n\r\nHello\r\n")


def write_module(folder, name, text):
    """Write a handler module; its time always differs from the one before, however fast the test runs."""
    path = folder / f"{name}.py"
    stamp = path.stat().st_mtime_ns + 1_000_000 if path.exists() else None
    path.write_text("from lamson.routing import *\n" + textwrap.dedent(text))
    if stamp:
        os.utime(path, ns=(stamp, stamp))


class TestRoutes:
    def test_captures_reach_the_function_as_keyword_arguments(self):
        seen = []

        @route("(name)-(action)@(host)", name="[a-z]+", action="join|leave", host=".+")
        def START(message, **captures):
            seen.append(captures)

        Router.deliver(mail("Python-JOIN@test.com"))
        assert seen == [{"name": "python", "action": "join", "host": "test.com"}]

    @pytest.mark.parametrize(
        ("format", "captures", "address", "matches"),
        [
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "abc@test.com", True),
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "xabc1@test.com", False),
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "abc@test.com.evil", False),
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "abc@test.com\n", False),
            ("a|ab@test.com", {}, "ab@test.com", True),
            ("(name)@(host)", {"name": ".+", "host": r"(test\.com|localhost)"}, "a@localhost", True),
            ("(name)@(host)", {"name": ".+", "host": r"(test\.com|localhost)"}, "a@testxcom", False),
            (r"\(x\)@test.com", {}, "(x)@test.com", True),
            ("(?:a|b)@test.com", {}, "b@test.com", True),
            (".+", {}, "anything@at.all", True),
            ("(UPPER)@test.com", {"UPPER": "[A-Z]+"}, "lower@test.com", True),
        ],
    )
    def test_a_route_matches_a_whole_address(self, format, captures, address, matches):
        @route(format, **captures)
        def START(message, **kw):
            pass

        assert bool(list(Router.match(address))) is matches

    def test_defaults_serve_captures_without_a_regex(self):
        Router.defaults(host="test.com")

        @route("(name)@(host)", name="[a-z]+")
        def START(message, **kw):
            pass

        assert list(Router.match("a@test.com"))[0][1] == {"name": "a", "host": "test.com"}
        assert not list(Router.match("a@other.com"))

    def test_a_capture_of_the_route_wins_over_the_default(self):
        Router.defaults(host="test.com")

        @route("a@(host)", host="other.com")
        def START(message, **kw):
            pass

        assert list(Router.match("a@other.com"))

    def test_a_capture_without_regex_is_an_error_that_names_it_and_the_route(self):
        with pytest.raises(AssertionError, match=r"\(list_name\)-x@test.com.*\(list_name\)") as caught:
            route("(list_name)-x@test.com")
        assert isinstance(caught.value, LamsonError)

    def test_a_broken_regex_is_an_error_that_names_the_route_and_the_function(self):
        with pytest.raises(routing.RoutingError, match=r"\(\?P<a>\[z\)@test.com.*START"):

            @route("(a)@test.com", a="[z")
            def START(message, a):
                pass

    def test_match_goes_in_the_order_of_registration(self):
        router = RoutingBase()
        router.register_route("b.*", max)
        router.register_route(".*", min)
        router.register_route("b.*", len)
        assert router.ORDER == ["b.*", ".*"]
        assert [functions for functions, _ in router.match("bcd")] == [[max, len], [min]]
        assert router.REGISTERED["b.*"][1] == [max, len]

    def test_several_routes_on_one_function_are_all_active(self):
        @route("a@test.com")
        @route("b@test.com")
        def START(message):
            pass

        assert list(Router.match("a@test.com")) and list(Router.match("b@test.com"))

    def test_route_like_takes_every_route_of_the_other_function(self):
        @route("a@(host)", host="test.com")
        @route("b@(host)", host="test.com")
        def START(message, host=None):
            pass

        @route_like(START)
        def NEXT(message, host=None):
            pass

        for address in ("a@test.com", "b@test.com"):
            assert [f.__name__ for functions, _ in Router.match(address) for f in functions] == ["START", "NEXT"]
        assert NEXT._lamson_settings["format"] == START._lamson_settings["format"]
        assert NEXT._lamson_settings["captures"] == {"host": "test.com"}

    def test_route_like_of_an_undecorated_function_says_so(self):
        def plain(message):
            pass

        with pytest.raises(AssertionError, match="plain is not decorated"):
            route_like(plain)

    def test_a_method_cannot_be_routed(self):
        with pytest.raises(NotImplementedError, match="BadRoute.wont_work"):

            class BadRoute:
                @route("test")
                def wont_work(message):
                    pass

    def test_stateless_above_route_is_an_error_that_says_which_order_is_right(self):
        with pytest.raises(AssertionError, match="@route on top, @stateless under it"):

            @stateless
            @route("a@test.com")
            def START(message):
                pass

    def test_settings_are_on_the_function(self):
        @route("(a)@test.com", a=".+")
        @stateless
        @nolocking
        def START(message, a):
            pass

        assert START._lamson_settings["format"] == "(?P<a>.+)@test.com"
        assert START._lamson_settings["captures"] == {"a": ".+"}
        assert routing.lamson_setting(START, "stateless") and routing.lamson_setting(START, "nolocking")
        assert routing.has_lamson_settings(START)
        assert not routing.has_lamson_settings(mail)
        assert routing.lamson_setting(mail, "format") is None
        with pytest.raises(AssertionError):
            routing.assert_lamson_settings(mail)


class TestStates:
    def test_a_sender_moves_through_the_states_that_functions_return(self):
        calls = []

        @route("a@test.com")
        def START(message):
            calls.append("START")
            return CONFIRMING

        @route_like(START)
        def CONFIRMING(message):
            calls.append("CONFIRMING")
            return START if len(calls) == 3 else None

        for _ in range(4):
            Router.deliver(mail("a@test.com"))
        Router.deliver(mail("a@test.com", "other@example.com"))
        assert calls == ["START", "CONFIRMING", "CONFIRMING", "START", "START"]

    def test_only_the_first_matching_function_of_the_state_runs(self):
        calls = []

        @route("a@test.com")
        def START(message):
            calls.append("first")

        first = START

        @route(".+@test.com")
        def START(message):
            calls.append("second")

        Router.deliver(mail("a@test.com"))
        assert calls == ["first"] and first is not START

    def test_every_matching_stateless_function_runs_beside_the_state(self):
        calls = []

        @route("a@test.com")
        def START(message):
            calls.append("START")
            return END

        @route("a@test.com")
        def END(message):
            calls.append("END")

        @route(".+")
        @stateless
        def LOG(message):
            calls.append("LOG")
            return END  # means nothing: a stateless function keeps no state

        @route("a.+")
        @stateless
        def COUNT(message):
            calls.append("COUNT")

        Router.deliver(mail("a@test.com"))
        assert calls == ["START", "LOG", "COUNT"]

    def test_a_state_of_another_module_is_set_there(self, app):
        write_module(app, "one", "import two\n@route('a@test.com')\ndef START(message):\n    return two.POSTING\n")
        write_module(app, "two", "@route('a@test.com')\ndef POSTING(message):\n    pass\n")
        Router.load(["one"])
        Router.deliver(mail("a@test.com"))
        assert Router.get_state("two", mail()) == "POSTING"
        assert Router.get_state("one", mail()) == "START"
        assert Router.in_state(sys.modules["two"].POSTING, mail())

    def test_a_state_key_generator_gives_a_state_per_key(self, app):
        write_module(
            app,
            "lists",
            """
            @state_key_generator
            def key(module_name, message):
                return module_name + ":" + message["to"]

            @route(".+")
            def START(message):
                return POSTING

            @route(".+")
            def POSTING(message):
                return START
            """,
        )
        Router.load(["lists"])
        Router.deliver(mail("a@test.com"))
        assert Router.get_state("lists", mail("a@test.com")) == "POSTING"
        assert Router.get_state("lists", mail("b@test.com")) == "START"
        assert Router.state_key("lists", mail("b@test.com")) == "lists:b@test.com"
        assert Router.state_key("unknown", mail()) == "unknown"

    def test_mail_from_nobody_keeps_no_state(self):
        calls = []

        @route(".+")
        def START(message):
            calls.append(message.From)
            return END

        @route(".+")
        def END(message):
            raise AssertionError("never reached")

        Router.deliver(mail(sender=""))
        Router.deliver(mail(sender=""))
        assert calls == ["", ""]
        assert not Router.STATE_STORE.states

    def test_something_that_is_no_state_is_an_error_that_says_so(self):
        Router.LOG_EXCEPTIONS = False

        @route(".+")
        def START(message):
            return "CONFIRMING"

        with pytest.raises(AssertionError, match="START returned 'CONFIRMING'"):
            Router.deliver(mail())


@pytest.mark.parametrize("kind", ["memory", "shelve"])
class TestStorages:
    @pytest.fixture
    def storage(self, kind, tmp_path):
        return MemoryStorage() if kind == "memory" else ShelveStorage(str(tmp_path / "states"))

    def test_the_unknown_are_in_START_and_setting_START_forgets(self, storage):
        assert storage.get("app.post", "a@b") == "START"
        storage.set("app.post", "a@b", "POSTING")
        storage.set("app.post", "c@d", "OTHER")
        assert storage.get("app.post", "a@b") == "POSTING"
        storage.set("app.post", "a@b", "START")
        assert storage.get("app.post", "a@b") == "START"
        storage.set("app.post", "unknown", "START")
        storage.clear()
        assert storage.get("app.post", "c@d") == "START"

    def test_odd_keys_are_kept_apart(self, storage):
        names = [("a", "b c"), ("a b", "c"), ("", ""), ("ключ", "я@пример.рф"), ("k" * 5000, "\udcff@x"), ("a:", "")]
        for number, (key, sender) in enumerate(names):
            storage.set(key, sender, f"STATE{number}")
        assert [storage.get(*name) for name in names] == [f"STATE{number}" for number in range(len(names))]

    def test_threads_do_not_lose_each_others_states(self, storage):
        def work(number):
            for step in range(10):
                storage.set("key", f"sender{number}", f"S{step}")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {storage.get("key", f"sender{number}") for number in range(8)} == {"S9"}


def test_a_shelf_survives_a_restart(tmp_path):
    ShelveStorage(str(tmp_path / "states")).set("k", "a@b", "POSTING")
    assert ShelveStorage(str(tmp_path / "states")).get("k", "a@b") == "POSTING"


def test_a_storage_without_its_methods_says_which_is_missing():
    class Half(StateStorage):
        pass

    for call in (lambda: Half().get("a", "b"), lambda: Half().set("a", "b", "c"), lambda: Half().clear()):
        with pytest.raises(NotImplementedError, match="Half has to give"):
            call()


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


class TestModules:
    ONE = "@route('one@test.com')\ndef START(message):\n    seen.append('%s')\nseen = []\n"

    def test_load_logs_what_cannot_be_imported_and_goes_on(self, app, caplog):
        write_module(app, "broken", "import no_such_module\n")
        write_module(app, "fine", self.ONE % "x")
        Router.load(["broken", "fine"])
        assert "cannot load the handler module broken" in caplog.text and "no_such_module" in caplog.text
        assert list(Router.match("one@test.com"))

    def test_load_raises_without_LOG_EXCEPTIONS(self, app):
        Router.LOG_EXCEPTIONS = False
        with pytest.raises(ImportError):
            Router.load(["no_such_handlers"])

    def test_load_registers_again_after_clear_routes(self, app):
        write_module(app, "one", self.ONE % "x")
        Router.load(["one"])
        Router.clear_routes()
        assert not list(Router.match("one@test.com"))
        Router.load(["one"])
        assert list(Router.match("one@test.com"))

    def test_reload_registers_again_after_clear_routes(self, app):
        write_module(app, "one", self.ONE % "x")
        Router.load(["one"])
        Router.clear_routes()
        Router.reload()
        assert list(Router.match("one@test.com"))

    def test_reload_runs_only_what_changed_and_keeps_order_and_states(self, app):
        for name in ("one", "two", "three"):
            write_module(app, name, f"@route('.+@test.com')\ndef {name.upper()}(message):\n    pass\n")
        Router.load(["one", "two", "three"])
        Router.set_state("two", mail(), "TWO")
        one, two = sys.modules["one"], sys.modules["two"]
        write_module(app, "two", "@route('.+@test.com')\ndef TWO(m): pass\n@route('new@test.com')\ndef NEW(m): pass\n")
        Router.reload()
        assert sys.modules["one"] is one and sys.modules["two"] is two
        names = [f.__name__ for functions, _ in Router.match("a@test.com") for f in functions]
        assert names == ["ONE", "TWO", "THREE"]
        assert list(Router.match("new@test.com"))
        assert Router.get_state("two", mail()) == "TWO"

    def test_a_syntax_error_keeps_the_old_routes_and_is_logged_once(self, app, caplog):
        write_module(app, "one", self.ONE % "old")
        Router.load(["one"])
        Router.RELOAD = True
        old = sys.modules["one"]
        write_module(app, "one", "@route('other@test.com')\ndef HALF(message): pass\ndef START(message:\n")
        for _ in range(3):
            Router.deliver(mail("one@test.com"))
        assert old.seen == ["old"] * 3
        assert caplog.text.count("its old routes go on serving") == 1
        assert not list(Router.match("other@test.com"))
        write_module(app, "one", self.ONE % "new")
        Router.deliver(mail("one@test.com"))
        assert sys.modules["one"].seen == ["new"]

    def test_modules_that_use_a_reloaded_one_see_what_is_new_in_it(self, app):
        write_module(app, "admin", "@route('admin@test.com')\ndef START(message): pass\n")
        write_module(
            app, "post", "import admin\n@route('post@test.com')\ndef START(message):\n    return admin.START\n"
        )
        Router.load(["admin", "post"])
        write_module(app, "admin", "@route('admin@test.com')\ndef TWO(message): pass\n")
        write_module(app, "post", "import admin\n@route('post@test.com')\ndef START(message):\n    return admin.TWO\n")
        Router.reload()
        Router.deliver(mail("post@test.com"))
        assert Router.get_state("admin", mail()) == "TWO"

    def test_two_changes_in_one_second_that_keep_the_size_are_two_changes(self, app, monkeypatch):
        monkeypatch.setattr(sys, "dont_write_bytecode", False)  # which tells files apart by second and size
        for name in ("one", "two"):
            (app / "one.py").write_text("from lamson.routing import *\n" + self.ONE % name)
            stamp = 1_700_000_000_000_000_000 + (name == "two")
            os.utime(app / "one.py", ns=(stamp, stamp))
            Router.load(["one"]) if name == "one" else Router.reload()
            Router.deliver(mail("one@test.com"))
            assert sys.modules["one"].seen == [name]

    def test_a_module_that_fails_in_the_middle_registers_nothing_and_changes_nothing(self, app):
        write_module(app, "one", self.ONE % "old")
        Router.load(["one"])
        write_module(app, "one", "@route('half@test.com')\ndef START(message): pass\nNAME = 1\n1 / 0\n")
        Router.reload()
        assert not list(Router.match("half@test.com")) and not hasattr(sys.modules["one"], "NAME")
        Router.deliver(mail("one@test.com"))
        assert sys.modules["one"].seen == ["old"]

    def test_a_module_that_cannot_be_loaded_registers_nothing(self, app):
        write_module(app, "one", "@route('one@test.com')\ndef START(message): pass\n1 / 0\n")
        Router.load(["one"])
        assert not list(Router.match("one@test.com"))

    def test_a_module_that_came_in_beside_one_that_failed_has_its_routes_later(self, app):
        write_module(app, "main", self.ONE % "x")
        Router.load(["main"])
        write_module(app, "beside", "@route('beside@test.com')\ndef START(message): pass\n")
        write_module(app, "main", "import beside\n1 / 0\n")
        Router.reload()
        write_module(app, "main", "import beside\n" + self.ONE % "x")
        Router.reload()
        assert list(Router.match("beside@test.com")) and list(Router.match("one@test.com"))

    def test_routes_that_a_change_took_out_are_gone(self, app):
        write_module(app, "one", self.ONE % "x")
        Router.load(["one"])
        write_module(app, "one", "NOTHING = True\n")
        Router.reload()
        assert not list(Router.match("one@test.com"))

    def test_both_functions_of_one_name_have_their_routes_after_clear_routes(self, app):
        write_module(app, "one", "@route('a@x')\ndef START(m): pass\n@route('b@x')\ndef START(m): pass\n")
        Router.load(["one"])
        Router.clear_routes()
        Router.reload()
        assert list(Router.match("a@x")) and list(Router.match("b@x"))

    def test_load_finds_the_routes_of_a_module_that_was_imported_by_hand(self, app):
        write_module(app, "one", self.ONE % "x")
        importlib.import_module("one")
        Router.clear_routes()
        Router.load(["one"])
        assert list(Router.match("one@test.com"))

    def test_a_file_that_is_gone_keeps_its_routes(self, app):
        write_module(app, "one", self.ONE % "x")
        Router.load(["one"])
        (app / "one.py").unlink()
        Router.reload()
        assert list(Router.match("one@test.com"))


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


def test_a_route_that_comes_in_while_the_index_is_made_is_found(monkeypatch):
    router = routing.RoutingBase()

    def START(message):
        """Nothing."""

    class Slow(routetable.RouteIndex):
        def __init__(self, formats):
            super().__init__(formats)
            if "late@example.com" not in router.ORDER:
                router.register_route("late@example.com", START)

    monkeypatch.setattr(routetable, "RouteIndex", Slow)
    router.register_route("early@example.com", START)
    assert list(router.match("early@example.com"))
    assert list(router.match("late@example.com"))
