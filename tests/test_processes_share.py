"""Several processes route mail of the same senders, over one database: each state machine goes its steps exactly."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import postgres
from lamson.database import SQLAlchemyStorage

HERE = Path(__file__).parent.parent
PROCESSES, THREADS, TURNS, SENDERS, STATES = 2, 4, 10, 3, 7

# Each state goes to the next one. A step that two processes took at the same time would be taken twice from one state.
PROGRAM = f"""
import sys, threading
from lamson.database import SQLAlchemyStorage
from lamson.mail import MailRequest
from lamson.routing import Router, route

Router.STATE_STORE = SQLAlchemyStorage(sys.argv[1])
Router.STATE_STORE.prepare()
Router.LOCKING, Router.LOG_EXCEPTIONS = sys.argv[2], False
log = open(sys.argv[3], "a", buffering=1)

names = ["START"] + ["S%d" % number for number in range(1, {STATES})]

def state(number):
    def step(message):
        log.write(message.route_from + " " + names[number] + "\\n")
        return states[(number + 1) % {STATES}]
    step.__name__ = step.__qualname__ = names[number]
    return route("count@test.com")(step)

states = [state(number) for number in range({STATES})]

def run():
    for turn in range({TURNS}):
        for sender in range({SENDERS}):
            (outcome,) = Router.deliver_each(MailRequest("", "%d@x.org" % sender, "count@test.com", b""))
            assert outcome.handled

input()
threads = [threading.Thread(target=run) for _ in range({THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/states.db"
    else:
        with postgres.running() as server:
            yield server.url()


@pytest.mark.parametrize("locking", ["all", "sender"])
def test_every_message_takes_one_step(url, locking, tmp_path):
    program, log = tmp_path / "counting.py", tmp_path / "steps"
    program.write_text(PROGRAM)
    processes = [
        subprocess.Popen([sys.executable, program, url, locking, log], cwd=HERE, stdin=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait() for process in processes] == [0] * PROCESSES
    for process in processes:
        process.stdin.close()

    messages = PROCESSES * THREADS * TURNS
    names = ["START", *(f"S{number}" for number in range(1, STATES))]
    steps = [line.split() for line in log.read_text().splitlines()]
    for sender in (f"{number}@x.org" for number in range(SENDERS)):
        taken = [state for who, state in steps if who == sender]
        assert taken == [names[number % STATES] for number in range(messages)]
        storage = SQLAlchemyStorage(url)
        assert storage.get("__main__", sender) == names[messages % STATES]
    assert set(Counter(who for who, _ in steps).values()) == {messages}
