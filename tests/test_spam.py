"""Tests for lamson.spam: the filter, the decorator, and the commands train and classify."""

import email
import io
import logging
import mailbox
import multiprocessing
import os
import re
import sys
import types
from pathlib import Path

import pytest

from lamson import commands, hammierc
from lamson.errors import LamsonError, MisuseError
from lamson.mail import MailRequest, MailResponse
from lamson.queue import Queue
from lamson.routing import Router, nolocking, route, stateless
from lamson.spam import Explanation, Filter, OptionsError, TokenStoreError, spam_filter

HEADER = "X-Spambayes-Classification"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder of a test, on a machine without options of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hammierc, "SYSTEM_FILE", str(tmp_path / "etc-hammierc"))
    return tmp_path


def ham(number=0, extra=""):
    return (
        f"Received: from mail.friend.example ([198.51.100.{number}]) by mx.here.example with ESMTP id {number}\n"
        f"From: Zoe <zoe@friend.example>\nTo: me@here.example\nSubject: Minutes of the meeting {number}\n"
        f"Message-ID: <{number}.zoe@friend.example>\nDate: Mon, 1 Jan 2024 10:00:00 +0100\n{extra}\n"
        f"The minutes of our meeting about routing are attached, see you on {number} for tea.\n"
    ).encode()


def spam(number=0, extra=""):
    return (
        f"Received: from unknown (HELO dialup) ([203.0.113.{number}]) by mx.here.example with SMTP\n"
        f"From: casino{number}@winner.example\nTo: undisclosed-recipients:;\nSubject: FREE CASINO BONUS!!! {number}\n"
        f"Message-ID: <{number}QWERTY@winner>\nDate: Mon, 1 Jan 2024 10:00:00 -1200\nContent-Type: text/html\n{extra}\n"
        f"<html><font color=red>CLICK</font> http://win{number}.casino.example/ to claim your UNLIMITED bonus</html>\n"
    ).encode()


def train(storage, config=None):
    """Train a database with 20 messages of each kind."""
    with Filter(storage, config) as known:
        for number in range(20):
            known.train_ham(ham(number))
            known.train_spam(spam(number))


@pytest.fixture
def trained(folder):
    train("run/spamdb")
    with Filter("run/spamdb") as known:
        yield known


def options(text):
    Path(".hammierc").write_text(text)
    return ".hammierc"


def request(data, sender="zed@example.com", to="me@here.example"):
    return MailRequest("localhost", sender, to, data)


# --- the header ------------------------------------------------------------------------------------------------------


def test_the_header_says_what_a_message_is(trained):
    assert trained.filter(request(spam(50)))[HEADER] == "spam; 1.00"
    assert trained.filter(request(ham(50)))[HEADER] == "ham; 0.00"
    assert trained.filter(request(b"Subject: hello\n\nWhat is this?\n"))[HEADER].startswith("unsure; 0.")


def test_only_the_header_is_added_and_all_other_bytes_stay(trained):
    data = spam(50, extra="X-Odd:   gr\u00fc\u00dfe \nSUBJECT: again\n") + b"\xff\x00 odd bytes\r\n"
    message = trained.filter(request(data))
    head, body = data.split(b"\n\n", 1)
    assert message.as_bytes() == head + b"\n" + HEADER.encode() + b": spam; 1.00\n\n" + body
    assert message.original == data


def test_a_header_that_somebody_else_wrote_is_replaced(trained):
    data = spam(50, extra=f"{HEADER}: ham; 0.00\nx-spambayes-classification: ham; 0.00\n")
    message = trained.filter(request(data))
    assert message.get_all(HEADER) == ["spam; 1.00"]


def test_any_kind_of_message_can_be_filtered(trained):
    for message in (request(spam(50)), request(spam(50)).base, email.message_from_bytes(spam(50))):
        assert trained.filter(message) is message
        assert message.get_all(HEADER) == ["spam; 1.00"]
        trained.filter(message)
        assert message.get_all(HEADER) == ["spam; 1.00"]
    assert b"\n" + HEADER.encode() + b": spam; 1.00\n" in trained.filter(spam(50))
    assert f"\n{HEADER}: spam; 1.00\n" in trained.filter(spam(50).decode())
    assert trained.filter(MailResponse(To="a@x.org", From="b@x.org", Subject="x", Body="y"))[HEADER]
    with pytest.raises(MisuseError, match="no message"):
        trained.filter(7)


def test_what_is_asked_without_a_header_leaves_the_message_alone(trained):
    message = request(spam(50))
    assert trained.score(message) > 0.99
    assert trained.word_for(0.1999) == "ham" and trained.word_for(0.2) == "unsure" and trained.word_for(0.9) == "spam"
    assert message.as_bytes() == spam(50)


def test_an_explanation_has_aspects_and_clues(trained):
    explanation = trained.explain(spam(50))
    assert isinstance(explanation, Explanation)
    assert explanation.score == trained.score(spam(50))
    assert explanation.aspects["words"] > 0.9
    assert ("unlimited", "words") in [(clue.token, clue.aspect) for clue in explanation.clues]


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff\xfe" * 50, b"Subject: \xff\n\n", b"From: <\n\n<a href='", spam(50)[:200]]
)
def test_whatever_comes_gets_its_header_and_can_be_learned(trained, data):
    assert trained.filter(request(data))[HEADER].split(";")[0] in ("ham", "unsure", "spam")
    assert trained.train_spam(request(data))
    assert trained.untrain_spam(request(data))


def test_spam_with_no_text_is_known_by_its_headers(trained):
    headers = spam(50).partition(b"\n\n")[0]
    image = headers.replace(b"text/html", b"image/gif\nContent-Transfer-Encoding: base64") + b"\n\nR0lGODlhAQ==\n"
    for data in (headers, headers + b"\n\n", headers + b"\n\n<html></html>\n", image):
        assert trained.filter(request(data))[HEADER].startswith("spam; ")
    assert trained.filter(request(ham(50).partition(b"\n\n")[0]))[HEADER].startswith("ham; ")


def test_the_recipient_of_the_envelope_is_no_part_of_the_message(trained):
    data = spam(50).replace(b"To: undisclosed-recipients:;\n", b"")
    assert trained.score(request(data)) == trained.score(data)


# --- options ---------------------------------------------------------------------------------------------------------


def test_cutoffs_words_and_names_come_from_the_options(folder):
    train("run/spamdb")
    config = options(
        "[Categorization]\nham_cutoff: 0.0\nspam_cutoff: 1.0\n"
        "[Headers]\nclassification_header_name: X-Verdict\nheader_unsure_string: who knows\nheader_score_digits: 5\n"
    )
    with Filter("run/spamdb", config) as known:
        message = known.filter(request(spam(50)))
        assert message["X-Verdict"] == f"who knows; {known.score(spam(50)):.5f}"
        assert HEADER not in message


def test_more_headers_when_the_options_ask_for_them(folder):
    train("run/spamdb")
    config = options("[Headers]\ninclude_score: yes\ninclude_thermostat: yes\ninclude_evidence: yes\n")
    with Filter("run/spamdb", config) as known:
        message = known.filter(request(spam(50)))
    assert float(message["X-Spambayes-Spam-Probability"]) > 0.99
    assert message["X-Spambayes-Level"] == "*" * 9
    assert "'*words*': 0." in message["X-Spambayes-Evidence"]
    assert "'unlimited': 1.00" in message["X-Spambayes-Evidence"]


def test_evidence_is_cut_off_where_the_options_say_and_is_plain_ascii(folder):
    train("run/spamdb")
    strange = spam(60).replace(b"CLICK", "größer\x1b[2J".encode())
    with Filter("run/spamdb", options("[Headers]\ninclude_evidence: yes\nclue_mailheader_cutoff: 0.0\n")) as known:
        known.train_spam(strange)
        assert "unlimited" not in known.filter(request(strange))["X-Spambayes-Evidence"]
    with Filter("run/spamdb", options("[Headers]\ninclude_evidence: yes\n")) as known:
        evidence = known.filter(request(strange))["X-Spambayes-Evidence"]
        assert evidence.isascii() and "\x1b" not in evidence


def test_the_logarithm_counts_the_nines(folder):
    train("run/spamdb")
    with Filter("run/spamdb", options("[Headers]\nheader_score_logarithm: yes\n")) as known:
        assert known.filter(request(spam(50)))[HEADER] == "spam; 1.00 (4)"
        assert known.filter(request(ham(50)))[HEADER] == "ham; 0.00 (5)"
        assert "(" not in known.filter(request(b"Subject: hi\n\nWhat?\n"))[HEADER]


def test_options_of_the_classifier_reach_it(folder):
    train("run/spamdb")
    with Filter("run/spamdb", options("[Classifier]\nminimum_prob_strength: 0.5\n")) as known:
        assert 0.3 < known.score(spam(50)) < 0.5, "no token tells anything"


def test_the_storage_file_may_be_named_in_the_options(folder):
    config = options("[Storage]\npersistent_storage_file: run/other\n")
    with Filter(None, config) as known:
        known.train_spam(spam())
    assert Path("run/other").exists()
    with pytest.raises(MisuseError, match="needs a database"):
        Filter("")


def test_options_that_do_not_parse_are_an_error_at_once(folder):
    with pytest.raises(OptionsError, match=r"\.hammierc makes no sense"):
        Filter("run/spamdb", options("spam_cutoff 0.9"))


# --- training --------------------------------------------------------------------------------------------------------


def test_training_writes_down_in_the_message_what_it_was_trained_as(trained):
    message = request(spam(50))
    assert trained.train_spam(message)
    assert message["X-Spambayes-Trained"] == "spam"
    assert trained.train_ham(message)
    assert message["X-Spambayes-Trained"] == "ham"
    assert trained.untrain_ham(message)
    assert "X-Spambayes-Trained" not in message


def test_nothing_is_written_into_the_message_when_the_options_say_so(folder):
    with Filter("run/spamdb", options("[Headers]\ninclude_trained: False\n")) as known:
        message = request(spam())
        known.train_spam(message)
        known.untrain_spam(message)
        assert message.as_bytes() == spam()


def test_a_message_is_known_again_whatever_became_of_it_since(trained):
    message = request(spam(50))
    trained.train_spam(message)
    assert not trained.train_spam(message), "it has a header more"
    assert not trained.train_spam(spam(50).replace(b"\n", b"\r\n")), "it went through SMTP"
    assert not trained.train_spam(b"Received: by another server\n" + spam(50))
    assert trained.train_spam(spam(51))


def test_a_header_of_a_strangers_does_not_undo_training(trained):
    before = trained.score(ham(50))
    trained.train_spam(request(spam(60, extra="X-Spambayes-Trained: ham\n")))
    assert trained.score(ham(50)) == pytest.approx(before, abs=0.01)
    assert not trained.untrain_ham(request(spam(60)))


def test_untraining_brings_back_the_score_there_was(trained):
    unknown = b"Subject: hello\n\nxyzzy plugh\n"
    before = trained.score(unknown)
    trained.train_spam(unknown)
    assert trained.score(unknown) > before
    assert trained.untrain_spam(unknown)
    assert trained.score(unknown) == before


def test_closing_keeps_everything_and_using_opens_again(trained):
    trained.close()
    trained.close()
    assert trained.score(spam(50)) > 0.99
    trained.open()
    assert trained.train_spam(spam(50))


# --- without training ------------------------------------------------------------------------------------------------


def test_an_untrained_database_makes_everything_unsure_and_warns_once(folder, caplog):
    with caplog.at_level(logging.WARNING), Filter("run/spamdb") as new:
        assert new.filter(request(spam()))[HEADER] == "unsure; 0.50"
        assert new.filter(request(ham()))[HEADER] == "unsure; 0.50"
        assert new.explain(spam()) == Explanation(0.5, {}, [])
        assert not Path("run").exists(), "asking makes no database"
        new.train_spam(spam())
        assert new.filter(request(spam(1)))[HEADER] == "unsure; 0.50", "with spam alone, all mail looks like it"
        new.train_ham(ham())
        assert new.filter(request(spam(1)))[HEADER].startswith("spam")
    assert ["trained" in record.getMessage() for record in caplog.records] == [True]


def test_a_database_that_is_put_in_place_of_another_one_is_used(trained):
    train("run/new")
    assert trained.score(spam(50)) > 0.99
    for name in os.listdir("run"):
        if name.startswith("spamdb"):
            os.unlink(f"run/{name}")
    assert trained.score(spam(50)) == 0.5
    os.rename("run/new", "run/spamdb")
    assert trained.score(spam(50)) > 0.99


def test_a_database_of_spambayes_is_refused_with_what_to_do(folder):
    Path("hammie.db").write_bytes(b"\x80\x02}q\x01(U\x05token" * 100)
    with pytest.raises(TokenStoreError, match="sb_dbexpimp"):
        Filter("hammie.db").filter(request(spam()))


def test_what_spambayes_learned_can_be_imported(folder):
    Path("export.csv").write_text("50,50\nviagra,0,40\nsubject:viagra,0,40\nmeeting,40,0\nfrom:addr:friend,30,0\n")
    with Filter("run/spamdb") as known:
        assert known.import_spambayes("export.csv") == (50, 50, 4)
        assert known.score(b"Subject: Viagra\n\nviagra\n") > 0.5
        assert known.score(b"Subject: hi\n\nmeeting\n") < 0.5


# --- several at once -------------------------------------------------------------------------------------------------


def _train_elsewhere(path, first):
    with Filter(path) as known:
        for number in range(first, first + 20):
            known.train_spam(spam(number, extra="X-Mailer: xyzzy\n"))


def test_what_other_processes_train_counts_from_the_next_message_on(trained):
    unknown = b"X-Mailer: xyzzy\n\n"
    before = trained.score(unknown)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_train_elsewhere, args=("run/spamdb", first)) for first in (100, 120)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert trained.score(unknown) > before


# --- the decorator ---------------------------------------------------------------------------------------------------


@pytest.fixture
def handlers(folder):
    """A module with a handler behind a filter: as in a project, but its functions are made here."""
    Router.LOG_EXCEPTIONS = False
    Router.defaults(host="here.example")
    module = types.ModuleType("handlers_of_test_spam")
    module.ran = []
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def protect(module, filter=spam_filter, config=None, storage="run/spamdb"):
    """Give the module a START behind a filter, in place of the one it has."""
    Router.clear_routes()

    def SPAMMING(message, **captures):
        module.ran.append(("SPAMMING", captures))

    @filter(storage, config, "run/spam", next_state=SPAMMING)
    def START(message, name=None, host=None):
        """Takes mail."""
        module.ran.append((message[HEADER], name, host))

    for func in (SPAMMING, START):
        func.__module__ = module.__name__
        setattr(module, func.__name__, func)
    route("(name)@(host)", name=".+")(START)
    return START


def deliver(data, sender="zed@example.com"):
    message = request(data, sender)
    Router.deliver(message)
    return message


def test_spam_goes_to_the_queue_and_its_sender_to_the_next_state(handlers, trained):
    protect(handlers)
    message = deliver(spam(50))
    assert handlers.ran == []
    assert Router.get_state(handlers.__name__, message) == "SPAMMING"
    caught = Queue("run/spam").pop()[1]
    assert (caught.From, caught.To) == ("zed@example.com", ["me@here.example"])
    assert caught.original == trained.filter(request(spam(50))).as_bytes()
    assert Queue("run/spam").count() == 0


def test_ham_and_what_is_unsure_reach_the_function_with_their_captures(handlers, trained):
    protect(handlers)
    message = deliver(ham(50))
    deliver(b"Subject: hello\n\nWhat is this?\n")
    assert handlers.ran[0] == ("ham; 0.00", "me", "here.example")
    assert handlers.ran[1][0].startswith("unsure") and len(handlers.ran) == 2
    assert Router.get_state(handlers.__name__, message) == "START"
    assert not Path("run/spam").exists()


def test_the_function_keeps_its_names_and_settings(handlers):
    START = protect(handlers)
    assert (START.__name__, START.__module__, START.__doc__) == ("START", handlers.__name__, "Takes mail.")
    assert START._lamson_settings["format"] == "(?P<name>.+)@(?P<host>here.example)"

    @spam_filter("run/spamdb", None, "run/spam", next_state=print)
    @stateless
    @nolocking
    def LOGGER(message):
        pass

    assert LOGGER._lamson_settings == {"stateless": True, "nolocking": True}


def test_without_training_everything_passes_with_one_warning(handlers, caplog):
    protect(handlers)
    with caplog.at_level(logging.WARNING):
        deliver(spam(1))
        deliver(spam(2))
    assert [ran[0] for ran in handlers.ran] == ["unsure; 0.50"] * 2
    assert len(caplog.records) == 1 and "has not been trained" in caplog.text


def test_a_broken_database_lets_mail_pass_and_is_logged(handlers, caplog):
    os.mkdir("run")
    Path("run/spamdb").write_bytes(b"no database" * 100)
    protect(handlers)
    deliver(spam(1))
    assert len(handlers.ran) == 1
    assert "the message passes" in caplog.text and "no token database" in caplog.text


def test_the_options_decide_what_is_spam(handlers, trained):
    protect(handlers, config=options("[Categorization]\nspam_cutoff: 1\n[Headers]\nclassification_header_name: X-V\n"))
    deliver(spam(50))
    assert len(handlers.ran) == 1
    protect(handlers, config=options("[Headers]\nclassification_header_name: X-V\nheader_spam_string: junk\n"))
    deliver(spam(51))
    assert Queue("run/spam").pop()[1]["X-V"].startswith("junk; 1.00")


def test_the_test_for_spam_may_be_overridden(handlers, trained):
    class careful(spam_filter):
        def spam(self, message):
            return super().spam(message) and message["Subject"] != "FREE CASINO BONUS!!! 51"

    class strict(spam_filter):
        def spam(self, message):
            return True

    protect(handlers, careful)
    deliver(spam(50))
    deliver(spam(51), sender="another@example.com")
    assert (Queue("run/spam").count(), len(handlers.ran)) == (1, 1)
    protect(handlers, strict)
    deliver(ham(50), sender="third@example.com")
    assert (Queue("run/spam").count(), len(handlers.ran)) == (2, 1)


def test_what_is_forgotten_or_in_the_wrong_order_is_an_error_that_says_so(handlers):
    with pytest.raises(MisuseError, match="next_state=FUNCTION"):
        spam_filter("run/spamdb", None, "run/spam")
    with pytest.raises(MisuseError, match="@route on top"):

        @spam_filter("run/spamdb", None, "run/spam", next_state=print)
        @route("(name)@(host)", name=".+")
        def START(message, **captures):
            pass

    with pytest.raises(LamsonError, match="makes no sense"):
        spam_filter("run/spamdb", options("x"), "run/spam", next_state=print)


# --- the commands ----------------------------------------------------------------------------------------------------


def folder_of_files(name, kind, count=12):
    os.makedirs(name)
    for number in range(count):
        Path(name, f"{number:03}").write_bytes(kind(number))
    Path(name, ".hidden").write_bytes(b"Subject: not this\n\n")
    os.mkdir(f"{name}/folder")
    return name


def maildir(name, kind, count=12):
    queue = Queue(name)
    for number in range(count):
        queue.push(request(kind(number)))
    os.rename(next(Path(name, "new").iterdir()), Path(name, "cur", "seen:2,S"))
    return name


def mbox(name, kind, count=12):
    box = mailbox.mbox(name)
    for number in range(count):
        box.add(kind(number))
    box.close()
    return name


@pytest.mark.parametrize("store", [folder_of_files, maildir, mbox])
def test_train_learns_from_a_folder_of_files_a_maildir_or_an_mbox(store, capsys):
    commands.train_command(ham=store("ham", ham), spam=store("spam", spam))
    assert capsys.readouterr().out == (
        "Learned 12 ham; 0 had been learned before.\nLearned 12 spam; 0 had been learned before.\n"
    )
    with Filter("run/spamdb") as known:
        assert known.score(spam(50)) > 0.9 and known.score(ham(50)) < 0.1
        assert not known.train_ham(ham(3)), "a mail in a queue is known again without its envelope"


def test_train_learns_a_mail_once(capsys):
    commands.train_command(spam=folder_of_files("spam", spam), db="db")
    commands.train_command(spam="spam", db="db")
    assert capsys.readouterr().out.splitlines()[1] == "Learned 0 spam; 12 had been learned before."
    commands.train_command(ham="spam", db="db")
    assert capsys.readouterr().out == "Learned 12 ham; 0 had been learned before.\n"


def test_an_mbox_with_nothing_in_it_is_no_mail(capsys):
    Path("mbox").write_bytes(b"")
    commands.train_command(ham="mbox", db="db")
    assert capsys.readouterr().out == "Learned 0 ham; 0 had been learned before.\n"


def test_train_takes_back_what_it_has_learned(capsys):
    commands.train_command(ham=folder_of_files("ham", ham), spam=folder_of_files("spam", spam), db="db")
    commands.train_command(spam="spam", untrain=True, db="db")
    commands.train_command(spam="ham", untrain=True, db="db")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "Took back 12 spam; 0 had not been trained as spam.",
        "Took back 0 spam; 12 had not been trained as spam.",
    ]


def test_train_imports_what_spambayes_learned(capsys):
    Path("export.csv").write_text("5,7\nviagra,0,6\n")
    commands.train_command(spambayes="export.csv", db="db")
    assert capsys.readouterr().out == "Added what SpamBayes learned from 5 ham and 7 spam: 1 tokens.\n"


@pytest.mark.parametrize(
    ("given", "code", "reason"),
    [
        ({}, 2, "say what to learn from"),
        ({"ham": "missing"}, 1, "there is no missing"),
        ({"ham": ".", "untrain": True, "db": "missing"}, 1, "there is no missing"),
        ({"spambayes": "x", "untrain": True}, 1, "cannot be taken back"),
        ({"spambayes": "missing"}, 1, "cannot train run/spamdb: .*missing"),
        ({"spambayes": "README", "db": "db"}, 1, "no export of SpamBayes"),
        ({"ham": "README", "db": "README"}, 1, "no token database"),
        ({"ham": "README", "db": "README/db"}, 1, "cannot train"),
    ],
)
def test_train_refuses_what_cannot_work(capsys, given, code, reason):
    Path("README").write_text("This is no database.\n" * 100)
    with pytest.raises(SystemExit) as caught:
        commands.train_command(**given)
    printed = capsys.readouterr()
    assert caught.value.code == code and printed.out == ""
    assert re.search(reason, printed.err)
    assert printed.err.count("\n") == 1


def test_train_shows_a_progress_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    commands.train_command(spam=folder_of_files("spam", spam, 3), db="db")
    assert capsys.readouterr().err.endswith("\r[##############################] 3/3\n")


def test_classify_tells_what_a_mail_is_and_by_which_clues(capsys, trained, monkeypatch):
    Path("mail").write_bytes(spam(50))
    commands.classify_command(input="mail", clues=400)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "spam; 1.00  mail"
    assert out[1].startswith("    subject 0.") and "words 0." in out[1]
    assert "    0.998  words      unlimited" in out
    assert "mails:" not in out[-1]
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(ham(50))))
    commands.classify_command(clues=0)
    assert capsys.readouterr().out == "ham; 0.00  -\n"


def test_classify_counts_when_there_are_several(capsys, trained):
    commands.classify_command(input=folder_of_files("spam", spam, 3), clues=0)
    assert capsys.readouterr().out.splitlines()[1:] == ["spam; 1.00  001", "spam; 1.00  002", "3 mails: 3 spam."]
    os.mkdir("empty")
    commands.classify_command(input="empty")
    assert capsys.readouterr().out == "0 mails: none.\n"


def test_classify_uses_the_options_and_changes_nothing(capsys, trained):
    before = Path("run/spamdb").read_bytes()
    Path("mail").write_bytes(spam(50))
    config = options("[Categorization]\nspam_cutoff: 1\n[Headers]\nheader_unsure_string: perhaps\n")
    commands.classify_command(input="mail", config=config, clues=0)
    assert capsys.readouterr().out == "perhaps; 1.00  mail\n"
    assert (Path("mail").read_bytes(), Path("run/spamdb").read_bytes()) == (spam(50), before)


def test_classify_writes_nothing_to_a_terminal_that_it_would_obey(capsys, trained):
    evil = spam(70).replace(b"CLICK", b"\x1b]0;evil\x07")
    trained.train_spam(evil)
    Path("mail").write_bytes(evil)
    commands.classify_command(input="mail", clues=500)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "?]0;evil?" in out


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"db": "missing"}, "there is no missing. Train it"),
        ({"input": "missing"}, "there is no missing"),
        ({"db": "README"}, "no token database"),
        ({"config": "README"}, "README makes no sense"),
    ],
)
def test_classify_refuses_what_cannot_work(capsys, trained, given, reason):
    Path("README").write_text("This is no database.\n" * 100)
    with pytest.raises(SystemExit) as caught:
        commands.classify_command(**{"input": "README", **given})
    assert caught.value.code == 1
    assert reason in capsys.readouterr().err


# --- the page --------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs/spam.md"


def test_the_code_of_the_page_runs(handlers, trained, capsys):
    protected, strict, training = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(protected, handlers.__name__, "exec"), vars(handlers))
    deliver(ham(50))
    deliver(spam(50))
    assert capsys.readouterr().out == "not spam: Minutes of the meeting 50 ham; 0.00\n"
    assert Queue("run/spam").count() == 1

    exec(compile(strict, "page", "exec"), vars(handlers))
    protect(handlers, handlers.strict_filter)
    deliver(ham(51, extra="X-Mailer: Spam-O-Matic\n"), sender="another@example.com")
    assert Queue("run/spam").count() == 2

    os.rename("run/spamdb", "run/another")
    names = {}
    exec(compile(training, "page", "exec"), names)
    assert names["message"].startswith("Subject: Tea\nX-Spambayes-Classification: ")
    assert names["score"] > 0.5


def test_the_page_has_every_option_and_its_default():
    table = PAGE.read_text().split("| section | option |")[1].split("\n\n")[0]
    for name in hammierc._KNOWN:
        assert f"`{name}`" in table, name
    for name, default in vars(hammierc.Options).items():
        if isinstance(default, str | float) and not name.startswith("_"):
            assert str(default) in table, name
