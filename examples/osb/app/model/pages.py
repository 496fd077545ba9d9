"""Pages: what browsers get, as files in app/data. `lamson web -basedir app/data` shows them while you develop.

The name of a file is the `id` of a post, which is random. Nothing that a stranger wrote, no address and no name, gets
into a path. A page is there as a whole or not at all, since it is written beside the old one and then takes its place.
"""

import os
import re
import secrets
from pathlib import Path

from config import settings

from app.model import posts
from lamson import view


def write_post(post, host):
    """Writes the page of a post."""
    post = posts.get(post.id)
    _write(_path(post), "web/post.html", {"post": post, "host": host})


def delete_post(post):
    """Takes the page of a post away."""
    _path(post).unlink(missing_ok=True)


def write_index():
    """Writes the page with the newest posts."""
    variables = {"posts": posts.newest(), "host": settings.web_config["host"]}
    _write(Path(settings.web_config["folder"], "index.html"), "web/index.html", variables)


def address_of(post):
    """Where the page of a post is on the web."""
    return f"{settings.web_config['url']}/posts/{post.id}.html"


def _path(post):
    if not re.fullmatch("[0-9a-f]{10}", post.id):
        raise ValueError(f"{post.id!r} is not the id of a post")
    return Path(settings.web_config["folder"], "posts", f"{post.id}.html")


def _write(path, template, variables):
    page = view.render(variables, template)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{secrets.token_hex(8)}.new")
    try:
        new.write_text(page, encoding="utf-8")
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
