"""Posting, changing and deleting by mail."""

from app.model import posts
from config import settings
from tests.blog import HOST, ZED, ask, begin, client, page_of, publish

from lamson.mail import MailRequest, MailResponse
from lamson.routing import Router
from lamson.server import SMTPError
from lamson.testing import (
    RouterConversation,
    assert_equal,
    assert_false,
    assert_in,
    assert_in_state,
    assert_is_none,
    assert_not_in,
    assert_raises_regex,
    assert_true,
    delivered,
    queue,
)


def test_the_first_post_of_a_sender_has_to_be_confirmed():
    begin()
    question = ask()
    assert_equal(question["To"], ZED)
    assert_in('a post called "hello"', question.body())
    assert_in_state("app.handlers.post", f"hello@{HOST}", ZED, "CONFIRMING")
    assert_is_none(posts.find(ZED, "hello"))

    client.say(question["Reply-To"], "Yes, it was me.", expect="Your post is out")
    assert_in_state("app.handlers.post", f"hello@{HOST}", ZED, "POSTING")
    post = posts.find(ZED, "hello")
    assert_equal((post.title, post.author_name), ("My first post", "Somebody"))
    assert_in('<p class="plain">Hello, world.</p>', page_of(post))
    assert_equal(settings.index_queue.count(), 1)
    assert_equal(settings.confirmation.pending.count(), 0)


def test_the_author_gets_the_address_of_the_page():
    begin()
    client.Subject = "<b>5*5</b> [x](http://evil.example)"
    post = publish()
    client.Subject = "My first post"
    mail = delivered("Your post is out")
    assert_in(f"<b>5*5</b> [x](http://evil.example) is at <http://localhost:8888/posts/{post.id}.html>.", mail.text())
    assert_not_in("<b>", mail.html())
    assert_not_in('href="http://evil', mail.html())
    assert_in(f'href="http://localhost:8888/posts/{post.id}.html"', mail.html())


def test_later_posts_are_published_at_once():
    begin()
    publish()
    client.say(f"second@{HOST}", "Once more.", expect="Your post is out")
    assert_in("Once more.", page_of(posts.find(ZED, "second")))


def test_a_post_is_not_overwritten_without_being_asked():
    begin()
    old = publish(text="Old.")
    question = ask(text="New.")
    assert_in("Old.", page_of(old))
    client.say(question["Reply-To"], "Yes.")
    assert_equal(posts.find(ZED, "hello").id, old.id)
    assert_in("New.", page_of(old))
    assert_in_state("app.handlers.post", f"hello@{HOST}", ZED, "POSTING")


def test_a_post_is_deleted_after_being_asked():
    begin()
    post = publish()
    settings.index_queue.clear()
    question = ask("hello-delete")
    assert_in('wants to delete the post "hello"', question.body())
    assert_true(page_of(post))
    client.say(question["Reply-To"], "Yes.")
    assert_is_none(page_of(post))
    assert_is_none(posts.get(post.id))
    assert_equal(settings.index_queue.count(), 1)


def test_nobody_deletes_what_is_another_ones():
    begin()
    post = publish()
    eve = RouterConversation("eve@example.com", "Mine")
    question = eve.say(f"hello-delete@{HOST}", "Away with it.", expect="wants to delete")
    eve.say(question["Reply-To"], "Yes.")
    assert_true(page_of(post))


def test_two_authors_may_use_one_name():
    begin()
    first = publish()
    joe = RouterConversation("joe@example.com", "Mine")
    question = joe.say(f"hello@{HOST}", "Joe's.", expect="post-confirm-")
    joe.say(question["Reply-To"], "Yes.")
    assert_in("Hello, world.", page_of(first))
    assert_in("Joe's.".replace("'", "&#39;"), page_of(posts.find("joe@example.com", "hello")))


def test_the_same_author_is_the_same_in_capitals():
    begin()
    post = publish()
    loud = RouterConversation("ZED@EXAMPLE.COM", "My first post")
    loud.say(f"HELLO@{HOST}", "Louder.", expect="post-confirm-")
    assert_equal(posts.find(ZED, "hello").id, post.id)


def test_who_sends_twice_before_confirming_confirms_the_last_one():
    begin()
    first = ask(text="One.")
    second = ask(text="Two.")
    assert_equal(settings.confirmation.pending.count(), 1)
    with assert_raises_regex(SMTPError, "550 5.7.1 There is nothing to confirm"):
        client.say(first["Reply-To"], "Yes.")
    client.say(second["Reply-To"], "Yes.")
    assert_in("Two.", page_of(posts.find(ZED, "hello")))


def test_a_confirmation_is_good_for_one_sender_and_once():
    begin()
    question = ask()
    eve = RouterConversation("eve@example.com", "Re: Confirmation")
    with assert_raises_regex(SMTPError, "550 5.7.1"):
        eve.say(question["Reply-To"], "Yes, I am Zed.")
    assert_is_none(posts.find(ZED, "hello"))
    client.say(question["Reply-To"], "Yes.")
    with assert_raises_regex(SMTPError, "550 5.7.1"):
        client.say(question["Reply-To"], "Yes, yes.")


def test_a_vacation_notice_confirms_nothing():
    begin()
    notice = MailResponse(To=ask()["Reply-To"], From=ZED, Subject="Away", Body="I am on the beach.")
    notice["Auto-Submitted"] = "auto-replied"
    with assert_raises_regex(SMTPError, "550 5.7.1"):
        Router.deliver(MailRequest("localhost", ZED, notice["To"], notice.as_bytes()))
    assert_is_none(posts.find(ZED, "hello"))


def test_a_name_in_the_headers_makes_nobody_somebody_else():
    begin()
    publish()
    forged = MailResponse(To=f"second@{HOST}", From=ZED, Subject="Forged", Body="I am Zed.")
    Router.deliver(MailRequest("localhost", "eve@example.com", f"second@{HOST}", forged.as_bytes()))
    assert_is_none(posts.find(ZED, "second"))
    assert_true(delivered("To: eve@example.com"))


def test_html_is_cleaned_and_text_is_escaped():
    begin()
    publish("text", "<script>alert(1)</script> & <b>text</b>")
    page = page_of(posts.find(ZED, "text"))
    assert_in("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;text&lt;/b&gt;", page)

    html = (
        '<h1 onclick="evil()">Hi</h1><script>evil()</script><p style="position:fixed">Some <b>bold</b>'
        '<img src=x onerror="evil()"> <a href="javascript:evil()">one</a> <a href="https://x.example/">two</a></p>'
        "<style>*{display:none}</style><iframe src='http://evil.example'></iframe></main></body>"
    )
    mail = MailResponse(To=f"html@{HOST}", From=ZED, Subject='"><script>evil()</script>', Html=html)
    Router.deliver(MailRequest("localhost", ZED, mail["To"], mail.as_bytes()))
    page = page_of(posts.find(ZED, "html"))
    for bad in ("evil()", "<img", "style=", "javascript:", "iframe", "display:none"):
        assert_not_in(bad, page.replace("&#34;&gt;&lt;script&gt;evil()&lt;/script&gt;", ""))
    assert_in("<p>Some <b>bold</b>", page)
    assert_in('<a href="https://x.example/" rel="nofollow noopener noreferrer">two</a>', page)
    assert_equal(page.count("</main>"), 1)


def test_characters_that_no_page_may_have_are_left_out():
    begin()
    for number, kind in enumerate(("Body", "Html")):
        mail = MailResponse(To=f"odd{number}@{HOST}", From=ZED, Subject="o\x01dd\ufffe", **{kind: "a\x01b\ufdd0c"})
        Router.deliver(MailRequest("localhost", ZED, mail["To"], mail.as_bytes()))
        if number == 0:
            client.say(delivered("post-confirm-")["Reply-To"], "Yes.")
        post = posts.find(ZED, f"odd{number}")
        assert_equal(post.title, "odd")
        assert_in("abc", page_of(post))


def test_a_link_is_none_to_a_script_whatever_hides_it():
    links = ("java\x01script:evil()", "&#1;javascript:evil()", "&#106;avascript:evil()", "java&#9;script:evil()")
    html = "".join(f'<a href="{link}">x</a>' for link in links)
    mail = MailRequest("localhost", ZED, f"x@{HOST}", MailResponse(To=f"x@{HOST}", From=ZED, Html=html).as_bytes())
    cleaned = posts.html_of(mail)
    assert_equal(cleaned.count(">x</a>"), len(links))
    assert_not_in("script:", cleaned)


def test_the_name_is_shown_and_the_address_is_not():
    begin()
    publish()
    for number, (name, shown) in enumerate([("Zed <i>Shaw</i>", "Zed &lt;i&gt;Shaw&lt;/i&gt;"), (ZED, "Somebody")]):
        mail = MailResponse(To=f"named{number}@{HOST}", From=f'"{name}" <{ZED}>', Subject="x", Body="x")
        Router.deliver(MailRequest("localhost", ZED, mail["To"], mail.as_bytes()))
        page = page_of(posts.find(ZED, f"named{number}"))
        assert_in(shown, page)
        assert_not_in(ZED, page)


def test_what_is_too_long_is_refused():
    begin()
    with assert_raises_regex(SMTPError, "552 5.3.4"):
        client.say(f"long@{HOST}", "x" * 100_001)
    assert_equal(queue().count(), 0)


def test_addresses_that_are_no_name_of_a_post_are_nobodys():
    for local in ("../../etc/passwd", "/etc/passwd", "a/b", "x" * 41, "a\0b", "..%2f", "a b", "", "-delete"):
        assert_equal(list(Router.match(f"{local}@{HOST}")), [], local)
    assert_false(list(Router.match("hello@elsewhere.example")))


def test_strange_senders_are_answered():
    begin()
    for sender in (
        "50%off@example.com",
        "%(host)s@example.com",
        "%s@example.com",
        "{{host}}@example.com",
        "'@example.com",
    ):
        stranger = RouterConversation(sender, "100% %(host)s %s")
        question = stranger.say(f"hello@{HOST}", "100% %(host)s %s", expect="post-confirm-")
        assert_equal(question["To"], sender)
        answer = stranger.say(question["Reply-To"], "Yes.", expect="Your post is out")
        assert_equal(answer["To"], sender)
        assert_equal(posts.find(sender, "hello").title, "100% %(host)s %s")


def test_strange_senders_end_in_no_path():
    begin()
    for sender in ('"../../../x"@example.com', "/etc/passwd@example.com", f"{'x' * 300}@example.com", "ä@example.com"):
        stranger = RouterConversation(sender, "Hello")
        question = stranger.say(f"..@{HOST}", "Hello.", expect="post-confirm-")
        stranger.say(question["Reply-To"], "Yes.")
    found = posts.newest()
    assert_equal(len(found), 4)
    for post in found:
        assert_true(page_of(post))
