"""The project that `lamson gen` writes: green at once, readable, and made as config/settings.py says."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
TEMPLATE = HERE / "templates/project"

# Runs the rest of the code in the project, with what config/boot.py makes of it.
BOOT = "from config import boot, settings; from lamson.routing import Router; "


@pytest.fixture
def project(tmp_path):
    return Path(shutil.copytree(TEMPLATE, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__")))


def run(project, *arguments):
    """Returns the exit code and all that ``python ARGUMENTS`` printed in the project's folder."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(HERE), "HOME": str(project)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def printed(project, code):
    """What `code` prints when it runs in the project."""
    exit_code, output = run(project, "-c", code)
    assert exit_code == 0, output
    return output.strip()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# --- the tree ----------------------------------------------------------------------------------------------------


def test_everything_is_there():
    for name in (
        "app/handlers/sample.py",
        "app/model",
        "app/templates",
        "app/data",
        "config/boot.py",
        "config/testing.py",
        "config/settings.py",
        "config/logging.conf",
        "config/lamson.service",
        "config/test_logging.conf",
        "logs",
        "run",
        "tests/handlers/open_relay_tests.py",
        "tests/model",
        "tests/templates",
        "muttrc",
        "README",
    ):
        assert (TEMPLATE / name).exists(), name


def test_no_folder_is_empty_since_packages_and_git_drop_empty_ones():
    for folder, _, files in os.walk(TEMPLATE):
        if not folder.endswith("__pycache__"):
            assert files or any(Path(folder).rglob("*.*")), folder


def test_it_can_be_read_in_five_minutes():
    sources = [path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(len(path.read_text().splitlines()) for path in sources) < 400


# --- its tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["lamson.nosetests", "nose2"])
def test_both_of_its_tests_pass_with_no_server_running(project, command):
    code, output = run(project, "-m", command, "-v")
    assert code == 0, output
    assert "open_relay_tests.test_mail_for_our_host_is_forwarded ... ok" in output
    assert "open_relay_tests.test_mail_for_anyone_else_is_refused ... ok" in output
    assert "Ran 2 tests" in output
    assert "Warning" not in output


def test_its_tests_leave_nothing_undeliverable_and_no_database(project):
    assert run(project, "-m", "lamson.nosetests")[0] == 0
    assert not (project / "run/undeliverable").exists()
    assert os.listdir(project / "app/data") == ["README"]
    assert "relayed:" in (project / "logs/tests.log").read_text()


def test_its_tests_fail_on_an_open_relay(project):
    edit(project / "config/settings.py", r'r"test\.com|localhost"', 'r".+"')
    code, output = run(project, "-m", "lamson.nosetests")
    assert code == 1
    assert "Set `host` in router_defaults to your own hosts." in output


def test_its_tests_fail_on_a_handler_that_fails(project):
    edit(project / "app/handlers/sample.py", "relay.deliver(message)", "relay.deliver(massage)")
    code, output = run(project, "-m", "lamson.nosetests")
    assert code == 1
    assert "name 'massage' is not defined" in output
    assert "app/handlers/sample.py" in output


# --- its settings ------------------------------------------------------------------------------------------------


def test_boot_makes_of_the_settings_what_the_server_needs(project):
    assert printed(project, BOOT + "print(settings.relay, settings.receiver.port, Router.RELOAD)") == (
        "<Relay to (localhost:8825)> 8823 False"
    )
    assert printed(project, BOOT + "print(Router.UNDELIVERABLE_QUEUE.dir)") == "run/undeliverable"
    assert printed(project, BOOT + "print(sorted(Router.HANDLERS), settings.receiver.unknown_recipients)") == (
        "['app.handlers.sample'] refuse"
    )
    assert printed(project, BOOT + "from lamson import view; print(view.load.__module__, view.LOADER.loader)")


def test_boot_opens_no_database_before_privileges_are_dropped(project):
    printed(project, BOOT)
    assert os.listdir(project / "app/data") == ["README"]


def test_only_our_hosts_are_routed(project):
    code = BOOT + "print([bool(list(Router.match(a))) for a in ('x@test.com', 'x@localhost', 'x@testxcom', 'x@y.org')])"
    assert printed(project, code) == "[True, True, False, False]"


SAY = (
    "from lamson.mail import MailRequest; from lamson.testing import QueueRelay; import app.handlers.sample as sample; "
    "sample.relay = QueueRelay(); "
    "Router.deliver(MailRequest('peer', 'zed@example.com', ['joe@test.com', 'x@y.org'], 'Subject: x\\n\\nbody')); "
    "print(Router.STATE_STORE.get('app.handlers.sample', 'zed@example.com'), "
    "[list(sample.relay.queue.get(key).To) for key in sample.relay.queue.keys()])"
)


def test_the_senders_state_survives_a_restart_and_only_our_recipients_are_relayed(project):
    assert printed(project, BOOT + SAY) == "NEW [['joe@test.com']]"
    assert printed(project, BOOT + SAY) == "NEW [['joe@test.com'], ['joe@test.com']]"
    with sqlite3.connect(project / "app/data/lamson.db") as database:
        rows = database.execute("SELECT state_key, sender, state FROM lamson_state").fetchall()
    assert rows == [("app.handlers.sample", "zed@example.com", "NEW")]


def test_the_log_says_when_who_and_how_bad(project):
    printed(project, BOOT + SAY)
    lines = (project / "logs/lamson.log").read_text().splitlines()
    assert lines
    for line in lines:
        when, logger, level, _ = line.split(" - ", 3)
        assert when[:2] == "20"
        assert logger.startswith("lamson.")
        assert level in ("INFO", "WARNING")


# --- what it invites to do ---------------------------------------------------------------------------------------


def uncomment(path):
    """Takes the comment signs off the example, which starts at the first commented import."""
    head, sign, example = path.read_text().partition("# from ")
    assert sign
    path.write_text(
        head
        + "\n".join(line[2:] if line.startswith("# ") else line.lstrip("#") for line in (sign + example).splitlines())
        + "\n"
    )


def test_the_commented_model_works_when_it_is_uncommented(project):
    uncomment(project / "app/model/tables.py")
    uncomment(project / "tests/model/tables_tests.py")
    for command in ("lamson.nosetests", "nose2"):
        exit_code, output = run(project, "-m", command, "-v")
        assert exit_code == 0, output
        assert "tables_tests.test_a_list_has_those_who_subscribed_to_it ... ok" in output
        assert "tables_tests.test_nobody_is_on_a_list_twice ... ok" in output
        assert "Ran 4 tests" in output
    edit(project / "app/model/tables.py", ".filter_by(list_name=list_name)", "")
    assert run(project, "-m", "lamson.nosetests")[0] == 1


def test_a_handler_saves_what_the_comment_at_the_model_says(project):
    uncomment(project / "app/model/tables.py")
    example = (project / "app/model/tables.py").read_text().split('"""')[1]
    imports, save, read = re.findall(r"(?:^    \S.*\n)+", example, re.MULTILINE)
    (project / "app/handlers/sample.py").write_text(
        f"{imports}from sqlalchemy import select\nfrom lamson.routing import route, stateless\n".replace("    ", "")
        + '@route("(name)@(host)", name=".+")\n@stateless\n'
        + f"def START(message, name=None, host=None):\n{save}"
        + f"    if name == 'fail':\n        raise ValueError(name)\n{read}"
        + "    print([each.address for each in everybody])\n"
    )
    code = (
        BOOT + "settings.database.create_tables(); from lamson.mail import MailRequest\n"
        "for name in 'fail', 'cats':\n"
        "    Router.deliver(MailRequest('', f'{name}@x.org', f'{name}@test.com', 'Subject: x\\n\\nbody'))"
    )
    assert printed(project, code) == "['cats@x.org']"
    with sqlite3.connect(project / "app/data/lamson.db") as database:
        assert database.execute("SELECT list_name, address FROM subscription").fetchall() == [("cats", "cats@x.org")]


def test_the_template_in_the_readme_of_templates_works(project):
    text = (project / "app/templates/README").read_text()
    template, handler = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", text, re.MULTILINE)
    (project / "app/templates/welcome.msg").write_text(template.strip() + "\n")
    (project / "app/handlers/sample.py").write_text(
        "from config.settings import relay\nfrom lamson.routing import route, stateless\n"
        '@route("(name)@(host)", name=".+")\n@stateless\n'
        f"def START(message, name=None, host=None):\n{handler}\n"
    )
    (project / "tests/handlers/open_relay_tests.py").write_text(
        "from lamson.testing import *\nclient = RouterConversation('zed@example.com', 'x')\n"
        "def test_it():\n"
        "    answer = client.say('joe@test.com', 'Hello', expect='Welcome')\n"
        "    assert_equal(answer.body(), 'Hello joe, welcome to test.com.\\n')\n"
        "    assert_equal(answer['from'], 'noreply@test.com')\n"
    )
    exit_code, output = run(project, "-m", "lamson.nosetests")
    assert exit_code == 0, output


def test_muttrc_reads_the_queue_and_sends_through_the_server():
    text = (TEMPLATE / "muttrc").read_text()
    assert "set mbox_type=Maildir" in text
    assert 'set spoolfile="run/queue"' in text
    assert 'set sendmail="lamson sendmail -port 8823 -host 127.0.0.1"' in text


@pytest.mark.skipif(shutil.which("mutt") is None, reason="mutt is not installed")
def test_mutt_understands_muttrc(project):
    done = subprocess.run(
        ["mutt", "-F", "muttrc", "-Q", "sendmail"], cwd=project, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == 'sendmail="lamson sendmail -port 8823 -host 127.0.0.1"'
    assert done.stderr == ""


# --- the documentation -------------------------------------------------------------------------------------------


def files_in(document):
    """The Python blocks of a page that follow a line which ends in a file's name, as a dictionary."""
    return dict(
        re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.+?)```", (HERE / "docs" / document).read_text(), re.DOTALL)
    )


def scripts_in(document):
    """The Python blocks of a page that stand for themselves."""
    text = (HERE / "docs" / document).read_text()
    return re.findall(r"(?<!`:\n\n)```python\n(.+?)```", text, re.DOTALL)


def test_the_example_in_the_page_on_testing_is_green(project):
    files = files_in("testing.md")
    assert list(files) == ["app/handlers/hello.py", "tests/handlers/hello_tests.py"]
    for name, text in files.items():
        (project / name).write_text(text)
    edit(project / "config/settings.py", '["app.handlers.sample"]', '["app.handlers.hello", "app.handlers.sample"]')
    for names in ([], ["tests/handlers/hello_tests.py:test_a_stranger_is_greeted_once"]):
        code, output = run(project, "-m", "lamson.nosetests", "-v", *names)
        assert code == 0, output
        assert "hello_tests.test_a_stranger_is_greeted_once ... ok" in output


@pytest.mark.parametrize("document, count", [("testing.md", 1), ("storage.md", 3), ("databases.md", 3)])
def test_each_script_in_the_pages_runs(project, document, count):
    scripts = scripts_in(document)
    assert len(scripts) == count
    for script in scripts:
        printed(project, script)


def test_the_storage_in_the_page_on_storage_stores(project):
    (script,) = (script for script in scripts_in("storage.md") if "JSONStorage" in script)
    code = (
        "\nstore = Router.STATE_STORE\nstore.set('a', 'x', 'ONE')\nstore.set('a', 'y', 'START')\n"
        "print(store.get('a', 'x'), store.get('a', 'y'), sorted(store.read().values()))\nstore.set('a', 'x', 'START')\n"
        "print(store.get('a', 'x'), store.read())\nstore.clear()\nprint(store.read())"
    )
    assert printed(project, script + code) == "ONE START ['ONE']\nSTART {}\n{}"


def test_the_storages_in_the_page_on_storage_keep_the_contract(project):
    """The test in the page, as it is and with the page's own storage in place of Lamson's."""
    json_storage, test = scripts_in("storage.md")[1:]
    ours = 'SQLAlchemyStorage(f"sqlite:///{self.folder}/states.db")'
    assert ours in test
    other = test.replace(ours, 'JSONStorage(self.folder / "states")').replace("MyStorageTests", "JSONStorageTests")
    (project / "tests/model/storage_tests.py").write_text(test)
    (project / "tests/model/json_tests.py").write_text(json_storage + other)
    for command in (["lamson.nosetests", "tests/model"], ["pytest", "-q", "tests/model/storage_tests.py"]):
        code, output = run(project, "-m", *command)
        assert code == 0, output
        assert "Ran 42 tests" in output or "21 passed" in output, output


def test_the_output_in_the_page_on_testing_is_what_comes_out(project):
    transcript = (HERE / "docs/testing.md").read_text().split("$ nosetests -v\n")[1].split("```")[0]
    output = run(project, "-m", "lamson.nosetests", "-v")[1]
    assert re.sub(r"\d\.\d+s", "", output) == re.sub(r"\d\.\d+s", "", transcript)
