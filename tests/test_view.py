"""Mail from templates, with the real Jinja2 and the real Mako."""

import subprocess
import sys
from pathlib import Path

import jinja2
import mako.lookup
import mako.template
import pytest

from lamson import view
from lamson.errors import MisuseError
from lamson.mail import MailResponse

HERE = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_loader(monkeypatch):
    monkeypatch.setattr(view, "LOADER", None)


TEMPLATES = {
    "hello.msg": "Hello {{ name }} & friends.\n",
    "hello.html": "<p>Hello {{ name }}</p>\n",
    "nested/hello.txt": "Hello {{ name }}\n",
}


@pytest.fixture
def jinja(no_loader):
    view.LOADER = jinja2.Environment(loader=jinja2.DictLoader(TEMPLATES))


@pytest.fixture
def templates(app):
    """The templates as files in a project, where `view.jinja2_loader` looks."""
    (app / "app").mkdir()
    (app / "app/__init__.py").write_text("")
    for name, text in TEMPLATES.items():
        path = app / "app/templates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return app / "app/templates"


# --- load and render ---------------------------------------------------------------------------------------------


def test_without_a_loader_the_error_says_what_to_set():
    with pytest.raises(MisuseError, match=r"'hello.msg': lamson.view.LOADER is not set.*config/boot.py"):
        view.load("hello.msg")
    with pytest.raises(AssertionError):  # which Lamson 1.x raised
        view.render({}, "hello.msg")


def test_load_returns_the_loaders_own_template(jinja):
    assert isinstance(view.load("hello.msg"), jinja2.Template)


def test_jinja2_renders(jinja):
    assert view.render({"name": "Zed", "self": 1, "template": 2, "args": 3}, "hello.msg") == "Hello Zed & friends."


def test_a_template_that_is_missing_is_the_loaders_error(jinja):
    with pytest.raises(jinja2.TemplateNotFound, match="nothing.msg"):
        view.render({}, "nothing.msg")


@pytest.mark.parametrize("options", [{}, {"output_encoding": "utf-8"}, {"strict_undefined": True}])
def test_mako_renders_text(tmp_path, options):
    (tmp_path / "hello.msg").write_text("Hällo ${name} & friends.\n", encoding="utf-8")
    view.LOADER = mako.lookup.TemplateLookup([str(tmp_path)], input_encoding="utf-8", **options)
    assert view.render({"name": "Zed"}, "hello.msg") == "Hällo Zed & friends.\n"


def test_mako_takes_page_arguments(tmp_path):
    (tmp_path / "hello.msg").write_text('<%page args="name"/>Hello ${name}')
    view.LOADER = mako.lookup.TemplateLookup([str(tmp_path)])
    assert view.render({"name": "Zed"}, "hello.msg") == "Hello Zed"


def test_any_object_with_get_template_will_do():
    class OnlyKeywords:
        def render(self, **variables):
            return f"Hello {variables['name']}"

    class OneDictionary:
        def render(self, variables):
            return f"Hello {variables['name']}"

    class Loader:
        def get_template(self, name):
            return {"keywords": OnlyKeywords(), "dictionary": OneDictionary()}[name]

    view.LOADER = Loader()
    assert view.render({"name": "Zed"}, "keywords") == "Hello Zed"
    assert view.render({"name": "Zed"}, "dictionary") == "Hello Zed"


# --- respond -----------------------------------------------------------------------------------------------------


def test_respond_makes_a_mail_of_a_text_template(jinja):
    variables = {"name": "Zed", "host": "example.com"}
    mail = view.respond(
        variables, Body="hello.msg", To="%(name)s <zed@%(host)s>", From="noreply@%(host)s", Subject="100%% for %(name)s"
    )
    assert isinstance(mail, MailResponse)
    assert mail["to"] == "Zed <zed@example.com>"
    assert mail["from"] == "noreply@example.com"
    assert mail["subject"] == "100% for Zed"
    assert mail.Body == "Hello Zed & friends."
    assert mail.Html is None


def test_respond_makes_a_mail_of_both_templates(jinja):
    mail = view.respond({"name": "Zed"}, Body="hello.msg", Html="hello.html", To="a@b.c", From="d@e.f", Subject="Hello")
    parts = [part.get_content_type() for part in mail.to_message().walk()]
    assert parts == ["multipart/alternative", "text/plain", "text/html"]
    assert mail.Html == "<p>Hello Zed</p>"


def test_respond_takes_locals(jinja):
    def START(message, name=None, host=None):
        return view.respond(locals(), "hello.msg", To=message["from"], From="x@%(host)s", Subject="Hello")

    mail = START({"from": "zed@example.com"}, name="Zed", host="test.com")
    assert (mail["to"], mail["from"]) == ("zed@example.com", "x@test.com")


def test_respond_leaves_what_is_no_text_alone(jinja):
    mail = view.respond({"name": "Zed"}, "hello.msg", To=["a@b.c", "d@e.f"], From="x@y.z", Subject=None)
    assert "a@b.c" in str(mail)
    assert "d@e.f" in str(mail)


def test_respond_needs_a_template(jinja):
    with pytest.raises(MisuseError, match="needs a template"):
        view.respond({}, To="a@b.c", From="d@e.f", Subject="Hello")


@pytest.mark.parametrize(
    "subject, expected",
    [
        ("Hello %(nam)s", r"Subject='Hello %\(nam\)s': there is no variable 'nam'. The variables are host, name"),
        ("100%", r"Subject='100%': incomplete format.* write %% for a percent sign"),
        ("%(name)d", r"Subject='%\(name\)d': %d format"),
    ],
)
def test_text_that_cannot_be_formatted_is_explained(jinja, subject, expected):
    with pytest.raises(MisuseError, match=expected):
        view.respond({"name": "Zed", "host": "x"}, "hello.msg", Subject=subject)


# --- attach ------------------------------------------------------------------------------------------------------


def test_attach_renders_an_attachment(jinja):
    mail = view.respond({"name": "Zed"}, "hello.msg", To="a@b.c", From="d@e.f", Subject="Hello")
    view.attach(mail, {"name": "Joe"}, "hello.html", filename="hello.html", content_type="text/html")
    view.attach(mail, {"name": "Ann"}, "nested/hello.txt", filename="ann.txt", disposition="inline")
    view.attach(mail, {"name": "Tom"}, "nested/hello.txt", content_type="text/plain")

    attached = list(mail.to_message().walk())[2:]
    assert [part.get_content_type() for part in attached] == ["text/html", "text/plain", "text/plain"]
    assert [part.get_filename() for part in attached] == ["hello.html", "ann.txt", None]
    assert [part.get_payload(decode=True) for part in attached] == [b"<p>Hello Joe</p>", b"Hello Ann", b"Hello Tom"]
    assert [part.get_content_disposition() for part in attached][:2] == ["attachment", "inline"]


# --- the loader for a project ------------------------------------------------------------------------------------


def test_the_projects_loader_escapes_in_html_only(templates):
    view.LOADER = view.jinja2_loader(dir="app", module="templates")
    variables = {"name": "<Zed>"}
    assert view.render(variables, "hello.html") == "<p>Hello &lt;Zed&gt;</p>\n"
    assert view.render(variables, "hello.msg") == "Hello <Zed> & friends.\n"
    assert view.render(variables, "nested/hello.txt") == "Hello <Zed>\n"


def test_the_projects_loader_reads_a_template_again_when_it_changed(templates):
    import os

    view.LOADER = view.jinja2_loader(dir="app", module="templates")
    assert view.render({"name": "Zed"}, "hello.msg") == "Hello Zed & friends.\n"
    (templates / "hello.msg").write_text("Bye {{ name }}\n")
    os.utime(templates / "hello.msg", (1, 1))
    assert view.render({"name": "Zed"}, "hello.msg") == "Bye Zed\n"


def test_a_project_without_templates_is_told_where_they_belong(app):
    with pytest.raises(MisuseError, match="package 'nowhere' has no folder 'templates'.*template_config"):
        view.jinja2_loader(dir="nowhere", module="templates")
    (app / "app").mkdir()
    (app / "app/__init__.py").write_text("")
    with pytest.raises(MisuseError, match="package 'app' has no folder 'templates'"):
        view.jinja2_loader(dir="app", module="templates")


def test_a_jinja2_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MisuseError, match="pip install jinja2"):
        view.jinja2_loader(dir="app", module="templates")


def test_importing_view_imports_no_template_engine():
    code = "import sys, lamson.view; print({'jinja2', 'mako'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_a_template_that_is_missing_is_named_with_the_folders_that_were_searched(templates):
    view.LOADER = view.jinja2_loader(dir="app", module="templates")
    with pytest.raises(Exception, match=rf"'mail/nowhere\.msg' not found in search path: '{templates}'"):
        view.render({}, "mail/nowhere.msg")


def test_any_loader_tells_the_folders_that_it_has_searched(templates, tmp_path):
    package = jinja2.Environment(loader=jinja2.PackageLoader("app", "templates"))
    folder = jinja2.FileSystemLoader([tmp_path / "one", tmp_path / "two"])
    both = jinja2.Environment(loader=jinja2.ChoiceLoader([folder, jinja2.DictLoader({})]))
    lookup = mako.lookup.TemplateLookup([str(tmp_path / "one"), str(tmp_path / "two")])
    for loader, places in (
        (package, ["templates of the package app"]),
        (both, [f"{tmp_path}/one", f"{tmp_path}/two"]),
        (jinja2.Environment(loader=folder), [f"{tmp_path}/one", f"{tmp_path}/two"]),
        (lookup, [f"{tmp_path}/one", f"{tmp_path}/two"]),
    ):
        view.LOADER = loader
        with pytest.raises((jinja2.TemplateNotFound, mako.exceptions.TopLevelLookupException)) as caught:
            view.respond({}, "mail/nowhere.msg", To="zed@example.com")
        assert "mail/nowhere.msg" in str(caught.value)
        for place in places:
            assert str(caught.value).count(place) == 1


def test_a_loader_that_tells_no_folders_has_its_error_as_it_is(jinja):
    with pytest.raises(jinja2.TemplateNotFound) as caught:
        view.load("nowhere.msg")
    assert str(caught.value) == "nowhere.msg"
