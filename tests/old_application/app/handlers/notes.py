import os
import shelve
from email.utils import parseaddr
from lamson.routing import route, stateless
from lamson.confirm import ConfirmationEngine, ConfirmationStorage
from lamson import mail
from config.settings import relay, confirms

confirmation = ConfirmationEngine('run/pending', ConfirmationStorage(shelve.open(confirms)))


@route("note-(note)@(host)")
def START(message, note=None, host=None):
    message['X-Note'] = note
    confirmation.send(relay, "note", message, "mail/confirm.msg", locals())
    return CONFIRMING


@route("note-confirm-(id_number)@(host)", id_number="[a-z0-9]+")
def CONFIRMING(message, id_number=None, host=None):
    original = confirmation.verify('note', message['from'], id_number)

    if original:
        name, address = parseaddr(original['from'])
        keep(original['x-note'], address, original)
        return KEEPING
    else:
        return CONFIRMING


@route("note-(note)@(host)")
@route("note-(note)-(action)@(host)", action="drop")
def KEEPING(message, note=None, host=None, action=None):
    if action == 'drop':
        os.unlink('run/notes/%s.txt' % note)
    else:
        keep(note, parseaddr(message['from'])[1], message)
    return KEEPING


@route("comment-(note)@(host)")
@stateless
def COMMENT(message, note=None, host=None):
    comment = mail.MailResponse(To="comments@%s" % host, From=message['from'], Subject=message['subject'])

    if message.all_parts():
        comment.attach_all_parts(message)
    else:
        comment.Body = message.body()

    relay.deliver(comment)


def keep(note, address, message):
    if not os.path.isdir('run/notes'):
        os.mkdir('run/notes')
    with open('run/notes/%s.txt' % note, 'w') as out:
        out.write("%s\n%s\n%s" % (address, message['subject'], message.body()))
