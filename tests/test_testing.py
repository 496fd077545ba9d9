"""The helpers for handler tests: what a conversation sees, what it fails on, and every name that nose.tools had."""

import re
import sys
import time
import types
import unittest

import pytest

import lamson.testing
from lamson import queue as queues
from lamson.errors import MisuseError, SMTPError
from lamson.mail import MailRequest, MailResponse
from lamson.routing import Router, route, stateless
from lamson.server import Relay, SMTPReceiver
from lamson.testing import (
    QueueRelay,
    RouterConversation,
    TestConversation,
    assert_in_state,
    clear_queue,
    delivered,
    queue,
    relay,
    spelling,
    with_setup,
)

pytestmark = pytest.mark.usefixtures("app")  # run/queue is made in the current folder


@pytest.fixture
def echo(fresh_router):
    """A handler module `echo` that answers every mail, and forwards what is for the list."""
    Router.LOG_EXCEPTIONS = False
    module = types.ModuleType("echo")
    answers = QueueRelay()

    def START(message, address=None):
        answers.send(
            To=message["from"], From=f"{address}-echo@test.com", Subject="Re: " + message["subject"], Body="Ja."
        )
        return AGAIN

    def AGAIN(message, address=None):
        return None

    for function in (START, AGAIN):
        function.__module__ = "echo"
        setattr(module, function.__name__, route("(address)@test.com", address="[a-z]+")(function))
    sys.modules["echo"] = module
    yield module
    del sys.modules["echo"]


@pytest.fixture
def client(echo):
    client = RouterConversation("zed@example.com", "A subject")
    client.begin()
    return client


# --- the queue ---------------------------------------------------------------------------------------------------


def test_relay_and_queue_are_where_old_tests_expect_them():
    assert (relay().hostname, relay().port) == ("127.0.0.1", 8824)
    assert (relay(port=8823).port, relay("localhost").hostname) == (8823, "localhost")
    assert queue().dir == "run/queue"
    assert queue("run/other").dir == "run/other"


def test_clear_queue_takes_everything_out():
    queue().push("Subject: one\n\n")
    queue("run/other").push("Subject: two\n\n")
    clear_queue()
    assert (queue().count(), queue("run/other").count()) == (0, 1)
    clear_queue("run/other")
    assert queue("run/other").count() == 0


def test_delivered_returns_the_oldest_message_that_matches():
    for number in (1, 2):
        queue().push(f"To: joe@example.com\nSubject: number {number}\n\nThe body.\n")
    assert delivered("joe@example")["subject"] == "number 1"
    assert delivered("number 2")["subject"] == "number 2"
    assert delivered("^Subject: .*2$")["subject"] == "number 2"
    assert delivered("The body")["subject"] == "number 1"
    assert delivered("nobody") is False


def test_delivered_looks_into_the_queue_it_is_given():
    other = queues.Queue("run/other")
    other.push("Subject: one\n\n")
    assert delivered("one") is False
    assert delivered("one", other)["subject"] == "one"
    assert delivered("one", to_queue=other)


def test_delivered_reads_what_people_read():
    mail = MailResponse(To="Jürgen <j@example.com>", From="a@b.c", Subject="Grüße aus Köln", Body="Straße = gut\n")
    queue().push(mail)
    mail.Html = "<p>Große Straße</p>"
    queue().push(mail)
    for pattern in ("Grüße aus Köln", "Jürgen", "Straße = gut", "utf-8", "Große"):
        assert delivered(pattern), pattern


# --- the relay for tests -----------------------------------------------------------------------------------------


def test_a_queue_relay_delivers_into_its_queue():
    relay = QueueRelay("run/other")
    assert isinstance(relay, Relay)
    assert repr(relay) == "<QueueRelay to run/other>"

    relay.deliver(MailResponse(To="joe@example.com", From="zed@example.com", Subject="Hello", Body="Here I am."))
    message = queue("run/other").pop()[1]
    assert (message.From, list(message.To)) == ("zed@example.com", ["joe@example.com"])
    assert (message["subject"], message.body().strip()) == ("Hello", "Here I am.")


def test_a_queue_relay_keeps_envelope_and_bytes_of_a_request():
    raw = b"From: A <a@example.com>\r\nTo: undisclosed\r\nSubject: x\r\n\r\nbytes: \xff\r\n"
    QueueRelay().deliver(MailRequest("peer", "a@example.com", ["b@example.com", "c@example.com"], raw))
    QueueRelay().deliver(
        MailRequest("peer", "a@example.com", ["b@example.com"], raw), To="d@example.com", From="e@x.org"
    )

    first, second = queue().pop()[1], queue().pop()[1]
    assert (first.From, list(first.To), first.original) == ("a@example.com", ["b@example.com", "c@example.com"], raw)
    assert (second.From, list(second.To), second.original) == ("e@x.org", ["d@example.com"], raw)


def test_a_queue_relay_sends_and_replies_as_any_relay():
    QueueRelay().send(To="joe@example.com", From="a@b.c", Subject="One", Body="x")
    original = MailRequest("peer", "zed@example.com", "a@b.c", "From: zed@example.com\nSubject: q\n\n")
    QueueRelay().reply(original, From="a@b.c", Subject="Two", Body="x")
    assert [queue().get(key)["to"] for key in queue().keys()] == ["joe@example.com", "zed@example.com"]


def test_a_queue_relay_refuses_what_any_relay_refuses():
    with pytest.raises(ValueError, match="no recipient"):
        QueueRelay().deliver(MailResponse(From="a@b.c", Subject="x", Body="y"))


# --- conversations -----------------------------------------------------------------------------------------------


def test_a_router_conversation_says_and_gets_the_answer(client):
    answer = client.say("list@test.com", "Hello?", expect="list-echo@test.com")
    assert answer["subject"] == "Re: A subject"
    assert answer["to"] == "zed@example.com"
    assert queue().count() == 1
    assert_in_state("echo", "list@test.com", "zed@example.com", "AGAIN")


def test_saying_without_an_expectation_returns_none(client):
    assert client.say("list@test.com", "Hello?") is None
    assert queue().count() == 1


def test_a_subject_may_be_given(client):
    assert client.say("list@test.com", "Hello?", expect="Re: Mine", Subject="Mine")
    client.begin()
    assert client.say("list@test.com", "Hello?", "^Subject: Re:\\s*$", "")


def test_an_expectation_that_is_not_met_tells_what_came_out(client):
    with pytest.raises(AssertionError) as failure:
        client.say("list@test.com", "Hello?", expect="nobody")
    assert "Expected 'nobody' to come out after zed@example.com said 'Hello?' to list@test.com" in str(failure.value)
    assert "From: list-echo@test.com  To: zed@example.com  Subject: Re: A subject" in str(failure.value)


def test_what_came_out_before_is_no_answer(client):
    client.say("list@test.com", "Hello?", expect="list-echo")
    with pytest.raises(AssertionError, match="nothing, run/queue has no new message"):
        client.say("list@test.com", "Hello again?", expect="list-echo")


def test_beginning_empties_the_queue_and_forgets_states(client):
    client.say("list@test.com", "Hello?")
    client.begin()
    assert queue().count() == 0
    assert_in_state("echo", "list@test.com", "zed@example.com", "START")


def test_an_error_in_a_handler_fails_the_test(client, echo):
    @route("broken@test.com")
    @stateless
    def START(message):
        raise ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError, match="oops"):
        client.say("broken@test.com", "Hello?")
    Router.LOG_EXCEPTIONS = True
    client.say("broken@test.com", "Hello?")


def test_an_smtp_error_comes_out_of_say(client):
    @route("closed@other.com")
    def START(message):
        raise SMTPError(550, "Closed.")

    with pytest.raises(SMTPError, match="550 Closed."):
        client.say("closed@other.com", "Hello?")


def test_the_handler_gets_a_real_request(client):
    seen = []

    @route("seen@other.com")
    @stateless
    def START(message):
        seen.append(message)

    client.say("seen@other.com", "Grüße\nvon mir.", Subject="Schöne Grüße")
    (message,) = seen
    assert isinstance(message, MailRequest)
    assert (message.From, message["subject"], message["to"]) == ("zed@example.com", "Schöne Grüße", "seen@other.com")
    assert message.body().splitlines() == ["Grüße", "von mir."]


def test_a_test_conversation_talks_to_a_server_that_runs(echo):
    receiver = SMTPReceiver("127.0.0.1", 0)
    receiver.start()
    try:
        client = TestConversation(relay(port=receiver.port), "zed@example.com", "Over the wire")
        client.begin()
        answer = client.say("list@test.com", "Hello?", expect="list-echo@test.com")
        assert answer["subject"] == "Re: Over the wire"
        with pytest.raises(AssertionError, match="Expected 'list-echo' to come out"):
            client.say("list@test.com", "Hello?", expect="list-echo")
    finally:
        receiver.close()


def test_no_runner_takes_the_conversations_for_tests():
    assert TestConversation.__test__ is False
    assert RouterConversation.__test__ is False


def test_assert_in_state_tells_which_state_it_was(echo):
    assert_in_state("echo", "list@test.com", "Zed <zed@example.com>", "START")
    with pytest.raises(AssertionError, match="zed@example.com should be in the state 'AGAIN' of echo.* is in 'START'"):
        assert_in_state("echo", "list@test.com", "zed@example.com", "AGAIN")


def test_assert_in_state_asks_the_modules_own_state_key(echo):
    from lamson.routing import state_key_generator

    generator = types.FunctionType(
        (lambda module, message: f"{module}:{message['to']}").__code__, vars(echo), "generator"
    )
    state_key_generator(generator)
    Router.STATE_STORE.set("echo:list@test.com", "zed@example.com", "AGAIN")
    assert_in_state("echo", "list@test.com", "zed@example.com", "AGAIN")
    assert_in_state("echo", "other@test.com", "zed@example.com", "START")


# --- spelling ----------------------------------------------------------------------------------------------------


def test_without_pyenchant_nothing_is_checked_and_that_is_logged(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "enchant", None)
    assert spelling("letter.msg", "Helo wrold") is True
    assert "letter.msg is not checked: pip install pyenchant" in caplog.text


@pytest.fixture
def enchant(monkeypatch):
    """Stands in for PyEnchant, which needs a library in C: a dictionary of two words, with PyEnchant's interface."""

    class Mistake:
        def __init__(self, word):
            self.word = word

        def suggest(self):
            return ["hello", "world", "three", "four"]

    class SpellChecker:
        def __init__(self, language):
            if language != "en_US":
                raise errors.DefaultLanguageNotFoundError(language)

        def set_text(self, text):
            self.text = text

        def __iter__(self):
            return (Mistake(word) for word in self.text.split() if word not in ("hello", "world"))

    enchant, checker, errors = (types.ModuleType(name) for name in ("enchant", "enchant.checker", "enchant.errors"))
    errors.Error = type("Error", (Exception,), {})
    errors.DefaultLanguageNotFoundError = type("DefaultLanguageNotFoundError", (errors.Error,), {})
    checker.SpellChecker = SpellChecker
    enchant.checker, enchant.errors, enchant.list_languages = checker, errors, lambda: ["en_US"]
    for module in (enchant, checker, errors):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_words_that_are_spelled_wrong_are_logged_with_their_line(enchant, caplog):
    assert spelling("letter.msg", "hello\nworld\n") is True
    assert caplog.text == ""
    assert spelling("letter.msg", "hello\nwrold\n") is False
    assert "letter.msg:2: wrold (hello, world, three?)" in caplog.text


def test_a_dictionary_that_is_missing_is_named(enchant):
    with pytest.raises(MisuseError, match="no dictionary of 'tlh'; there are.*en_US"):
        spelling("letter.msg", "Qapla'", language="tlh")


# --- nose.tools --------------------------------------------------------------------------------------------------


def pep8(name):
    return re.sub("([A-Z])", lambda found: "_" + found.group(1).lower(), name)


def test_every_assert_of_unittest_is_there_in_the_spelling_of_nose():
    asserts = {name for name in dir(unittest.TestCase) if re.fullmatch("assert[A-Za-z]+", name)}
    assert {pep8(name) for name in asserts} <= set(lamson.testing.__all__)


def test_the_star_gives_everything():
    given = {}
    exec("from lamson.testing import *", given)
    lamson_names = ["spelling", "relay", "queue", "clear_queue", "delivered", "assert_in_state", "QueueRelay"]
    nose_names = ["ok_", "eq_", "raises", "timed", "TimeExpired", "with_setup", "istest", "nottest", "make_decorator"]
    asserts = ["assert_equal", "assert_equals", "assert_true", "assert_raises", "assert_raises_regexp", "assert_in"]
    expected = [*lamson_names, "TestConversation", "RouterConversation", *nose_names, "set_trace", *asserts]
    assert set(expected) <= set(given)
    assert not {"setup", "teardown", "Router", "os", "test"} & set(given)


def test_asserts_assert():
    from lamson.testing import assert_dict_contains_subset, assert_equal, assert_raises, eq_, ok_

    assert_equal(1, 1)
    assert_raises(ValueError, int, "x")
    with assert_raises(ValueError):
        int("x")
    ok_(True)
    eq_(1, 1)
    assert_dict_contains_subset({"a": 1}, {"a": 1, "b": 2})
    for wrong in (
        lambda: assert_equal(1, 2, "one"),
        lambda: ok_(False, "one"),
        lambda: eq_(1, 2, "one"),
        lambda: assert_dict_contains_subset({"a": 2}, {"a": 1}, "one"),
    ):
        with pytest.raises(AssertionError, match="one"):
            wrong()
    with pytest.raises(AssertionError, match="1 != 2"):
        eq_(1, 2)


def test_raises_passes_on_its_exceptions_only():
    @lamson.testing.raises(ValueError, TypeError)
    def test_it(error):
        if error:
            raise error

    test_it(ValueError())
    test_it(TypeError())
    assert test_it.__name__ == "test_it"
    with pytest.raises(AssertionError, match=r"test_it\(\) did not raise ValueError or TypeError"):
        test_it(None)
    with pytest.raises(KeyError):
        test_it(KeyError())


def test_timed_fails_what_takes_too_long(monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 21.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    test_it = lamson.testing.timed(1)(lambda: 42)
    assert test_it() == 42
    with pytest.raises(lamson.testing.TimeExpired, match="longer than 1 seconds"):
        test_it()


def test_with_setup_runs_around_the_test_also_when_it_fails():
    log = []

    @with_setup(lambda: log.append("outer in"), lambda: log.append("outer out"))
    @with_setup(lambda: log.append("inner in"), lambda: log.append("inner out"))
    def test_it():
        log.append("test")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        test_it()
    assert log == ["outer in", "inner in", "test", "inner out", "outer out"]


def test_with_setup_on_a_generator_is_for_what_it_yields():
    log = []

    @with_setup(lambda: log.append("outer in"), lambda: log.append("outer out"))
    @with_setup(teardown=lambda: log.append("inner out"))
    def test_all():
        yield log.append, "test"

    test_all.setUp()
    test_all.tearDown()
    assert log == ["outer in", "inner out", "outer out"]


def test_istest_and_nottest_mark_functions():
    assert lamson.testing.istest(lambda: None).__test__ is True
    assert lamson.testing.nottest(lambda: None).__test__ is False


def test_set_trace_stops_where_it_is_called(monkeypatch):
    import pdb

    stopped = []
    monkeypatch.setattr(pdb.Pdb, "set_trace", lambda self, frame: stopped.append((frame.f_code.co_name, self.stdout)))
    lamson.testing.set_trace()
    assert stopped == [("test_set_trace_stops_where_it_is_called", sys.__stdout__)]
