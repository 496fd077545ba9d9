"""Posting. Mail to NAME@oneshotblog.test becomes a post, mail to NAME-delete@oneshotblog.test takes it away.

What a sender may do depends on the state they are in:

    START        nobody knows them: whatever they ask for has to be confirmed
    CONFIRMING   they have been asked, and an answer to post-confirm-SECRET@ is waited for
    POSTING      they have confirmed: a new post is published at once; what would destroy one is confirmed each time
"""

from config.settings import confirmation, index_queue, look, relay

from app.model import pages, posts
from lamson.html import escape
from lamson.routing import route, route_like
from lamson.server import SMTPError


@route("(post_name)@(host)")
@route("(post_name)-(action)@(host)", action="delete")
def START(message, post_name=None, host=None, action=None):
    """Keeps the message, and asks its sender to confirm it."""
    posts.check(message)
    message["X-Post-Name"] = post_name
    message["X-Post-Action"] = action or "post"
    confirmation.send(relay, "post", message, "mail/confirm_post.msg", locals())
    return CONFIRMING


@route_like(START)
@route("post-confirm-(id_number)@(host)")
def CONFIRMING(message, post_name=None, host=None, action=None, id_number=None):
    """Does what was confirmed. Somebody who writes another post instead is asked about that one."""
    if id_number is None:
        return START(message, post_name=post_name, host=host, action=action)
    # If anything in here fails, the server keeps this answer in run/undeliverable, and it can be given again.
    with confirmation.confirmed(message, id_number) as original:
        if original is None:
            raise SMTPError(550, "5.7.1 There is nothing to confirm here, or not any more")
        if original["X-Post-Action"] == "delete":
            delete(original, original["X-Post-Name"], host)
        else:
            publish(original, original["X-Post-Name"], host)
    return POSTING


@route_like(START)
def POSTING(message, post_name=None, host=None, action=None):
    """Publishes. The sender of a mail is easy to forge, so that nothing is overwritten or deleted on its word alone."""
    if action or posts.find(message.route_from, post_name):
        return START(message, post_name=post_name, host=host, action=action)
    posts.check(message)
    publish(message, post_name, host)


def publish(message, post_name, host):
    """Puts a post on the web, tells its author where, and leaves the index to the other server."""
    post = posts.publish(message, post_name)
    pages.write_post(post, host)
    index_queue.push(message)
    address = pages.address_of(post)
    title = escape(post.title)  # it goes into a text in Markdown, and the author is a stranger
    # "%(author)s" and not post.author, in which a percent sign would be taken for the beginning of a variable.
    author = post.author
    relay.deliver(
        look.respond(
            locals(), "mail/published.md", To="%(author)s", From="no-reply@%(host)s", Subject="Your post is out"
        )
    )


def delete(message, post_name, host):
    """Takes a post off the web with all its comments."""
    post = posts.find(message.route_from, post_name)
    if post:  # a server may give an answer twice
        posts.delete(post)
        pages.delete_post(post)
        index_queue.push(message)
