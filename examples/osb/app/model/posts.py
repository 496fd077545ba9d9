"""Posts and comments: what is stored of a mail, and what of it strangers get to see.

An author is the sender of the envelope, the address that was confirmed. The From header may say anything, so only the
name in it is taken.
"""

import re
import secrets
from email.utils import parseaddr

import nh3
from config import settings
from jinja2.utils import urlize
from markupsafe import Markup
from sqlalchemy import select

from app.model.tables import Comment, Post
from lamson.server import SMTPError

LONGEST = 100_000
"""Characters that a post or a comment may have."""

LONGEST_LINE = 200
"""Characters of a title or a name that are shown."""

# What is left of the HTML that somebody sends: text and links. No script or style gets through, and no image, which
# would tell its owner who reads the post.
TAGS = set("a b blockquote br code div em h2 h3 h4 hr i li ol p pre s span strong sub sup u ul".split())

# What links of strangers tell: search engines, that we do not recommend the page; the page, nothing about its readers.
LINKS = "nofollow noopener noreferrer"

# What no page may have, as the standard of HTML says: control characters, and code points that are no characters.
NO_CHARACTERS = "".join(chr(plane + last) for plane in range(0, 0x110000, 0x10000) for last in (0xFFFE, 0xFFFF))
FORBIDDEN = re.compile(f"[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{NO_CHARACTERS}]")


def check(message):
    """Refuses a message that is too long to be published."""
    if len(message.html() or "") > LONGEST or len(message.text()) > LONGEST:
        raise SMTPError(552, f"5.3.4 A post or comment may have up to {LONGEST} characters")


def publish(message, name):
    """Stores the post of that name, in place of the one that its author had there, and returns it."""
    with settings.database.session() as session, session.begin():
        post = _find(session, message.route_from, name)
        if post is None:
            post = Post(id=secrets.token_hex(5), author=message.route_from, name=name)
            session.add(post)
        post.author_name = name_of_sender(message)
        post.title = _line(message["Subject"] or "") or name
        post.html = html_of(message)
    return find(message.route_from, name)


def find(author, name):
    """Returns the post of this name by this author, or None."""
    with settings.database.session() as session:
        return _find(session, author, name)


def get(post_id):
    """Returns a post with its comments, or None."""
    with settings.database.session() as session:
        return session.get(Post, post_id)


def newest(count=100):
    """Returns the newest posts, the last one first."""
    with settings.database.session() as session:
        return session.scalars(select(Post).order_by(Post.written.desc()).limit(count)).all()


def delete(post):
    """Forgets a post and its comments."""
    with settings.database.session() as session, session.begin():
        session.delete(session.get(Post, post.id))


def add_comment(post, message):
    """Stores a comment on the post."""
    with settings.database.session() as session, session.begin():
        session.add(
            Comment(
                post_id=post.id,
                author=message.route_from,
                author_name=name_of_sender(message),
                text=_allowed(message.text()).strip(),
            )
        )


def html_of(message):
    """The text of a post as HTML in which nothing is left that could do harm."""
    html = message.html()
    if html is None:
        # The lines stay as they were written, and what is indented stays so.
        paragraphs = [paragraph.strip("\n").rstrip() for paragraph in _allowed(message.text()).split("\n\n")]
        return Markup("\n").join(
            Markup('<p class="plain">{}</p>').format(_with_links(paragraph)) for paragraph in paragraphs if paragraph
        )
    # Twice: what is left when tags were taken away from around it may be no valid HTML any more, and what is left of a
    # link without its control characters may be one to a script.
    return _clean(_allowed(_clean(_allowed(html))))


def name_of_sender(message):
    """The name in the From header. Addresses are not shown: they are what spammers look for."""
    name = _line(parseaddr(message["From"] or "")[0])
    return name if name and "@" not in name else "Somebody"


def _find(session, author, name):
    return session.scalars(select(Post).filter_by(author=author, name=name)).one_or_none()


def _with_links(text):
    """The text with all of its markup escaped, and links made of its addresses of pages."""
    return Markup(urlize(text, rel=LINKS))


def _clean(html):
    return nh3.clean(
        html,
        tags=TAGS,
        attributes={"a": {"href"}},
        clean_content_tags={"script", "style", "title"},
        url_schemes={"http", "https", "mailto"},
        link_rel=LINKS,
    )


def _allowed(text):
    """The text without characters that no page may have."""
    return FORBIDDEN.sub("", text)


def _line(text):
    return " ".join(_allowed(text).split())[:LONGEST_LINE]
