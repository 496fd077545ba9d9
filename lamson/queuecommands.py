"""The commands for mail that is kept in a queue or another mailbox: queue and cleanse. See `lamson.commands`."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lamson.mailboxes import mails_in
from lamson.terminal import misused, refuse, refusing, with_progress

if TYPE_CHECKING:
    from lamson.mail import MailRequest
    from lamson.queue import Entry


def queue_command(
    pop: bool = False,
    get: str | None = None,
    keys: bool = False,
    remove: str | None = None,
    count: bool = False,
    clear: bool = False,
    list: bool = False,
    retry: str | None = None,
    boot: str = "config.boot",
    name: str = "run/queue",
) -> None:
    """Looks into a queue, or takes mails out of it. Say one thing to do.

    What -retry does depends on what the project's settings say the queue is. Mail in the queue of settings.relay is
    sent now. Mail in any other queue is given to the handlers, for the recipients it was kept for. Mail that was not
    taken stays, with the reason, or is undeliverable; then this exits with 1.

    Options:
        -pop: print the oldest mail and take it out
        -get KEY: print the mail of this key and leave it in
        -keys: print the keys of all mails, the oldest first
        -remove KEY: take the mail of this key out
        -count: print how many mails there are
        -clear: take all mails out
        -list: print each mail's key, sender, recipients, size, age and why it is there
        -retry KEY: try the mail of this key, or every one with ALL, once more
        -boot MODULE: the module that makes the relay and loads the handlers, for -retry
        -name DIR: the queue's folder, or its URL when it is over a broker
    """
    wanted = [word for word, given in locals().items() if word not in ("name", "boot") and given]
    if len(wanted) != 1:
        misused("queue", "say one thing to do: -pop, -get, -keys, -remove, -count, -list, -retry or -clear")
    from lamson.queue import Queue, is_url

    if not is_url(name) and not os.path.isdir(os.path.join(name, "new")):
        refuse(f"there is no queue in {name}")
    with refusing():
        mails = Queue(name)
        if pop:
            with mails.claim() as claim:
                if claim is None:
                    refuse(f"{mails.dir} is empty or other programs are handling all its mails")
                _print_mail(claim.message)
                claim.done()  # and not before it is printed: the reader may be gone
        elif get:
            message = mails.get(get)
            if message is None:
                refuse(f"there is no mail {get} in {mails.dir}")
            _print_mail(message)
        elif keys:
            print("".join(f"{key}\n" for key in mails.keys()), end="")
        elif remove:
            mails.remove(remove)
        elif count:
            print(mails.count())
        elif list:
            for entry in mails.entries():
                print(_described(entry))
        elif retry:
            _retry(name, mails.keys() if retry == "ALL" else [retry], boot)
        else:
            mails.clear()


def _retry(name: str, keys: Sequence[str], boot: str) -> None:
    from lamson import utils
    from lamson.server import QueueReceiver

    with utils.explained():
        settings = utils.import_settings(True, boot_module=boot)
    relay, receiver = getattr(settings, "relay", None), getattr(settings, "receiver", None)
    waiting = (getattr(relay, "outgoing", None), getattr(receiver, "retries", None))
    here = next((each for each in waiting if each is not None and _same_place(each.dir, name)), None)
    failures = QueueReceiver(name).retry(keys) if here is None else here.retry_now(keys)
    print(f"{len(keys) - len(failures)} of {len(keys)} mails were handled.")
    for key, failure in failures.items():
        print(f"{key} {'is undeliverable' if failure.permanent else 'stays'}: {failure.reason}", file=sys.stderr)
    if failures:
        sys.exit(1)


def _described(entry: "Entry") -> str:
    from lamson.logs import printable

    hours, rest = divmod(int(entry.age), 3600)
    age = f"{hours // 24}d{hours % 24:02}h" if hours >= 24 else f"{hours:02}:{rest // 60:02}:{rest % 60:02}"
    recipients = ", ".join(printable(recipient) for recipient in entry.recipients)
    line = (
        f"{entry.key}\n    from <{printable(entry.sender)}> to {recipients or 'nobody'}, {entry.size} bytes, {age} old"
    )
    return line + (f"\n    {printable(entry.reason)}" if entry.reason else "")


def _print_mail(message: "MailRequest") -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(message.as_bytes())
    sys.stdout.buffer.flush()


def cleanse_command(input: str, output: str) -> None:
    """Writes every mail of a Maildir or mbox into another Maildir, in the canonical form that Lamson gives to mail.

    The input stays as it is. Mails that cannot be cleansed are named and counted; then it exits with 1.

    Options:
        -input DIR: the Maildir, or the file in mbox format
        -output DIR: the Maildir to add them to, which is made when it is not there
    """
    from email.errors import MessageError

    from lamson.errors import LamsonError
    from lamson.mail import MailRequest
    from lamson.queue import Queue

    if _same_place(input, output):
        refuse("-output has to be another Maildir than -input")
    mails, total = mails_in(input)
    cleansed = Queue(output)
    failed = 0
    for key, message in with_progress(mails, total):
        try:
            cleansed.push(MailRequest(message.Peer, message.From, message.To, str(message)))
        except (LamsonError, MessageError, ValueError, LookupError) as error:
            failed += 1
            print(f"lamson: {key} cannot be cleansed: {error}", file=sys.stderr)
    print(f"Cleansed {total - failed} mails, {failed} could not be.")
    if failed:
        refuse(f"{failed} of {total} mails could not be cleansed")


def _same_place(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
