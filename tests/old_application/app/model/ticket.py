import os
import uuid
from lamson import queue


def mails(ticket_id):
    return queue.Queue("run/tickets/%s" % ticket_id, safe=True, pop_limit=1024 * 1024, oversize_dir="run/big")


def create(message):
    ticket_id = uuid.uuid4().hex[:8]
    append(ticket_id, message)
    return ticket_id


def append(ticket_id, message):
    return mails(ticket_id).push(message)


def exists(ticket_id):
    return os.path.isdir("run/tickets/%s" % ticket_id)


def history(ticket_id):
    found = mails(ticket_id)
    return [found.get(key) for key in found.keys()]
