"""What the tests share: an author who posts, and what there is to see then."""

import os

from app.model import posts
from config import settings

from lamson.testing import RouterConversation

HOST = "oneshotblog.test"
ZED = "zed@example.com"

client = RouterConversation(ZED, "My first post")


def begin():
    client.begin()
    settings.confirmation.clear()
    settings.index_queue.clear()
    for post in posts.newest():
        posts.delete(post)


def ask(name="hello", text="Hello, world.", subject=None):
    """Sends a post and returns the question whether it is to be published."""
    return client.say(f"{name}@{HOST}", text, "From: post-confirm-[a-z0-9]+@", subject)


def publish(name="hello", text="Hello, world."):
    """Sends a post, confirms it and returns it."""
    client.say(ask(name, text)["Reply-To"], "Yes.", expect="Your post is out")
    return posts.find(ZED, name)


def page_of(post):
    path = os.path.join(settings.web_config["folder"], "posts", f"{post.id}.html")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return file.read()
    return None
