"""Tests for lamson.projectcommands: gen, routes, syncdb and web."""

import re
import signal
import socket
import sqlite3
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from commandline import LAMSON, refused, run, start

# --- gen ----------------------------------------------------------------------------------------------------------


def test_gen_writes_a_project_and_says_what_to_type_next(folder):
    said = run("gen", "-project", "mymailserver").stdout
    assert "    cd mymailserver\n    lamson start\n    nosetests\n" in said
    for path in (
        "app/handlers/sample.py",
        "config/boot.py",
        "config/logging.conf",
        "muttrc",
        "run",
        "logs",
        "app/data",
    ):
        assert (folder / "mymailserver" / path).exists()
    assert not list(folder.rglob("*.pyc"))


def test_gen_refuses_what_is_there_already(folder):
    (folder / "mine").mkdir()
    assert "mine is there already" in refused("gen", "-project", "mine")
    assert list((folder / "mine").iterdir()) == []


def test_gen_with_force_adds_what_is_missing_and_overwrites_nothing(folder):
    (folder / "mine/config").mkdir(parents=True)
    (folder / "mine/config/settings.py").write_text("my own")
    said = run("gen", "-project", "mine", "-FORCE").stdout
    assert said.startswith("Kept mine/config/settings.py, which was there already.\n")
    assert (folder / "mine/config/settings.py").read_text() == "my own"
    assert (folder / "mine/config/boot.py").exists()


def test_gen_in_a_place_that_cannot_be_written_is_refused(folder):
    (folder / "file").write_text("")
    assert "cannot write file/project: Not a directory" in refused("gen", "-project", "file/project")


# --- routes, syncdb, web ------------------------------------------------------------------------------------------


def test_routes_shows_the_routes_and_what_an_address_matches(project):
    said = run("routes", "-test", "zed@test.com").stdout
    assert "\n    app.handlers.sample.START\n" in said
    assert "app.handlers.sample.FORWARD stateless\n" in said
    assert "zed@test.com is taken by:" in said
    assert "app.handlers.sample.START address='zed' host='test.com'" in said
    assert "no route takes zed@example.com" in refused("routes", "-test", "zed@example.com")


def test_routes_imports_what_it_is_told_from_where_it_is_told(project, monkeypatch):
    monkeypatch.chdir("/")
    assert "lamson.handlers.log.START" in run("routes", "--", "lamson.handlers.log").stdout
    (project / "mine.py").write_text("from lamson.routing import route\n@route('a@b.c')\ndef START(message): pass\n")
    assert "mine.START" in run("routes", "-path", str(project), "mine").stdout
    assert "cannot import nothing: ModuleNotFoundError" in refused("routes", "nothing")


def test_routes_outside_of_a_project_is_refused(folder):
    assert f"there is no {folder}/config. Go to your project's folder" in refused("routes")
    assert "there is no folder nowhere" in refused("routes", "-path", "nowhere")


def tables(path):
    with sqlite3.connect(path) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_syncdb_makes_the_tables_of_the_project_and_lamsons_own(project):
    Path("app/model/cats.py").write_text(
        "from sqlalchemy import Column, Integer, Table\nfrom app.model.tables import metadata\n"
        'cats = Table("cats", metadata, Column("id", Integer, primary_key=True))\n'
    )
    names = ["cats", "lamson_confirmation", "lamson_schema", "lamson_state"]
    assert run("syncdb").stdout == "sqlite:///app/data/lamson.db has the tables: " + ", ".join(names) + ".\n"
    assert tables("app/data/lamson.db") == set(names)
    run("syncdb")
    start()


def test_syncdb_is_refused_without_a_project_or_a_database(project, monkeypatch):
    Path("config/settings.py").write_text("")
    assert "config/settings.py has no database_config" in refused("syncdb")
    monkeypatch.chdir(project.parent)
    assert "There is no config/settings.py" in refused("syncdb")


def test_web_serves_the_files_of_a_folder_and_none_beside_it(folder):
    (folder / "site").mkdir()
    (folder / "site/page.html").write_text("hello")
    (folder / "secret.txt").write_text("secret")
    with subprocess.Popen(
        [*LAMSON, "web", "-basedir", "site", "-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            url = re.search(r"at (http://127\.0\.0\.1:\d+/)", server.stdout.readline())[1]
            assert urllib.request.urlopen(url + "page.html").read() == b"hello"
            for path in ("../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "x/../../secret.txt", "/secret.txt"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(url + path)
        finally:
            server.send_signal(signal.SIGINT)
        server.communicate()
        assert server.returncode == 0


def test_web_is_refused_where_it_cannot_be(folder):
    assert "there is no folder nowhere" in refused("web", "-basedir", "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused("web", "-port", port)
