"""Confirmations: who is asked, which answer counts and which does not, and what is kept meanwhile."""

import dbm.dumb
import re
import shelve
import shutil
import threading
import time

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamson import view
from lamson.confirm import ConfirmationEngine, ConfirmationStorage
from lamson.database import SQLAlchemyConfirmationStorage, configure_database
from lamson.errors import MisuseError, SMTPError
from lamson.mail import MailRequest
from lamson.queue import Queue
from lamson.routing import Router, route
from lamson.testing import QueueRelay

ZED = "zed@example.com"
QUESTION = "Confirm {{ list_name }} for {{ message['subject'] }}: {{ confirm_address }}@{{ host }} ({{ target }})\n"


class FourMethods:
    """A storage of somebody's own, as for Lamson 1.x: no `forget`, and a `delete` that says nothing."""

    def __init__(self):
        self.rows = {}

    def get(self, target, from_address):
        return self.rows.get((target, from_address), (None, None))

    def store(self, target, from_address, secret, pending_id):
        self.rows[target, from_address] = secret, pending_id

    def delete(self, target, from_address):
        self.rows.pop((target, from_address), None)

    def clear(self):
        self.rows.clear()


@pytest.fixture(params=["dict", "shelf", "sqlite file", "sqlite memory"])
def storage(request, tmp_path):
    if request.param == "dict":
        yield ConfirmationStorage()
    elif request.param == "shelf":
        with shelve.open(str(tmp_path / "confirmations")) as shelf:
            yield ConfirmationStorage(shelf)
    elif request.param == "sqlite file":
        yield SQLAlchemyConfirmationStorage(f"sqlite:///{tmp_path}/confirmations.db")
    else:
        yield SQLAlchemyConfirmationStorage("sqlite://")


class Templates:
    def get_template(self, name):
        import jinja2

        return jinja2.DictLoader({"confirm.msg": QUESTION}).load(jinja2.Environment(keep_trailing_newline=True), name)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "LOADER", Templates())
    return ConfirmationEngine(tmp_path / "pending", ConfirmationStorage())


@pytest.fixture
def relay(tmp_path):
    return QueueRelay(str(tmp_path / "sent"))


def mail(sender=ZED, to="cats-subscribe@test.com", headers="From: Zed <zed@example.com>\n", body="Let me in."):
    return MailRequest("peer", sender, to, f"{headers}Subject: Cats\nMessage-ID: <1@example.com>\n\n{body}\n")


def answer(address, sender=ZED, headers=""):
    return MailRequest("peer", sender, address, f"{headers}Subject: Re: Confirmation\n\nYes.\n")


def in_threads(work, arguments):
    """Calls `work` with each of the arguments at once."""
    threads = [threading.Thread(target=work, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def secret_of(confirm_address):
    return confirm_address.partition("@")[0].rpartition("-")[2]


# --- storages ----------------------------------------------------------------------------------------------------


def test_a_storage_gives_what_was_stored_until_it_is_deleted(storage):
    assert storage.get("cats", ZED) == (None, None)
    storage.store("cats", ZED, "abc", "17.M1")
    storage.store("dogs", ZED, "def", "17.M2")
    assert storage.get("cats", ZED) == ("abc", "17.M1")
    assert storage.get("dogs", ZED) == ("def", "17.M2")
    assert storage.get("cats", "joe@example.com") == (None, None)
    storage.store("cats", ZED, "ghi", "17.M3")
    assert storage.get("cats", ZED) == ("ghi", "17.M3")
    assert storage.delete("cats", ZED) is True
    assert storage.delete("cats", ZED) is False
    assert storage.get("cats", ZED) == (None, None)
    assert storage.get("dogs", ZED) == ("def", "17.M2")


def test_an_entry_is_replaced_only_while_it_is_the_one_that_was_seen(storage):
    assert storage.replace("cats", ZED, "17.M0", "abc", "17.M1") is False
    assert storage.get("cats", ZED) == (None, None)
    assert storage.replace("cats", ZED, None, "abc", "17.M1") is True
    assert storage.replace("cats", ZED, None, "def", "17.M2") is False
    assert storage.replace("cats", ZED, "17.M0", "def", "17.M2") is False
    assert storage.get("cats", ZED) == ("abc", "17.M1")
    assert storage.replace("cats", ZED, "17.M1", "def", "17.M2") is True
    assert storage.get("cats", ZED) == ("def", "17.M2")
    assert storage.get("dogs", ZED) == (None, None)


def test_clear_forgets_everything(storage):
    storage.store("cats", ZED, "abc", "17.M1")
    storage.clear()
    assert storage.get("cats", ZED) == (None, None)


def test_forget_forgets_those_of_these_messages_only(storage):
    for number in range(4):
        storage.store("cats", f"{number}@example.com", "abc", f"17.M{number}")
    storage.forget({"17.M1", "17.M2", "18.M9"})
    storage.forget(set())
    left = [number for number in range(4) if storage.get("cats", f"{number}@example.com") != (None, None)]
    assert left == [0, 3]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(target=st.text(), sender=st.text(st.characters(exclude_categories=())))
def test_any_text_is_a_target_and_a_sender(storage, target, sender):
    storage.store(target, sender, "abc", "17.M1")
    assert storage.get(target, sender) == ("abc", "17.M1")
    storage.delete(target, sender)


def test_targets_and_senders_are_not_run_together(storage):
    storage.store("a", "b:c", "abc", "17.M1")
    assert storage.get("a:b", "c") == (None, None)


def test_two_storages_share_nothing():
    ConfirmationStorage().store("cats", ZED, "abc", "17.M1")
    assert ConfirmationStorage().get("cats", ZED) == (None, None)
    given_one: dict = {}
    assert ConfirmationStorage(given_one).confirmations is given_one


def test_what_is_in_a_shelf_is_in_its_file_at_once(tmp_path):
    (tmp_path / "killed").mkdir()
    with shelve.Shelf(dbm.dumb.open(str(tmp_path / "shelf"))) as shelf:
        ConfirmationStorage(shelf).store("cats", ZED, "abc", "17.M1")
        for file in tmp_path.glob("shelf*"):  # as the files are when the process ends without a word
            shutil.copy(file, tmp_path / "killed")
    with shelve.Shelf(dbm.dumb.open(str(tmp_path / "killed/shelf"))) as shelf:
        assert ConfirmationStorage(shelf).get("cats", ZED) == ("abc", "17.M1")


def test_a_shelf_that_cannot_be_told_to_write_is_warned_of(tmp_path, caplog):
    with shelve.Shelf(dbm.dumb.open(str(tmp_path / "shelf"))) as shelf:
        ConfirmationStorage(shelf)
    assert not caplog.records
    ConfirmationStorage(shelve.Shelf({}))
    assert "a server that is killed forgets who was asked" in caplog.text


def test_a_database_shows_people_what_is_waited_for(tmp_path):
    database = configure_database({"url": f"sqlite:///{tmp_path}/x.db"})
    storage = SQLAlchemyConfirmationStorage(database)
    assert not list(tmp_path.iterdir()), "nothing is opened before the first use"
    storage.store("cats", ZED, "abc", "17.M1")
    with database.engine.connect() as connection:
        rows = connection.execute(sqlalchemy.text("SELECT target, sender FROM lamson_confirmation")).all()
    assert rows == [("cats", ZED)]
    assert SQLAlchemyConfirmationStorage(f"sqlite:///{tmp_path}/x.db").get("cats", ZED) == ("abc", "17.M1")


# --- asking ------------------------------------------------------------------------------------------------------


def test_the_question_goes_to_the_sender_and_comes_back_to_the_secret(engine, relay):
    vars = {"list_name": "cats", "host": "test.com"}
    message = mail()
    engine.send(relay, "cats", message, "confirm.msg", vars)

    _, question = relay.queue.pop()
    assert re.fullmatch(r"cats-confirm-[a-z0-9]{25}@test\.com", question["From"])
    assert question["Reply-To"] == question["From"]
    assert question["To"] == "Zed <zed@example.com>"
    assert question.To == [ZED]
    assert question["Subject"] == "Confirmation required"
    assert question["In-Reply-To"] == "<1@example.com>"
    assert question.body() == f"Confirm cats for Cats: {question['From']} (cats)\n"
    assert question.is_auto_reply(), "robots must see that a robot asks"
    assert vars == {"list_name": "cats", "host": "test.com"}
    assert engine.pending.count() == 1
    assert engine.verify("cats", message.route_from, secret_of(question["From"])).as_bytes() == message.as_bytes()


def test_a_name_with_percent_signs_is_only_a_name(engine, relay):
    message = mail(headers='From: "100%(host)s %" <zed@example.com>\n')
    engine.send(relay, "cats", message, "confirm.msg", {"host": "test.com"})
    assert relay.queue.pop()[1]["To"] == '"100%(host)s %" <zed@example.com>'


def test_somebody_who_is_only_named_in_headers_is_not_asked(engine, relay):
    message = mail(headers="From: victim@example.com\nReply-To: accomplice@example.com\n", sender="eve@example.com")
    engine.send(relay, "cats", message, "confirm.msg", {"host": "test.com"})
    question = relay.queue.pop()[1]
    assert (question["To"], question.To) == ("eve@example.com", ["eve@example.com"])
    assert engine.verify("cats", "victim@example.com", secret_of(question["From"])) is None
    assert engine.verify("cats", "eve@example.com", secret_of(question["From"])) is not None


def test_without_a_host_it_says_so(engine, relay):
    with pytest.raises(MisuseError, match="no host in the variables for 'confirm.msg'"):
        engine.send(relay, "cats", mail(), "confirm.msg", {"list_name": "cats"})
    assert engine.pending.count() == 0


def test_a_template_that_is_missing_leaves_nothing_behind(engine, relay):
    with pytest.raises(Exception, match=r"nowhere\.msg"):
        engine.send(relay, "cats", mail(), "nowhere.msg", {"host": "test.com"})
    assert engine.pending.count() == 0
    assert engine.storage.confirmations == {}


def test_a_relay_that_fails_leaves_nothing_behind_and_fails(engine):
    class NoRelay:
        def deliver(self, message):
            raise ConnectionRefusedError("nobody there")

    with pytest.raises(ConnectionRefusedError):
        engine.send(NoRelay(), "cats", mail(), "confirm.msg", {"host": "test.com"})
    assert engine.pending.count() == 0
    assert engine.storage.confirmations == {}


@pytest.mark.parametrize(
    "sender, headers",
    [("", "From: mailer-daemon@example.com\n"), (ZED, "Auto-Submitted: auto-generated\n"), (ZED, "X-Autoreply: yes\n")],
)
def test_robots_are_not_asked(engine, relay, sender, headers):
    with pytest.raises(SMTPError, match=r"^550 5\.7\.1 This has to be confirmed, and automatic mail cannot be$"):
        engine.send(relay, "cats", mail(sender, headers=headers), "confirm.msg", {"host": "test.com"})
    assert engine.pending.count() == relay.queue.count() == 0


def test_a_message_from_nobody_cannot_be_registered(engine):
    with pytest.raises(MisuseError, match="it is from <>"):
        engine.register("cats", mail(sender=""))


def test_whoever_asks_twice_has_one_message_waiting(engine):
    first = engine.register("cats", mail(body="one"))
    second = engine.register("cats", mail(body="two", sender="ZED@Example.COM"))
    other = engine.register("dogs", mail(body="three"))
    assert engine.pending.count() == 2
    assert engine.verify("cats", ZED, secret_of(first)) is None
    assert engine.verify("cats", ZED, secret_of(second)).body() == "two\n"
    assert engine.verify("dogs", ZED, secret_of(other)).body() == "three\n"
    assert engine.pending.count() == 0


def test_eight_threads_that_ask_for_one_sender_leave_one_message(engine):
    in_threads(lambda _: engine.register("cats", mail()), range(8))
    assert engine.pending.count() == 1
    assert engine.pending.keys() == [engine.storage.get("cats", ZED)[1]]


def test_of_processes_that_ask_for_one_sender_at_once_one_message_waits(tmp_path):
    """What no lock of this process helps against; engines of their own are as good as processes."""
    url = f"sqlite:///{tmp_path}/x.db"
    engines = [ConfirmationEngine(tmp_path / "pending", SQLAlchemyConfirmationStorage(url)) for _ in range(4)]
    together = threading.Barrier(4)

    def ask(engine):
        for _ in range(5):
            together.wait()
            engine.register("cats", mail())

    in_threads(ask, engines)
    assert engines[0].pending.keys() == [engines[0].storage.get("cats", ZED)[1]]


def test_a_storage_without_replace_will_do(tmp_path):
    engine = ConfirmationEngine(tmp_path / "pending", FourMethods())
    engine.register("cats", mail())
    engine.register("cats", mail())
    assert engine.pending.keys() == [engine.storage.get("cats", ZED)[1]]


def test_a_storage_that_fails_leaves_nothing_in_the_queue(engine, monkeypatch):
    def fail(*arguments):
        raise OSError("no disk")

    monkeypatch.setattr(engine.storage, "replace", fail)
    with pytest.raises(OSError, match="no disk"):
        engine.register("cats", mail())
    assert engine.pending.count() == 0


def test_secrets_are_long_lower_case_and_each_another(engine):
    made = {engine.make_random_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch("[a-z0-9]{25}", secret) for secret in made)
    assert set("".join(made)) == set("abcdefghijklmnopqrstuvwxyz0123456789")


# --- the answer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verify",
    [
        lambda engine, secret: engine.verify("cats", ZED, secret),
        lambda engine, secret: engine.verify("cats", '"Zed" <ZED@Example.com>', secret),
        lambda engine, secret: engine.verify("CATS", ZED, secret.upper()),
        lambda engine, secret: engine.verify("cats", answer(f"cats-confirm-{secret}@test.com"), secret),
        lambda engine, secret: engine.verify(answer(f"Cats-Confirm-{secret.upper()}@test.com"), secret),
        lambda engine, secret: engine.verify(target="cats", from_address=ZED, secret=secret),
    ],
)
@pytest.mark.parametrize("kept_in", [FourMethods, ConfirmationStorage])
def test_the_right_secret_gives_the_message_once(tmp_path, verify, kept_in):
    engine = ConfirmationEngine(Queue(tmp_path / "pending"), kept_in())
    message = mail()
    secret = secret_of(engine.register("Cats", message))
    original = verify(engine, secret)
    assert original.as_bytes() == message.as_bytes()
    assert (original.From, original.To) == (ZED, ["cats-subscribe@test.com"])
    assert engine.pending.count() == 0
    assert verify(engine, secret) is None


def test_headers_that_a_handler_added_are_kept(engine):
    message = mail()
    message["X-Post-Name"] = "hello"
    secret = secret_of(engine.register("cats", message))
    assert engine.verify("cats", ZED, secret)["x-post-name"] == "hello"


@pytest.mark.parametrize("wrong", ["", "0", "a" * 25, "schön", "\udcff", "x" * 100_000])
def test_a_wrong_secret_gives_nothing_and_spoils_nothing(engine, wrong):
    secret = secret_of(engine.register("cats", mail()))
    assert engine.verify("cats", ZED, wrong) is None
    assert engine.verify("cats", ZED, secret[:-1]) is None
    assert engine.verify("cats", ZED, secret) is not None


def test_the_secret_is_good_for_its_sender_and_target_only(engine):
    secret = secret_of(engine.register("cats", mail()))
    joe = answer(f"cats-confirm-{secret}@test.com", sender="joe@example.com")
    assert engine.verify("cats", "joe@example.com", secret) is None
    assert engine.verify(joe, secret) is None
    assert engine.verify("dogs", ZED, secret) is None
    assert engine.verify(answer(f"dogs-confirm-{secret}@test.com"), secret) is None
    assert engine.verify(answer("cats@test.com"), secret) is None
    assert engine.verify("cats", "", secret) is None
    assert engine.verify("cats", ZED, secret) is not None


def test_the_message_is_handled_for_the_recipient_that_the_router_names(engine):
    secret = secret_of(engine.register("cats", mail()))
    message = MailRequest("peer", ZED, ["a@test.com", f"cats-confirm-{secret}@test.com"], "\n")
    message.recipient = f"cats-confirm-{secret}@test.com"
    assert engine.verify(message, secret) is not None


@pytest.mark.parametrize(
    "sender, headers",
    [
        ("", ""),
        (ZED, "Auto-Submitted: auto-replied (vacation)\n"),
        (ZED, "Precedence: auto_reply\n"),
        (ZED, "Content-Type: multipart/report; report-type=disposition-notification; boundary=x\n"),
    ],
)
def test_an_automatic_reply_confirms_nothing(engine, sender, headers):
    secret = secret_of(engine.register("cats", mail()))
    robot = answer(f"cats-confirm-{secret}@test.com", sender, headers)
    assert engine.verify(robot, secret) is None
    assert engine.verify("cats", robot, secret) is None
    assert engine.verify(answer(f"cats-confirm-{secret}@test.com"), secret) is not None


def test_a_secret_that_was_forgotten_to_give_is_asked_for(engine):
    with pytest.raises(MisuseError, match="no secret to verify"):
        engine.verify("cats", ZED)


def test_the_secret_is_compared_in_constant_time(engine, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) or one == other)
    secret = secret_of(engine.register("cats", mail()))
    engine.verify("cats", ZED, "0")
    assert compared == [(secret.encode(), b"0")]


def test_no_secret_is_logged(engine, relay, caplog):
    caplog.set_level("DEBUG")
    engine.send(relay, "cats", mail(), "confirm.msg", {"host": "test.com"})
    secret = secret_of(relay.queue.pop()[1]["From"])
    engine.verify("cats", ZED, "wrong")
    engine.verify("cats", "joe@example.com", secret)
    engine.verify("cats", ZED, secret)
    assert "no cats waits for <joe@example.com>" in caplog.text
    assert secret not in "\n".join(record.getMessage() for record in caplog.records if record.name == "lamson.confirm")


def test_cancel_drops_the_message_for_the_right_secret_only(engine):
    secret = secret_of(engine.register("cats", mail()))
    engine.cancel("cats", ZED, "wrong")
    assert engine.pending.count() == 1
    engine.cancel("cats", "Zed <zed@example.com>", secret)
    assert engine.pending.count() == 0
    assert engine.verify("cats", ZED, secret) is None


def test_a_message_that_somebody_took_out_of_the_queue_cannot_be_confirmed(engine):
    secret = secret_of(engine.register("cats", mail()))
    engine.pending.clear()
    assert engine.verify("cats", ZED, secret) is None


def test_pending_messages_can_be_pushed_read_and_deleted(engine):
    pending_id = engine.push_pending(mail())
    assert engine.get_pending(pending_id)["subject"] == "Cats"
    engine.delete_pending(pending_id)
    engine.delete_pending(pending_id)
    assert engine.get_pending(pending_id) is None


def test_clear_empties_queue_and_storage(engine):
    secret = secret_of(engine.register("cats", mail()))
    engine.clear()
    assert engine.pending.count() == 0
    assert engine.verify("cats", ZED, secret) is None


def test_of_many_who_give_the_right_secret_at_once_one_gets_the_message(tmp_path):
    url = f"sqlite:///{tmp_path}/x.db"
    engines = [ConfirmationEngine(tmp_path / "pending", SQLAlchemyConfirmationStorage(url)) for _ in range(4)]
    secret = secret_of(engines[0].register("cats", mail()))
    together = threading.Barrier(len(engines))
    found = []

    def confirm(engine):
        together.wait()
        found.append(engine.verify("cats", ZED, secret))

    in_threads(confirm, engines)
    assert sum(message is not None for message in found) == 1


# --- age ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch):
    """A function that lets seconds pass."""
    now, ticks = time.time, time.monotonic
    passed = [0.0]
    monkeypatch.setattr("lamson.confirm.time.time", lambda: now() + passed[0])
    monkeypatch.setattr("lamson.confirm.time.monotonic", lambda: ticks() + passed[0])

    def let_pass(seconds):
        passed[0] += seconds

    return let_pass


def test_an_answer_that_comes_too_late_confirms_nothing(engine, later):
    in_time = secret_of(engine.register("cats", mail()))
    late = secret_of(engine.register("dogs", mail()))
    later(7 * 24 * 3600 - 60)
    assert engine.verify("cats", ZED, in_time) is not None
    later(120)
    assert engine.verify("dogs", ZED, late) is None
    assert engine.pending.count() == 0
    assert engine.storage.confirmations == {}


@pytest.mark.parametrize("kept_in", [FourMethods, ConfirmationStorage])
def test_what_nobody_confirms_in_time_is_dropped_by_a_later_question(tmp_path, later, kept_in):
    engine = ConfirmationEngine(tmp_path / "pending", kept_in(), max_age=3600)
    for number in range(3):
        engine.register("cats", mail(sender=f"{number}@example.com"))
    later(1800)
    engine.register("cats", mail(sender="4@example.com"))
    later(2000)
    engine.register("cats", mail(sender="5@example.com"))
    assert engine.pending.count() == 2
    if kept_in is ConfirmationStorage:
        assert len(engine.storage.confirmations) == 2


def test_a_queue_is_not_listed_for_every_question(engine, later, monkeypatch):
    listed = []
    keys = engine.pending.keys
    monkeypatch.setattr(engine.pending, "keys", lambda: listed.append(True) or keys())
    for number in range(5):
        engine.register("cats", mail(sender=f"{number}@example.com"))
    later(3601)
    engine.register("cats", mail())
    assert len(listed) == 2


# --- a handler that fails ----------------------------------------------------------------------------------------


def test_after_a_handler_that_failed_the_same_answer_confirms_again(engine):
    secret = secret_of(engine.register("cats", mail()))
    with pytest.raises(ZeroDivisionError), engine.confirmed("cats", ZED, secret) as original:
        assert original is not None
        assert engine.verify("cats", ZED, secret) is None, "meanwhile nobody else gets it"
        assert engine.pending.count() == 1, "and a power cut would not lose it"
        1 / 0  # noqa: B018
    with engine.confirmed("cats", ZED, secret) as original:
        assert original.body() == "Let me in.\n"
    assert engine.pending.count() == 0
    assert engine.verify("cats", ZED, secret) is None


def test_a_newer_question_is_not_undone_by_a_handler_that_fails(engine):
    old = secret_of(engine.register("cats", mail(body="old")))
    with pytest.raises(ZeroDivisionError), engine.confirmed("cats", ZED, old):
        new = secret_of(engine.register("cats", mail(body="new")))
        1 / 0  # noqa: B018
    assert engine.pending.count() == 1
    assert engine.verify("cats", ZED, old) is None
    assert engine.verify("cats", ZED, new).body() == "new\n"


def test_a_wrong_secret_enters_the_block_with_nothing(engine):
    with pytest.raises(ZeroDivisionError), engine.confirmed("cats", ZED, "wrong") as original:
        assert original is None
        1 / 0  # noqa: B018


# --- with the Router ---------------------------------------------------------------------------------------------


def test_a_sender_confirms_by_answering(engine, relay):
    confirmed = []

    @route("(list_name)-subscribe@(host)", list_name="[a-z]+", host=r"test\.com")
    def START(message, list_name=None, host=None):
        engine.send(relay, list_name, message, "confirm.msg", locals())
        return CONFIRMING

    @route("(list_name)-confirm-(id_number)@(host)", list_name="[a-z]+", id_number="[a-z0-9]+", host=r"test\.com")
    def CONFIRMING(message, list_name=None, id_number=None, host=None):
        original = engine.verify(list_name, message["from"], id_number)
        confirmed.append(original)
        return CONFIRMING if original is None else START

    Router.LOG_EXCEPTIONS = False
    Router.deliver(mail())
    _, question = relay.queue.pop()
    reply = MailRequest("peer", ZED, question["Reply-To"].upper(), question.reply(Body="Yes.").as_bytes())
    Router.deliver(reply)
    assert [original.body() for original in confirmed] == ["Let me in.\n"]
    assert Router.get_state(__name__, mail()) == "START"
