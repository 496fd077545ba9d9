"""HTML mail that mail programs show as it was meant: text in Markdown, a page around it, and CSS put into each element.

    newsletter = HtmlMail("mail/style.css", "mail/page.html", {"title": "The cats"})

    mail = newsletter.respond(locals(), "mail/news.md", To="%(address)s", From="cats@%(host)s", Subject="News")
    mail.attach("app/templates/mail/tom.jpg")       # shown where the text says ![Tom](cid:tom.jpg)
    relay.deliver(mail)

All three are templates of `view.LOADER`. The page gets the text as ``{{ content }}``. The mail also has the text as it
was written, for those who read mail without HTML.

Nothing is fetched from anywhere: no style sheet that the page links to, and no image.

Markdown passes HTML through. What a stranger wrote goes into a text by way of `escape`, or else they could put links
and images into mail of yours. Two packages are needed: ``pip install lamson[html]``.
"""

import hashlib
import html
import importlib
import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

from lamson import view
from lamson.encoding import MailBase
from lamson.errors import MisuseError
from lamson.mail import MailResponse

_IMAGE = re.compile(r"!\[([^\]\n]*)\]\(<?cid:[^)\n]*\)")


def markdown(text: str) -> str:
    """Returns the HTML of a text in Markdown, https://daringfireball.net/projects/markdown/syntax."""
    return _package("markdown").markdown(text)


def escape(text: str) -> str:
    """Returns `text` written so that Markdown and HTML show it as it is, whatever is in it.

        >>> escape("<b>*5*")
        '&#60;b&#62;&#42;5&#42;'

    The text alternative of an `HtmlMail` has it as it was.
    """
    return re.sub(r"[^\w\s]|_", lambda sign: f"&#{ord(sign[0])};", text)


class HtmlMail:
    """Makes HTML mail of one look: `css_template` and `html_template` are the names of two templates.

    `variables` are for both of them, and for the text; those of the single mail come first. `wiki` makes HTML of the
    text, which is Markdown if it is not given.
    """

    def __init__(
        self,
        css_template: str,
        html_template: str,
        variables: Mapping[str, Any] | None = None,
        wiki: Callable[[str], str] = markdown,
    ):
        self.css_template = css_template
        self.html_template = html_template
        self.variables = dict(variables or {})
        self.wiki = wiki

    def load_css(self, css_template: str) -> str:
        """Returns the style sheet that the template makes."""
        return view.render(self.variables, css_template)

    def apply_styles(self, html: str) -> str:
        """Returns `html` with the style sheet, and those in its ``<style>``, in the ``style`` of every element.

        Rules that have no element, such as ``@media``, stay in a ``<style>``.
        """
        inliner = _package("css_inline").CSSInliner(
            extra_css=self.load_css(self.css_template), keep_at_rules=True, load_remote_stylesheets=False
        )
        return inliner.inline(html)

    def render(self, variables: Mapping[str, Any], content_template: str, pretty: bool = False) -> str:
        """Returns the page with the text of `content_template` in it; indented for people when it is to be `pretty`."""
        variables = {**self.variables, **variables}
        page = self._page(variables, view.render(variables, content_template))
        return _indented(page) if pretty else page

    def respond(self, variables: Mapping[str, Any], content: str, **kwd: Any) -> "HtmlResponse":
        """Returns a mail with the text of the template `content`, as HTML and as text.

        `kwd` is what `view.respond` takes: To, From, Subject, with ``%(name)s`` for variables.
        """
        variables = {**self.variables, **variables}
        headed = view.respond(variables, Body=content, **kwd)
        source = headed.Body or ""
        response = HtmlResponse(Body=_plain(source), Html=self._page(variables, source))
        response.base = headed.base
        return response

    def _page(self, variables: Mapping[str, Any], source: str) -> str:
        return self.apply_styles(view.render({**variables, "content": _Markup(self.wiki(source))}, self.html_template))


class HtmlResponse(MailResponse):
    """A mail whose HTML shows files that are attached to it, where it refers to them as ``cid:NAME``.

    These go beside the HTML (multipart/related, RFC 2387), and all other attachments where they always are.
    """

    def _built(self) -> MailBase:
        shown, given = {}, self.attachments
        page = self.Html or ""
        for part in given:
            reference = _reference(part)
            if reference is not None and reference.search(page):
                content_id = _content_id(part)
                page = reference.sub(f"cid:{content_id}", page)
                shown[content_id] = part
        if not shown:
            return super()._built()
        original = self.Html
        try:
            self.Html, self.attachments = page, [part for part in given if part not in shown.values()]
            base = super()._built()
        finally:
            self.Html, self.attachments = original, given
        for content_id, part in shown.items():
            part["Content-ID"] = f"<{content_id}>"
            part.content_encoding["Content-Disposition"] = ("inline", {"filename": part.filename or ""})
        _put_beside(base, list(shown.values()))
        return base


def _reference(part: MailBase) -> re.Pattern | None:
    """What an image of this part's name is referred to with, plain or as it is written in a URL or in HTML."""
    if not part.filename:
        return None
    spellings = {part.filename, urllib.parse.quote(part.filename), html.escape(part.filename)}
    return re.compile(f"cid:(?:{'|'.join(map(re.escape, spellings))})(?=[\"')\\s>])")


def _content_id(part: MailBase) -> str:
    """An identifier for the part (RFC 2392), the same each time, since a mail may be written several times."""
    return f"{hashlib.sha256((part.filename or '').encode() + part.content).hexdigest()[:24]}@lamson"


def _put_beside(base: MailBase, images: list[MailBase]) -> None:
    """Put `images` into a multipart/related with the HTML of the message."""
    for parent in [base, *base.walk()]:
        for number, part in enumerate(parent.parts):
            if part.content_type == "text/html" and part.filename is None:
                related = MailBase()
                related.content_encoding["Content-Type"] = ("multipart/related", {"type": "text/html"})
                related.parts = [part, *images]
                parent.parts[number] = related
                return
    # The HTML is all there is.
    page = MailBase()
    page.body = base.body
    page.content_encoding["Content-Type"] = ("text/html", {})
    base.body = None
    base.parts = [page, *images]
    base.content_encoding["Content-Type"] = ("multipart/related", {"type": "text/html"})


class _Markup(str):
    """HTML that Jinja2 and Mako are not to escape once more."""

    def __html__(self) -> "str":
        return self


def _plain(source: str) -> str:
    """A text in Markdown as a mail without HTML: it was made to be read as it is, but for images and entities."""
    return html.unescape(_IMAGE.sub(r"\1", source))


def _indented(page: str) -> str:
    from lxml import etree
    from lxml import html as parser

    document = parser.document_fromstring(page)
    etree.indent(document)
    return parser.tostring(document, encoding="unicode", doctype="<!DOCTYPE html>") + "\n"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as missing:
        raise MisuseError(f"HTML mail needs {name.replace('_', '-')}: pip install lamson[html]") from missing
