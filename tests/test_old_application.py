"""An application written for Lamson 1.x, in old_application/, runs after nothing but a conversion to Python 3."""

import shutil
import subprocess
import sys
from pathlib import Path
from smtplib import SMTPDataError

import pytest

from commandline import deliver, run, set_port, start
from lamson.queue import Queue
from pages import Page
from processes import eventually

APPLICATION = Path(__file__).parent / "old_application"


@pytest.fixture
def desk(folder, monkeypatch):
    """The application in a folder of its own, the current one, with a log server where it sends mail to."""
    shutil.copytree(APPLICATION, folder / "desk", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder / "desk")
    for name in ("logs", "run"):
        Path(name).mkdir()
    port, _ = start("-port", "0", command="log")
    set_port(0)
    set_port(port, "relay_config")
    return folder / "desk"


def sent(number):
    """The mails that the application has sent, once there are so many, the oldest first."""
    mails = Queue("run/queue")
    eventually(lambda: mails.count() >= number, f"{number} mails in run/queue")
    return [mails.get(key) for key in mails.keys()]


def say(port, to, body="Hi."):
    deliver(port, body, to)


def test_its_tests_are_green(desk):
    done = subprocess.run([sys.executable, "-m", "lamson.nosetests"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Ran 5 tests" in done.stderr


def test_the_states_of_an_old_shelf_are_taken_over_as_the_page_says(desk):
    page = Page("from_lamson_1.md")
    write, read = (page.block("The data", beginning) for beginning in ("python2", "from ast"))
    make = "import shelve; shelve.open('run/states')[repr(['app.handlers.desk', u'me@mydomain.com'])] = 'OPEN'"
    if subprocess.run(f'python2 -c "{make}"', shell=True, capture_output=True).returncode == 0:
        subprocess.run(write, shell=True, check=True)
    else:  # where there is no Python 2, what it would write
        Path("states.txt").write_text("['app.handlers.desk', u'me@mydomain.com'] OPEN\n")
    subprocess.run([sys.executable, "-c", read], check=True)
    port, _ = start()
    with pytest.raises(SMTPDataError, match="550, b'No ticket 0'"):
        say(port, "ticket-0@support.example.com")


def test_its_server_holds_conversations_over_restarts_and_keeps_what_a_handler_failed_on(desk):
    port, _ = start()
    say(port, "support@support.example.com", "It does not work.")
    (opened,) = sent(1)
    assert (opened["To"], opened["Subject"]) == ("me@mydomain.com", f"[{opened['From'][7:15]}] hello")
    assert [part.body for part in opened.all_parts()] == [
        f"Dear friend, this is ticket {opened['From'][7:15]}.\n",
        "The terms for me@mydomain.com.\n",
    ]

    port, _ = start(command="restart")
    say(port, opened["From"], "More about it.")
    say(port, opened["From"].replace("@", "-status@"))
    with pytest.raises(SMTPDataError, match="550, b'No ticket 0'"):
        say(port, "ticket-0@support.example.com")
    say(port, opened["From"].replace("@", "-close@"))
    _, worked, status, closed = sent(4)
    assert (worked["To"], worked.body()) == ("agents@example.com", "More about it.\n")
    assert "<li" in status.html() and "color: #333" in status.html()
    assert closed.body() == "It is closed.\n"

    say(port, opened["From"], "Once more.")
    assert "RuntimeError: ticket" in Path("logs/lamson.log").read_text()
    assert Queue("run/undeliverable").count() == 1
    run("start", "-boot", "config.forward", "-pid", "run/forward.pid")
    assert sent(5)[-1].body() == "Once more.\n"
    eventually(lambda: Queue("run/undeliverable").count() == 0, "an empty queue")
