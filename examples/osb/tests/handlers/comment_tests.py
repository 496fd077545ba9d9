"""Comments by mail."""

from tests.blog import HOST, begin, page_of, publish

from lamson.server import SMTPError
from lamson.testing import (
    RouterConversation,
    assert_equal,
    assert_in,
    assert_in_state,
    assert_not_in,
    assert_raises_regex,
    queue,
)

ANN = "ann@example.com"

client = RouterConversation(ANN, "Re: Hello")


def test_a_first_comment_has_to_be_confirmed():
    begin()
    post = publish()
    comment = f"comment-{post.id}@{HOST}"
    question = client.say(comment, "Nice <i>post</i>.", expect="comment-confirm-[a-z0-9]+@")
    assert_in('a comment on the post "My first post"', question.body())
    assert_in_state("app.handlers.comment", comment, ANN, "CONFIRMING")
    assert_not_in("Nice", page_of(post))

    client.say(question["Reply-To"], "Yes.")
    assert_in_state("app.handlers.comment", comment, ANN, "COMMENTING")
    assert_in('<p class="said" dir="auto">Nice &lt;i&gt;post&lt;/i&gt;.</p>', page_of(post))
    assert_not_in(ANN, page_of(post))


def test_later_comments_are_shown_at_once():
    begin()
    post = publish()
    comment = f"comment-{post.id}@{HOST}"
    client.say(client.say(comment, "One.", expect="comment-confirm-")["Reply-To"], "Yes.")
    before = queue().count()
    client.say(comment, "Two.")
    assert_equal(queue().count(), before)
    page = page_of(post)
    assert page.index("One.") < page.index("Two.")


def test_an_answer_to_a_post_confirms_no_comment():
    begin()
    post = publish()
    question = client.say(f"comment-{post.id}@{HOST}", "Nice.", expect="comment-confirm-")
    with assert_raises_regex(SMTPError, "550 5.7.1"):
        client.say(question["Reply-To"].replace("comment-", "post-"), "Yes.")


def test_a_comment_needs_a_post():
    begin()
    with assert_raises_regex(SMTPError, "550 5.1.1 There is no such post"):
        client.say(f"comment-0123456789@{HOST}", "Nice.")


def test_comments_go_with_their_post():
    begin()
    post = publish()
    client.say(client.say(f"comment-{post.id}@{HOST}", "One.", expect="comment-confirm-")["Reply-To"], "Yes.")
    zed = RouterConversation("zed@example.com", "x")
    zed.say(zed.say(f"hello-delete@{HOST}", "", expect="wants to delete")["Reply-To"], "Yes.")
    with assert_raises_regex(SMTPError, "550 5.1.1"):
        client.say(f"comment-{post.id}@{HOST}", "Two.")


def test_a_post_that_is_gone_takes_no_confirmed_comment():
    begin()
    post = publish()
    question = client.say(f"comment-{post.id}@{HOST}", "One.", expect="comment-confirm-")
    zed = RouterConversation("zed@example.com", "x")
    zed.say(zed.say(f"hello-delete@{HOST}", "", expect="wants to delete")["Reply-To"], "Yes.")
    with assert_raises_regex(SMTPError, "550 5.1.1"):
        client.say(question["Reply-To"], "Yes.")
