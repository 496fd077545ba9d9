import logging
from email.utils import parseaddr
from lamson.routing import route, route_like, nolocking
from lamson.server import SMTPError
from lamson.bounce import bounce_to
from lamson.spam import spam_filter
from lamson import view, html
from config.settings import relay
from app.model import ticket


def ERROR(message, **kw):
    return ERROR


def SPAMMING(message, **kw):
    return SPAMMING


def SOFT_BOUNCED(message, **kw):
    return START


def HARD_BOUNCED(message, **kw):
    logging.warning("%s is gone", message.bounce.final_recipient)
    return START


@route("support@(host)")
@bounce_to(soft=SOFT_BOUNCED, hard=HARD_BOUNCED)
@spam_filter("run/spamdb", "run/.hammierc", "run/spam", next_state=SPAMMING)
def START(message, host=None):
    name, address = parseaddr(message['from'])
    subject = message['subject']
    ticket_id = ticket.create(message)

    reply = view.respond(locals(), "mail/opened.msg",
                         From="ticket-%(ticket_id)s@%(host)s",
                         To=address,
                         Subject="[%(ticket_id)s] %(subject)s")
    view.attach(reply, locals(), "mail/terms.txt", filename="terms.txt",
                content_type="text/plain", disposition="attachment")
    relay.deliver(reply)
    return OPEN


@route("ticket-(ticket_id)@(host)")
@route("ticket-(ticket_id)-(action)@(host)", action="close|status")
def OPEN(message, ticket_id=None, action=None, host=None):
    if not ticket.exists(ticket_id):
        raise SMTPError(550, "No ticket %s" % ticket_id)

    ticket_addr = "ticket-%s@%s" % (ticket_id, host)

    if action == 'close':
        relay.reply(message, ticket_addr, "Closed", "It is closed.")
        return CLOSED
    elif action == 'status':
        history = ticket.history(ticket_id)
        page = html.HtmlMail("html/style.css", "html/page.html", {})
        relay.deliver(page.respond(locals(), "html/status.markdown",
                                   From=ticket_addr, To=message['from'],
                                   Subject="Status of %(ticket_id)s"))
        return OPEN
    else:
        ticket.append(ticket_id, message)
        for part in message.walk():
            logging.debug("a part: %r", part.content_encoding['Content-Type'][0])
        relay.send("agents@example.com", ticket_addr, message['subject'], message.body())


@route_like(OPEN)
@nolocking
def CLOSED(message, ticket_id=None, action=None, host=None):
    raise RuntimeError("ticket %s was closed" % ticket_id)
