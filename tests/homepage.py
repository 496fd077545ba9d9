"""What stands in the boxes of Lamson's home page, in both its versions; the texts may lie beside this checkout.

(The second version has three boxes for code with nothing in them.)
"""

import re
from pathlib import Path

POSTING = """
@route("(post_name)@(host)")
def START(message, post_name=None, host=None):
    message['X-Post-Name'] = post_name
    confirmation.send(relay, "post", message, "mail/confirm.msg", locals())
    return CONFIRMING
"""

CONFIRMING = """
@route("post-confirm-(id_number)@(host)", id_number="[a-z0-9]+")
def CONFIRMING(message, id_number=None, host=None):
    original = confirmation.verify(message, id_number)
    ...


@route("(post_name)@(host)")
@route("(post_name)-(action)@(host)", action="delete")
def POSTING(message, post_name=None, host=None, action=None):
    name, address = parseaddr(message['from'])
    ...
"""

SPAM = """
@route("(anything)@(host)", anything=".+", host=".+")
@spam_filter(ham_db, "tests/.hammierc", "run/queue", next_state=SPAMMING)
def START(message, **kw):
    ....
"""

BOUNCE = """
@route("(anything)@(host)", anything=".+", host=".+")
@bounce_to(soft=SOFT_BOUNCED, hard=HARD_BOUNCED)
def START(message, **kw):
    ...
"""

FIRST = """\
$ easy_install lamson
$ lamson gen -project mymailserver
$ cd mymailserver
$ lamson start
$ lamson log
$ nosetests
$ lamson help -for send
$ lamson send -sender me@mydomain.com -to test@test.com \\
        -subject "My test." -body "Hi there." -port 8823
$ less logs/lamson.log
$ mutt -F muttrc
$ lamson stop -ALL run
"""

SECOND = """\
$ easy_install lamson
$ lamson gen -project mymailserver
$ cd mymailserver
$ lamson syncdb
$ lamson start
$ lamson log -queue run/queue -port 8899
$ nosetests
$ lamson help -for send
$ lamson send -sender me@mydomain.com -to test@test.com -subject "My test." -body "Hi there." -port 8823
$ less logs/lamson.log
$ mutt -F muttrc
$ lamson stop -ALL run
"""

HELP = "$ lamson help\n"

HELP_FOR_START = "$ lamson help -for start\n"

TEXTS = Path(__file__).parent.parent.parent / "shared/seeds"


def boxes() -> list[str]:
    """The boxes of the texts, from the line after the tag on, as long as there is something in them."""
    page = "".join(text.read_text() for text in sorted(TEXTS.iterdir()))
    found = re.findall(r"<(pre|code)\b.*?>\n(.*?)</\1>", page, re.DOTALL)
    return [box for _, box in found if box.strip()]
