"""Modules that register routes, loaded and loaded again."""

import importlib
import os
import sys

import pytest

from handling import mail, write_module
from lamson.routing import (
    Router,
)


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
