"""HTML mail: the page, its styles, the text alternative, and images inside."""

import email
import email.policy
import socket
import sys
from html.parser import HTMLParser

import jinja2
import mako.lookup
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamson import view
from lamson.errors import MisuseError
from lamson.html import HtmlMail, escape, markdown
from lamson.mail import MailRequest, MailResponse

PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"

TEMPLATES = {
    "style.css": "p { color: {{ color }}; }\n@media (max-width: 600px) { p { margin: 0 } }\n",
    "page.html": (
        "<!DOCTYPE html><html><head><title>{{ title }}</title><style>b { top: 0 }</style></head>"
        "<body>{{ content }}<p>for {{ name }}</p></body></html>"
    ),
    "news.md": "# Hello {{ name }}\n\nThis is **news** & *more*: [cats](http://example.com/?a=1&b=2).\n",
    "picture.md": "Look:\n\n![Tom & Jerry](cid:tom.png)\n\nBye.\n",
}


@pytest.fixture
def templates(monkeypatch):
    templates = dict(TEMPLATES)
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(templates), autoescape=jinja2.select_autoescape(["html"]), keep_trailing_newline=True
    )
    monkeypatch.setattr(view, "LOADER", environment)
    return templates


@pytest.fixture
def look(templates):
    return HtmlMail("style.css", "page.html", {"color": "green", "title": "News"})


def parsed(mail):
    return email.message_from_bytes(mail.as_bytes().replace(b"\r\n", b"\n"), policy=email.policy.default)


def structure(message):
    if not message.is_multipart():
        return message.get_content_type()
    return {message.get_content_type(): [structure(part) for part in message.iter_parts()]}


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_text_is_put_into_the_page_and_styles_into_the_elements(look):
    page = look.render({"name": "Zed"}, "news.md")
    assert page.startswith("<!DOCTYPE html><html>")
    assert "<h1>Hello Zed</h1>" in page
    assert '<p style="color: green;">This is <strong>news</strong> &amp; <em>more</em>' in page
    assert '<p style="color: green;">for Zed</p>' in page
    assert "<title>News</title>" in page


def test_rules_without_an_element_are_kept(look):
    assert "<style>@media (max-width: 600px) { p { margin: 0 } }" in look.render({"name": "Zed"}, "news.md")


def test_variables_of_the_mail_come_before_those_of_the_look(look):
    assert "<title>Olds</title>" in look.render({"name": "Zed", "title": "Olds"}, "news.md")
    assert look.variables == {"color": "green", "title": "News"}


def test_two_looks_share_no_variables(templates):
    one = HtmlMail("style.css", "page.html")
    one.variables["color"] = "red"
    assert HtmlMail("style.css", "page.html").variables == {}


def test_a_look_can_be_made_before_there_is_a_loader(monkeypatch, templates):
    loader = view.LOADER
    monkeypatch.setattr(view, "LOADER", None)
    look = HtmlMail("style.css", "page.html", {"color": "green"})
    with pytest.raises(MisuseError, match="LOADER is not set"):
        look.render({"name": "Zed"}, "news.md")
    monkeypatch.setattr(view, "LOADER", loader)
    assert "Hello Zed" in look.render({"name": "Zed"}, "news.md")


def test_load_css_and_apply_styles_can_be_used_alone(look):
    assert look.load_css("style.css").startswith("p { color: green; }")
    assert '<p style="color: green;">Hi</p>' in look.apply_styles("<p>Hi</p>")


def test_a_pretty_page_is_indented_and_says_the_same(look):
    page = look.render({"name": "Zoë"}, "news.md", pretty=True)
    assert '\n    <p style="color: green;">for Zoë</p>\n' in page
    assert page.startswith("<!DOCTYPE html>\n<html>")


def test_another_wiki_can_make_the_html(templates):
    look = HtmlMail("style.css", "page.html", wiki=lambda text: f"<pre>{text.upper()}</pre>")
    assert "<pre># HELLO ZED" in look.render({"name": "Zed"}, "news.md")


def test_mako_makes_the_page_as_well(tmp_path, monkeypatch):
    (tmp_path / "style.css").write_text("p { color: red }")
    (tmp_path / "page.html").write_text("<html><body>${content}</body></html>")
    (tmp_path / "news.md").write_text("Hello *${name}*")
    monkeypatch.setattr(view, "LOADER", mako.lookup.TemplateLookup([str(tmp_path)], default_filters=["h"]))
    page = HtmlMail("style.css", "page.html").render({"name": "Zed"}, "news.md")
    assert '<p style="color: red;">Hello <em>Zed</em></p>' in page


@pytest.mark.parametrize("name", ["css", "html", "text"])
def test_a_template_that_is_missing_is_named(templates, name):
    missing = f"missing.{name}"
    look = HtmlMail(
        missing if name == "css" else "style.css", missing if name == "html" else "page.html", {"color": "red"}
    )
    with pytest.raises(Exception, match=missing):
        look.render({"name": "Zed"}, missing if name == "text" else "news.md")


def test_nothing_is_fetched(templates, tmp_path):
    (tmp_path / "local.css").write_text("p { color: red }")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        templates["page.html"] = (
            f'<html><head><link rel="stylesheet" href="{url}.css"><link rel="stylesheet" href="{tmp_path}/local.css">'
            f'<style>@import url("{url}.css"); b {{ background: url({url}.png) }}</style></head>'
            f'<body><b>x</b><img src="{url}.png">{{{{ content }}}}</body></html>'
        )
        page = HtmlMail("style.css", "page.html", {"color": "green"}).render({"name": "Zed"}, "news.md")
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "color: green" in page
    assert "red" not in page


@pytest.mark.parametrize("name", ["markdown", "css_inline"])
def test_a_package_that_is_missing_is_named(look, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MisuseError, match=rf"needs {name.replace('_', '-')}: pip install lamson\[html\]"):
        look.render({"name": "Zed"}, "news.md")


def test_importing_it_loads_neither_package():
    import subprocess

    code = "import sys, lamson.html; print({'markdown', 'css_inline', 'lxml', 'jinja2'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


# --- the mail ----------------------------------------------------------------------------------------------------


def test_a_mail_has_the_text_as_it_was_written_and_the_page(look):
    mail = look.respond({"name": "Zed", "host": "test.com"}, "news.md", To="%(name)s <z@x.org>", From="n@%(host)s")
    assert isinstance(mail, MailResponse)
    message = parsed(mail)
    assert (message["To"], message["From"]) == ("Zed <z@x.org>", "n@test.com")
    assert structure(message) == {"multipart/alternative": ["text/plain", "text/html"]}
    text, page = message.iter_parts()
    assert text.get_content() == ("# Hello Zed\n\nThis is **news** & *more*: [cats](http://example.com/?a=1&b=2).\n"), (
        "the source, in which nothing was escaped"
    )
    assert '<p style="color: green;">This is' in page.get_content()


def test_every_header_of_respond_reaches_the_mail(look):
    mail = look.respond({"name": "Zed"}, "news.md", To="z@x.org", From="n@x.org", Subject="100%% for %(name)s")
    assert mail["Subject"] == "100% for Zed"
    with pytest.raises(MisuseError, match="there is no variable 'nobody'"):
        look.respond({"name": "Zed"}, "news.md", Subject="%(nobody)s")


def test_a_content_template_is_rendered_once(templates, look):
    calls = []
    look.respond({"name": "Zed", "tick": lambda: calls.append(1) or ""}, "news.md")
    templates["tick.md"] = "{{ tick() }}Hi"
    look.respond({"name": "Zed", "tick": lambda: calls.append(1) or ""}, "tick.md")
    assert calls == [1]


# --- images ------------------------------------------------------------------------------------------------------


def test_an_attached_image_is_shown_where_the_text_refers_to_it(look):
    mail = look.respond({"name": "Zed"}, "picture.md", To="z@x.org", From="n@x.org")
    mail.attach("tom.png", data=PNG)
    message = parsed(mail)
    assert structure(message) == {
        "multipart/alternative": ["text/plain", {"multipart/related": ["text/html", "image/png"]}]
    }
    text, related = message.iter_parts()
    page, image = related.iter_parts()
    assert text.get_content() == "Look:\n\nTom & Jerry\n\nBye.\n"
    content_id = image["Content-ID"]
    assert content_id.startswith("<") and content_id.endswith("@lamson>")
    assert f'src="cid:{content_id[1:-1]}"' in page.get_content()
    assert image.get_content_disposition() == "inline"
    assert (image.get_filename(), image.get_content()) == ("tom.png", PNG)


def test_other_attachments_stay_where_they_are(look):
    mail = look.respond({"name": "Zed"}, "picture.md", To="z@x.org", From="n@x.org")
    mail.attach("a.html", data="<p>cid:tom.png</p>")
    mail.attach("tom.png", data=PNG)
    mail.attach("tom.png2", data=PNG, content_type="image/png")
    related = {"multipart/related": ["text/html", "image/png"]}
    assert structure(parsed(mail)) == {
        "multipart/mixed": [{"multipart/alternative": ["text/plain", related]}, "text/html", "image/png"]
    }
    request = MailRequest("", None, None, mail.as_bytes())
    assert [each.name for each in request.attachments()] == ["tom.png", "a.html", "tom.png2"]
    assert request.text().startswith("Look:")


def test_a_mail_with_images_is_written_the_same_each_time(look):
    mail = look.respond({"name": "Zed"}, "picture.md", To="z@x.org", From="n@x.org", Subject="x")
    mail.attach("tom.png", data=PNG)
    first = mail.as_bytes()
    assert str(mail) and mail.to_message() and mail.all_parts()
    assert mail.as_bytes() == first
    assert "cid:tom.png" in mail.Html
    assert len(mail.attachments) == 1
    mail.clear()
    assert structure(parsed(mail)) == {"multipart/alternative": ["text/plain", "text/html"]}


@pytest.mark.parametrize("attached", [[], ["a.txt"]])
def test_html_without_a_text_takes_images_as_well(look, attached):
    mail = look.respond({"name": "Zed"}, "picture.md", To="z@x.org", From="n@x.org")
    mail.Body = None
    mail.attach("tom.png", data=PNG)
    for name in attached:
        mail.attach(name, data="text")
    related = {"multipart/related": ["text/html", "image/png"]}
    for _ in range(2):
        found = structure(parsed(mail))
        assert found == ({"multipart/mixed": [related, "text/plain"]} if attached else related)


@pytest.mark.parametrize(
    "name, written",
    [
        ("my tom.png", "![x](<cid:my tom.png>)"),
        ("my tom.png", "![x](cid:my%20tom.png)"),
        ("a&b.png", "![x](cid:a&b.png)"),
    ],
)
def test_images_may_have_any_name(look, templates, name, written):
    templates["any.md"] = written
    mail = look.respond({"name": "Zed"}, "any.md", To="z@x.org", From="n@x.org")
    mail.attach(name, data=PNG)
    assert "related" in str(structure(parsed(mail)))
    assert mail.Body == "x"


# --- what strangers wrote ----------------------------------------------------------------------------------------


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"])))
def test_what_was_escaped_is_shown_as_it_is(text):
    reader = Reader()
    reader.feed(markdown("x" + escape(text) + "x"))
    reader.close()
    assert reader.tags == ["p"]
    assert reader.text == f"x{text}x"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[click](http://evil.example)",
        "<http://evil.example>",
        "![x](http://evil.example/x.png)",
        "[x]: http://evil.example\n\n[x]",
        "# big",
        "a\n===",
        "&lt;b&gt;",
        "\\*a\\*",
    ],
)
def test_a_stranger_can_neither_link_nor_show_anything(look, templates, text):
    templates["said.md"] = "Somebody said: {{ said }}"
    mail = look.respond({"name": "Zed", "said": escape(text)}, "said.md", To="z@x.org", From="n@x.org")
    assert mail.Body == f"Somebody said: {text}"
    reader = Reader()
    reader.feed(mail.Html)
    assert not {"script", "a", "img", "h1"} & set(reader.tags)
    assert "".join(text.split()) in "".join(reader.text.split())
