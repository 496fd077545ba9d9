"""Comments that are spam."""

import os

from config import settings
from tests.blog import HOST, ask, begin, client, page_of, publish

from lamson.mail import MailResponse
from lamson.queue import Queue
from lamson.spam import Filter
from lamson.testing import (
    RouterConversation,
    assert_equal,
    assert_false,
    assert_in,
    assert_in_state,
    assert_not_in,
    delivered,
)

EVE = "eve@example.com"
SPAM = "Buy cheap watches now, casino bonus, unlimited money, click here"
HAM = "I have read your post about the mail server, and the part on routing is well written"

spammer = RouterConversation(EVE, "Re: Hello")


def setup():
    """Teaches the filter what is spam here."""
    forget()
    with Filter(settings.spam_config["db"], settings.spam_config["rc"]) as known:
        for number in range(10):
            mail = MailResponse(To=f"comment@{HOST}", From=f"{number}@example.com", Subject="Re: Hello")
            for train, text in ((known.train_spam, SPAM), (known.train_ham, HAM)):
                mail.Body = f"{text} {number}"
                train(mail)


def teardown():
    """Leaves the other tests with a filter that knows nothing."""
    forget()


def forget():
    for end in ("", "-wal", "-shm"):
        if os.path.exists(settings.spam_config["db"] + end):
            os.unlink(settings.spam_config["db"] + end)


def caught():
    return Queue(settings.spam_config["queue"])


def begin_with_a_post():
    begin()
    caught().clear()
    post = publish()
    return post, f"comment-{post.id}@{HOST}"


def test_spam_is_set_aside_and_nobody_is_asked():
    post, comment = begin_with_a_post()
    spammer.say(comment, SPAM)
    assert_false(delivered(f"To: {EVE}"))
    assert_equal(caught().count(), 1)
    assert_not_in("casino", page_of(post))
    assert_in_state("app.handlers.comment", comment, EVE, "SPAMMING")
    spammer.say(comment, SPAM)
    assert_equal(caught().count(), 2)


def test_a_spammer_who_writes_a_real_comment_is_asked():
    post, comment = begin_with_a_post()
    spammer.say(comment, SPAM)
    question = spammer.say(comment, HAM, expect="comment-confirm-")
    spammer.say(question["Reply-To"], "Yes.")
    assert_in(HAM, page_of(post))


def test_who_has_confirmed_can_send_no_spam_either():
    post, comment = begin_with_a_post()
    spammer.say(spammer.say(comment, HAM, expect="comment-confirm-")["Reply-To"], "Yes.")
    spammer.say(comment, SPAM)
    assert_not_in("casino", page_of(post))
    assert_equal(caught().count(), 1)


def test_posts_are_not_filtered():
    begin()
    client.say(ask(text=SPAM)["Reply-To"], "Yes.", expect="Your post is out")
