"""Tests for lamson.utils: settings, paths, users. That servers start and stop is in test_commands.py."""

import grp
import logging
import os
import pwd
import subprocess
import sys

import pytest

import lamson.database
from lamson import utils
from lamson.routing import Router
from lamson.utils import ServerError


@pytest.fixture
def project(app):
    (app / "config").mkdir()
    (app / "config/__init__.py").touch()
    (app / "config/settings.py").write_text("answer = 42\n")
    (app / "config/boot.py").write_text("from config import settings\nsettings.receiver = 'booted'\n")
    return app


def test_settings_are_imported_from_the_current_folder(project):
    settings = utils.import_settings(False)
    assert settings.answer == 42
    assert not hasattr(settings, "receiver")


def test_the_boot_module_is_imported_when_asked_for(project):
    assert utils.import_settings(True).receiver == "booted"


def test_another_boot_module_may_be_named(project):
    (project / "config/other.py").write_text("from config import settings\nsettings.receiver = 'other'\n")
    assert utils.import_settings(True, boot_module="config.other").receiver == "other"


def test_settings_are_imported_from_a_folder_that_is_named(project, monkeypatch):
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(project)])
    assert utils.import_settings(True, from_dir=str(project)).answer == 42


def test_a_folder_without_a_project_is_refused_with_the_way_out(app):
    with pytest.raises(ServerError, match=f"no config/settings.py in {app}.*lamson gen -project NAME"):
        utils.import_settings(False)


def test_what_the_settings_themselves_cannot_import_is_told_as_it_is(project):
    (project / "config/settings.py").write_text("import nonexistent_thing\n")
    with pytest.raises(ModuleNotFoundError, match="nonexistent_thing"):
        utils.import_settings(False)


def test_lamson_goes_on_logging_when_the_project_configures_logging_as_it_used_to_be_done(project):
    (project / "config/logging.conf").write_text(
        "[loggers]\nkeys=root\n[handlers]\nkeys=\n[formatters]\nkeys=\n[logger_root]\nlevel=INFO\nhandlers=\n"
    )
    (project / "config/boot.py").write_text("import logging.config\nlogging.config.fileConfig('config/logging.conf')\n")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        utils.import_settings(True)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert not logging.getLogger("lamson.routing").disabled


def test_fake_settings_catch_every_mail_and_send_none_on(app):
    settings = utils.make_fake_settings("127.0.0.1", 0)
    assert settings.relay is None
    assert settings.receiver.knows_recipient("anyone@anywhere.example")
    assert list(Router.HANDLERS) == ["lamson.handlers.log", "lamson.handlers.queue"]
    assert sorted(os.listdir("run/queue")) == ["cur", "new", "tmp"]


def test_configure_database_is_where_it_used_to_be(app):
    database = utils.configure_database({"url": "sqlite://"}, also_create=True)
    assert isinstance(database, lamson.database.Database)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        (("run/x.pid", "/srv/app"), "/srv/app/run/x.pid"),
        (("./run/x.pid", "/srv/app", None), "/srv/app/run/x.pid"),
        (("/var/run/x.pid", "/srv/app"), "/var/run/x.pid"),
        (("run/x.pid", ".", "/jail"), "/jail/run/x.pid"),
        (("run/x.pid", "/srv/app", "/jail"), "/jail/srv/app/run/x.pid"),
        (("/var/run/x.pid", "srv", "/jail"), "/jail/var/run/x.pid"),
        (("../../x.pid", ".", "/jail"), "/jail/x.pid"),
    ],
)
def test_a_path_counts_from_chdir_and_chdir_from_chroot(options, path):
    assert utils.real_path(*options) == path


def test_a_path_counts_from_here_when_nothing_else_is_said(app):
    assert utils.real_path("run/x.pid") == str(app / "run/x.pid")


def test_users_and_groups_are_found_by_name_and_number():
    user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(os.getgid())
    assert utils.user_and_group(user.pw_name, group.gr_name) == (user.pw_uid, group.gr_gid)
    assert utils.user_and_group(str(user.pw_uid), str(group.gr_gid)) == (user.pw_uid, group.gr_gid)
    assert utils.user_and_group(4711, 4712) == (4711, 4712)
    assert utils.user_and_group(None, None) == (None, None)
    assert utils.user_and_group(None, 4712) == (None, 4712)


def test_a_user_without_a_group_gets_the_group_of_the_user():
    user = pwd.getpwuid(os.getuid())
    assert utils.user_and_group(user.pw_name, None) == (user.pw_uid, user.pw_gid)


@pytest.mark.parametrize(
    ("uid", "gid", "words"),
    [("no-such-user", None, "no user no-such-user"), (None, "no-such-group", "no group no-such-group")],
)
def test_users_and_groups_that_do_not_exist_are_refused(uid, gid, words):
    with pytest.raises(ServerError, match=words):
        utils.user_and_group(uid, gid)


def test_dropping_no_privileges_changes_nothing():
    before = os.getuid(), os.getgid(), os.getgroups()
    utils.drop_priv(None, None)
    utils.drop_priv(os.getuid(), os.getgid())
    assert before == (os.getuid(), os.getgid(), os.getgroups())


DROP = """
import os, sys
from lamson.utils import ServerError, drop_priv
drop_priv(*map(eval, sys.argv[1:]))
print(os.getresuid(), os.getresgid(), os.getgroups())
try:
    drop_priv(0, 0)
except ServerError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may drop privileges")
@pytest.mark.parametrize("given", [("4711", "4712"), ("'4711'", "'4712'")])
def test_privileges_are_dropped_for_good(given):
    done = subprocess.run([sys.executable, "-c", DROP, *given], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "(4711, 4711, 4711) (4712, 4712, 4712) [4712]",
        "Only root may become user 0 and group 0.",
    ], done.stderr


DAEMON = """
import os, sys, time
from lamson.utils import daemonize
reading, writing = os.pipe()
if os.fork():
    os.close(writing)
    print(os.read(reading, 1000).decode())
    sys.exit()
context = daemonize("run/d.pid", sys.argv[1], None, 0o27, files_preserve=[writing])
print("to the log")
with open("run/d.pid") as file:
    number = int(file.read())
os.write(writing, repr([context.is_open, os.getcwd(), os.umask(0), number == os.getpid(), os.getsid(0) != os.getpid()])
    .encode())
"""


def test_a_daemon_is_detached_in_its_folder_and_prints_into_the_logs(tmp_path):
    (tmp_path / "logs").mkdir()
    done = subprocess.run([sys.executable, "-c", DAEMON, str(tmp_path)], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == repr([True, str(tmp_path), 0o27, True, True]), done.stderr
    server = utils.find_server(str(tmp_path / "run/d.pid"))
    assert server is None or server.wait(10)
    assert (tmp_path / "logs/lamson.out").read_text() == "to the log\n"
    assert not (tmp_path / "run/d.pid").exists()


def test_a_daemon_that_is_not_opened_is_left_to_the_caller(tmp_path):
    context = utils.daemonize(str(tmp_path / "d.pid"), str(tmp_path), None, None, do_open=False)
    assert not context.is_open
    context.pidfile.__exit__()
    context.pidfile.leave_to_child()


def explain(error):
    with pytest.raises(ServerError) as caught, utils.explained("cannot: "):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


def test_errors_are_explained_in_one_line(app):
    assert explain(ValueError("bad\nand more")) == "cannot: ValueError: bad"
    assert explain(OSError(98, "Address already in use")) == "cannot: Address already in use"
    assert explain(SystemExit("no secret is set")) == "cannot: SystemExit: no secret is set"
    assert explain(KeyError()) == "cannot: KeyError: KeyError"


def test_an_error_in_the_project_is_explained_with_its_file_and_line(app):
    (app / "broken.py").write_text("x = 1\ny = x / 0\n")
    (app / "typo.py").write_text("x = 1\ny = (x /\n")
    with pytest.raises(ServerError, match="^broken.py:2: ZeroDivisionError: division by zero$"), utils.explained():
        import broken  # noqa: F401
    with pytest.raises(ServerError, match="^typo.py:2: SyntaxError: '\\(' was never closed$"), utils.explained():
        import typo  # noqa: F401


def test_an_explanation_is_not_explained_again():
    with pytest.raises(ServerError, match="^as it is$"), utils.explained("cannot: "):
        raise ServerError("as it is")
