"""What tests of a mail application are written with: conversations, a look into the queue, and the asserts of nose.

    from lamson.testing import *

    client = RouterConversation("tester@example.com", "Subscribing")

    def test_subscribing_asks_for_a_confirmation():
        client.begin()
        message = client.say("list-subscribe@test.com", "I want in.", expect="list-confirm-[a-z0-9]+@")
        assert_in_state("app.handlers.admin", "list-subscribe@test.com", client.From, "CONFIRMING")

Mail that the handlers send has to come out in `run/queue` for that. `QueueRelay` puts it there with no server running:
the ``config/testing.py`` of a project makes it ``settings.relay``.

The star gives everything that ``from nose.tools import *`` gave, under the same names, so that tests written for nose
run under `nosetests` (see `lamson.nosetests`), pytest and unittest.
"""

import logging
import re
from collections.abc import Iterable

from lamson import nosetools
from lamson.errors import MisuseError
from lamson.mail import MailRequest, MailResponse
from lamson.nosetools import *  # noqa: F403
from lamson.queue import Queue
from lamson.routing import Router
from lamson.server import Relay
from lamson.storetests import StateStorageTests

log = logging.getLogger(__name__)

TEST_QUEUE = "run/queue"
"""The queue where mail comes out in tests: what `QueueRelay` fills, and ``lamson log`` too."""


# --- mail that came out ------------------------------------------------------------------------------------------


def relay(hostname: str = "127.0.0.1", port: int = 8824) -> Relay:
    """Returns a relay to a server that runs already, for a `TestConversation`."""
    return Relay(host=hostname, port=port)


def queue(queue_dir: str = TEST_QUEUE) -> Queue:
    """Returns the queue in which mail comes out."""
    return Queue(queue_dir)


def clear_queue(queue_dir: str = TEST_QUEUE) -> None:
    """Takes every message out of the queue."""
    queue(queue_dir).clear()


def delivered(pattern: str, to_queue: Queue | None = None) -> MailRequest | bool:
    """Returns the oldest message in the queue in which the regular expression `pattern` is found, or False.

    It is looked for in the headers (``To: tester@example.com``), their text decoded, and in the body; ``^`` and ``$``
    match at every line.
    """
    in_queue = queue() if to_queue is None else to_queue
    return _first_match(pattern, in_queue, in_queue.keys()) or False


def _first_match(pattern: str, in_queue: Queue, keys: Iterable[str]) -> MailRequest | None:
    wanted = re.compile(pattern, re.MULTILINE)
    for key in keys:
        message = in_queue.get(key)
        # A mail program or a server may have taken the message since the keys were listed.
        if message is not None and (wanted.search(_readable(message)) or wanted.search(str(message))):
            return message
    return None


def _readable(message: MailRequest) -> str:
    """The message as a person reads it: headers and text decoded, which `str` encodes for the wire."""
    headers = [f"{name}: {value}" for name, value in message.items()]
    texts = [part.body for part in [message.base, *message.walk()] if isinstance(part.body, str)]
    return "\n".join([*headers, "", *texts])


class QueueRelay(Relay):
    """A relay for tests: what is delivered lands in a queue at once, and no server has to run.

    It takes what `Relay.deliver` takes, and what comes out is what a server would have received: the same bytes and
    the same envelope. ``config/testing.py`` of a project has

        settings.relay = QueueRelay("run/queue")
    """

    def __init__(self, queue_dir: str = TEST_QUEUE):
        super().__init__(host="localhost", port=25)
        self.queue = Queue(queue_dir)

    def __repr__(self) -> str:
        return f"<QueueRelay to {self.queue.dir}>"

    def _send(self, host: str, sender: str, recipients: list[str], content: bytes) -> None:
        self.queue.push(MailRequest("localhost", sender, recipients, content))


# --- conversations -----------------------------------------------------------------------------------------------


class TestConversation:
    """Talks to a mail server that runs, as a user's mail program does, and looks at what comes out.

    `relay` is the way to that server, `From` and `Subject` are what each message has unless `say` is told otherwise.
    Only what comes out in `run/queue` is seen, so the server has to send there: through ``lamson log``, for instance.
    """

    __test__ = False  # its name looks like one, but it is no test

    def __init__(self, relay: Relay, From: str, Subject: str):
        self.relay = relay
        self.From = From
        self.Subject = Subject

    def begin(self) -> None:
        """Starts afresh: empties the queue."""
        clear_queue()

    def deliver(self, To: str, From: str, Subject: str, Body: str) -> None:
        """Sends one message. Raises as `Relay.deliver` does."""
        self.relay.deliver(MailResponse(To=To, From=From, Subject=Subject, Body=Body))

    def say(self, To: str, Body: str, expect: str | None = None, Subject: str | None = None) -> MailRequest | None:
        """Sends `Body` to `To`, and returns the message that came out because of it and matches `expect`.

        `expect` is a regular expression, looked for as `delivered` does. A message that was in the queue before is no
        answer. Without `expect` the answer does not matter and None is returned. Raises AssertionError, with a list of
        what did come out, when nothing matches.
        """
        subject = self.Subject if Subject is None else Subject
        before = set(queue().keys()) if expect else set()
        self.deliver(To, self.From, subject, Body)
        if not expect:
            return None

        came_out = [key for key in queue().keys() if key not in before]
        answer = _first_match(expect, queue(), came_out)
        if answer is None:
            raise AssertionError(
                f"Expected {expect!r} to come out after {self.From} said {Body!r} to {To} (subject: {subject!r}), "
                f"but this came out:{_listing(queue(), came_out)}"
            )
        return answer


class RouterConversation(TestConversation):
    """A conversation that gives each message straight to the `Router` of this process: no server, no network.

    With ``Router.LOG_EXCEPTIONS = False``, as in ``config/testing.py``, an error in a handler fails the test. An
    `SMTPError` comes out of `say` in any case, where it would have been the reply to a client.
    """

    def __init__(self, From: str, Subject: str):
        self.From = From
        self.Subject = Subject

    def begin(self) -> None:
        """Starts afresh: empties the queue and forgets every sender's state."""
        super().begin()
        Router.clear_states()

    def deliver(self, To: str, From: str, Subject: str, Body: str) -> None:
        """Routes one message. Raises what the handler raised, as said above."""
        message = MailResponse(To=To, From=From, Subject=Subject, Body=Body)
        Router.deliver(MailRequest("localhost", From, To, message.as_bytes()))


def _listing(in_queue: Queue, keys: list[str]) -> str:
    found = [message for message in map(in_queue.get, keys) if message is not None]
    lines = [f"\n  From: {each['from']}  To: {each['to']}  Subject: {each['subject']}" for each in found]
    return "".join(lines) or f"\n  nothing, {in_queue.dir} has no new message"


def assert_in_state(module: str, To: str, From: str, state: str) -> None:
    """Raises AssertionError unless `From`, who wrote to `To`, is in `state` in the handler module called `module`."""
    actual = Router.get_state(module, MailRequest("localhost", From, To, ""))
    if actual != state:
        raise AssertionError(f"{From} should be in the state {state!r} of {module} for {To}, but is in {actual!r}.")


# --- spelling ----------------------------------------------------------------------------------------------------


def spelling(file_name: str, contents: str, language: str = "en_US") -> bool:
    """Returns whether every word of `contents` is spelled right; logs each that is not as ``file_name:line``.

    It needs PyEnchant and a dictionary of `language`. Without PyEnchant nothing is checked: that is logged, and True.
    Raises `MisuseError` when there is no such dictionary.
    """
    try:
        import enchant.checker
    except ImportError as missing:  # also when there is PyEnchant, but not the library in C that it needs
        log.warning("spelling of %s is not checked: pip install pyenchant (%s)", file_name, missing)
        return True

    try:
        checker = enchant.checker.SpellChecker(language)
    except enchant.errors.Error as missing:
        raise MisuseError(f"PyEnchant has no dictionary of {language!r}; there are {enchant.list_languages()}.") from (
            missing
        )
    right = True
    for number, line in enumerate(contents.splitlines(), 1):
        checker.set_text(line)
        for mistake in checker:
            right = False
            log.warning("%s:%d: %s (%s?)", file_name, number, mistake.word, ", ".join(mistake.suggest()[:3]))
    return right


__all__ = [
    "TEST_QUEUE",
    "QueueRelay",
    "RouterConversation",
    "StateStorageTests",
    "TestConversation",
    "assert_in_state",
    "clear_queue",
    "delivered",
    "queue",
    "relay",
    "spelling",
    *nosetools.__all__,
]
