"""Pages and the index."""

import os
import threading

from app.model import pages, posts
from config import settings
from tests.blog import begin, page_of, publish

from lamson import view
from lamson.mail import MailRequest
from lamson.testing import assert_equal, assert_false, assert_in, assert_not_in, assert_raises

FOLDER = settings.web_config["folder"]


def index_page():
    with open(os.path.join(FOLDER, "index.html"), encoding="utf-8") as file:
        return file.read()


def test_the_index_has_the_newest_post_first():
    begin()
    pages.write_index()
    assert_in("There are no posts yet.", index_page())
    assert_in("<em>any.name</em>@localhost", index_page())
    first = publish("first")
    second = posts.publish(MailRequest("", "joe@example.com", "x@y", "Subject: x\n\nHi\n"), "second")
    pages.write_index()
    page = index_page()
    assert page.index(f"posts/{second.id}.html") < page.index(f"posts/{first.id}.html")


def test_a_title_cannot_break_the_index():
    begin()
    post = posts.publish(MailRequest("", "zed@example.com", "x@y", "Subject: </a><script>x</script>\n\nHi\n"), "x")
    pages.write_index()
    assert_in("&lt;/a&gt;&lt;script&gt;", index_page())
    assert_not_in("<script>", index_page())
    pages.write_post(post, "oneshotblog.test")
    assert_not_in("<script>", page_of(post))


def test_addresses_of_pages_become_links_and_what_is_indented_stays_so():
    begin()
    text = 'See https://example.com/?a=1&b="><script>.\n\n    indented\n  less\n\n\n'
    mail = MailRequest("", "zed@example.com", "x@y", f"Subject: x\n\n{text}")
    post = posts.publish(mail, "x")
    posts.add_comment(post, mail)
    pages.write_post(post, "oneshotblog.test")
    page = page_of(post)
    assert_equal(page.count('<a href="https://example.com/?a=1&amp;b=&#34;&gt;&lt;script" rel="'), 2)
    assert_equal(page.count('rel="nofollow noopener noreferrer"'), 2)
    assert_in('<p class="plain">    indented\n  less</p>', page)
    assert_not_in("<script>", page)


def test_a_page_that_cannot_be_made_leaves_the_old_one():
    begin()
    post = publish()
    before = page_of(post)
    loader, view.LOADER = view.LOADER, None
    try:
        with assert_raises(AssertionError):
            pages.write_post(post, "oneshotblog.test")
    finally:
        view.LOADER = loader
    assert_equal(page_of(post), before)


def test_a_reader_never_sees_half_a_page():
    begin()
    publish()
    pages.write_index()
    whole = index_page()
    threads = [threading.Thread(target=pages.write_index) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        assert_equal(index_page(), whole)
    for thread in threads:
        thread.join()
    assert_false([name for name in os.listdir(FOLDER) if name.endswith(".new")])


def test_only_an_id_of_ours_becomes_a_path():
    begin()
    post = publish()
    for evil in ("../../../etc/passwd", "/etc/passwd", "a\0b", "", "ABCDEF0123", "0123456789\n"):
        post.id = evil
        with assert_raises(ValueError):
            pages.delete_post(post)
