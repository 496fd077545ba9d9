"""Comments. Each page has an address, comment-ID@oneshotblog.test, and mail to it is shown below the post.

Spam never gets to these functions: @spam_filter puts it into run/spam. Who is no spammer confirms the first comment by
mail, and later ones are shown at once.
"""

from config.settings import confirmation, relay, spam_config

from app.model import pages, posts
from lamson.routing import route, route_like
from lamson.server import SMTPError
from lamson.spam import spam_filter


@route("comment-(post_id)@(host)")
def SPAMMING(message, post_id=None, host=None):
    """Somebody who sent spam. It may have been a mistake, or a forged sender: each of their mails is judged anew."""
    return START(message, post_id=post_id, host=host)


@route_like(SPAMMING)
@spam_filter(spam_config["db"], spam_config["rc"], spam_config["queue"], next_state=SPAMMING)
def START(message, post_id=None, host=None):
    """Keeps the comment, and asks its sender to confirm it."""
    post = commented(message, post_id)
    message["X-Post-Id"] = post_id
    confirmation.send(relay, "comment", message, "mail/confirm_comment.msg", locals())
    return CONFIRMING


@route_like(START)
@route("comment-confirm-(id_number)@(host)")
def CONFIRMING(message, post_id=None, host=None, id_number=None):
    """Publishes the comment that was confirmed. Somebody who writes another one instead is asked about that."""
    if id_number is None:
        return START(message, post_id=post_id, host=host)
    with confirmation.confirmed(message, id_number) as original:
        if original is None:
            raise SMTPError(550, "5.7.1 There is nothing to confirm here, or not any more")
        publish(original, original["X-Post-Id"], host)
    return COMMENTING


@route_like(START)
@spam_filter(spam_config["db"], spam_config["rc"], spam_config["queue"], next_state=SPAMMING)
def COMMENTING(message, post_id=None, host=None):
    """Publishes comments of those who have confirmed one."""
    publish(message, post_id, host)


def publish(message, post_id, host):
    post = commented(message, post_id)
    posts.add_comment(post, message)
    pages.write_post(post, host)


def commented(message, post_id):
    """The post that the comment is about. Refuses the mail when there is none, or the comment is too long."""
    posts.check(message)
    post = posts.get(post_id)
    if post is None:
        raise SMTPError(550, "5.1.1 There is no such post, or not any more")
    return post
