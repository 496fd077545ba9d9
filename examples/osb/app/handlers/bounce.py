"""What comes back: bounces of the mail that we send, and answers that are too late. The last one in `handlers`.

Bounces come from nobody, MAIL FROM:<>, and nobody is always in START.
"""

import logging

from config.settings import confirmation

from lamson.bounce import bounce_to
from lamson.routing import route
from lamson.server import SMTPError

log = logging.getLogger(__name__)


def SOFT_BOUNCED(message, target=None, id_number=None, host=None):
    """It did not arrive, and may yet: a full mailbox, a server that is down. Their server goes on trying."""
    log.info("soft bounce: %s", message.bounce.error_for_humans())


def HARD_BOUNCED(message, target=None, id_number=None, host=None):
    """It will never arrive. Nobody can confirm what was asked at an address that does not exist."""
    for recipient in message.bounce.recipients:
        log.info("hard bounce of <%s>: %s", recipient.address, message.bounce.error_for_humans())
        if id_number:
            confirmation.cancel(target, recipient.sent_to, id_number)


@route("no-reply@(host)")
@route("(target)-confirm-(id_number)@(host)", target="post|comment")
@bounce_to(soft=SOFT_BOUNCED, hard=HARD_BOUNCED)
def START(message, target=None, id_number=None, host=None):
    """Somebody answers a mail that takes no answer, or one that they were never asked or have answered before."""
    raise SMTPError(550, "5.7.1 There is nothing to confirm here, or not any more")
