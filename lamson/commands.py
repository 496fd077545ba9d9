"""The commands of ``lamson``, one function each: the options are its parameters, the help is its docstring.

    $ lamson queue -name run/undeliverable -count
    >>> queue_command(name="run/undeliverable", count=True)

A command prints what it has to say and returns None. When it refuses, it raises SystemExit with the reason, which ends
the process with exit code 1 and the reason on stderr; nothing is done by halves before that, unless the reason says so.

What a command needs is imported when it runs, so that ``lamson help`` is there at once.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from lamson import args
from lamson.args import Octal, Port

if TYPE_CHECKING:
    from lamson.mail import MailRequest
    from lamson.queue import Entry

TEMPORARY_FAILURE, UNAVAILABLE, USAGE = 75, 69, 64  # what sendmail exits with, from <sysexits.h>


def blast_command(input: str, host: str = "127.0.0.1", port: Port = 8823, debug: int = 0) -> None:
    """Sends every mail of a Maildir or mbox to a server.

    A mail goes to the recipients it was queued for, or else to those in its To, Cc and Bcc headers. Exits with 1 when
    some were refused, after sending the others.

    Options:
        -input DIR: the Maildir, or the file in mbox format
        -host HOST: the server's host
        -port NUMBER: the server's port
        -debug LEVEL: 1 shows the conversations
    """
    from smtplib import SMTPException

    from lamson.conversation import reason
    from lamson.server import Relay

    relay = Relay(host, port, debug=_smtplib_level(debug))
    sent, refused = 0, 0
    for key, message in _with_progress(*_mails_in(input)):
        try:
            with _conversation():
                relay.deliver(message)
            sent += 1
        except (SMTPException, ValueError) as error:
            refused += 1
            print(f"lamson: {key}: {reason(error)[1]}", file=sys.stderr)
        except OSError as error:
            _refuse(f"{reason(error, relay)[1]} ({sent} mails had been sent)")
    print(f"Sent {sent} mails to {host}:{port}.")
    if refused:
        _refuse(f"{refused} mails were refused")


def classify_command(
    db: str = "run/spamdb", config: str | None = None, input: str | None = None, clues: int = 10
) -> None:
    """Tells whether mails are spam, and the clues that decided.

    First comes what each aspect of the mail says by itself, then the strongest clues: tokens of the mail, each with
    the probability that a mail with it is spam. `lamson train` trains the spam filter. The mails stay as they are.

    Options:
        -db FILE: the database of the spam filter
        -config FILE: a SpamBayes options file (.hammierc), for its cutoffs and words
        -input PATH: a Maildir, a file in mbox format, a folder of files or one mail; otherwise standard input
        -clues NUMBER: how many clues to show for each mail; 0 shows what it is and nothing else
    """
    from collections import Counter
    from sqlite3 import Error

    from lamson.errors import LamsonError
    from lamson.spam import Filter

    if not os.path.exists(db):
        _refuse(f"there is no {db}. Train it: lamson help -for train")
    mails: Iterable[tuple[str, bytes]] = _contents_in(input)[0] if input else [("-", sys.stdin.buffer.read())]
    found: Counter[str] = Counter()
    try:
        with Filter(db, config) as spam:
            for name, content in mails:
                explanation = spam.explain(content)
                word = spam.word_for(explanation.score)
                found[word] += 1
                print(f"{word}; {explanation.score:.2f}  {name}")
                if clues > 0:
                    print("   ", ", ".join(f"{name} {each:.2f}" for name, each in explanation.aspects.items()))
                for clue in explanation.clues[: max(clues, 0)]:
                    print(f"    {clue.probability:.3f}  {clue.aspect:9}  {_printable(clue.token)}")
    except (LamsonError, Error, OSError) as error:
        _refuse(f"cannot classify with {db}: {error}")
    if found.total() != 1:
        counted = ", ".join(f"{number} {word}" for word, number in sorted(found.items()))
        print(f"{found.total()} mails: {counted or 'none'}.")


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
        _refuse("-output has to be another Maildir than -input")
    mails, total = _mails_in(input)
    cleansed = Queue(output)
    failed = 0
    for key, message in _with_progress(mails, total):
        try:
            cleansed.push(MailRequest(message.Peer, message.From, message.To, str(message)))
        except (LamsonError, MessageError, ValueError, LookupError) as error:
            failed += 1
            print(f"lamson: {key} cannot be cleansed: {error}", file=sys.stderr)
    print(f"Cleansed {total - failed} mails, {failed} could not be.")
    if failed:
        _refuse(f"{failed} of {total} mails could not be cleansed")


def gen_command(project: str, FORCE: bool = False) -> None:
    """Writes a new project, ready to start, with a handler and its tests.

    A project that is there already is refused. With -FORCE it gets the files that it has not; no file is ever
    overwritten.

    Options:
        -project NAME: the folder to make
        -FORCE: fill up a folder that is there already
    """
    from importlib.resources import as_file, files

    if not project:
        _refuse("-project needs a name")
    if os.path.lexists(project) and not FORCE:
        _refuse(f"{project} is there already. With -FORCE it gets the files that are missing")
    try:
        with as_file(files("lamson.templates") / "project") as template:
            kept = _copy_missing(str(template), project)
    except OSError as error:
        _refuse(f"cannot write {error.filename}: {error.strerror}")
    for path in kept:
        print(f"Kept {path}, which was there already.")
    print(f"The project {project} is ready. Next:\n\n    cd {project}\n    lamson start\n    nosetests\n")


def _copy_missing(template: str, project: str) -> list[str]:
    """Copy the files of `template` that `project` does not have. Returns those it has."""
    import shutil

    kept = []
    for folder, subfolders, names in os.walk(template):
        subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
        target = os.path.normpath(os.path.join(project, os.path.relpath(folder, template)))
        os.makedirs(target, exist_ok=True)
        for name in sorted(names):
            path = os.path.join(target, name)
            try:
                # "x" makes the file, and fails when somebody has made it since.
                with open(os.path.join(folder, name), "rb") as source, open(path, "xb") as copy:
                    shutil.copyfileobj(source, copy)
            except FileExistsError:
                kept.append(path)
    return kept


def help_command(**options: str) -> None:
    """Lists the commands, or explains one of them.

    Options:
        -for COMMAND: the command to explain
    """
    from lamson import commands

    if unknown := options.keys() - {"for"}:
        raise TypeError(f"help_command() has no option {unknown.pop()!r}, only 'for'")
    if options.get("for"):
        try:
            print(args.help_for_command(commands, options["for"]))
        except args.ArgumentError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    else:
        print("Lamson, the Python mail server. Usage: lamson COMMAND -option value -FLAG -- more values\n")
        print(args.available_help(commands))
        print("\nThe options of a command: lamson help -for COMMAND")


def log_command(
    port: Port = 8825,
    host: str = "127.0.0.1",
    chroot: str | None = None,
    chdir: str = ".",
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: Octal | None = None,
    pid: str = "./run/log.pid",
    FORCE: bool = False,
    debug: bool = False,
    queue: str = "run/queue",
) -> None:
    """Starts a server that takes every mail, logs it and keeps it in a queue, and sends nothing on.

    It stands in for the mail server that a project relays to, and needs no project itself. It logs to logs/logger.log
    where there is a folder logs. Read what it has caught with `mutt -F muttrc`, or `lamson queue -keys`.

    Options:
        -port NUMBER: the port to listen on
        -host HOST: the address to listen on
        -chroot DIR: make this the root folder, in which everything that Lamson needs must be found
        -chdir DIR: the folder to run in, inside -chroot
        -uid USER: become this user (name or number) once the port is bound
        -gid GROUP: become this group (name or number) once the port is bound
        -umask OCTAL: permissions that new files do not get
        -pid FILE: the file to keep the process number in, counted from -chdir
        -FORCE: start even though another server holds the pid file
        -debug: stay in the foreground, and log to the terminal too
        -queue DIR: the Maildir to keep mail in
    """
    from lamson import utils

    def settings() -> Any:
        import lamson.handlers.queue

        lamson.handlers.queue.QUEUE = queue
        return utils.make_fake_settings(host, port)

    relay_port = _relay_port(utils.real_path("config/settings.py", chdir, chroot))
    if relay_port not in (None, port):
        print(
            f"Note: config/settings.py relays to port {relay_port}, so mail of this project is not caught here on "
            f"port {port}. Give relay_config the port {port} and run: lamson restart",
            flush=True,
        )
    _start("The log server", pid, FORCE, chroot, chdir, uid, gid, umask, settings, debug, 1)


def _relay_port(path: str) -> int | None:
    """Return the port that settings plainly give to relay_config, without running them; None when they do not."""
    import ast

    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None
    port = None
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and "relay_config" in map(ast.unparse, statement.targets):
            try:
                config = ast.literal_eval(statement.value)
            except ValueError:
                return None
            port = config.get("port") if isinstance(config, dict) else None
    return port if isinstance(port, int) else None


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
        _misused("queue", "say one thing to do: -pop, -get, -keys, -remove, -count, -list, -retry or -clear")
    from lamson.queue import Queue, is_url

    if not is_url(name) and not os.path.isdir(os.path.join(name, "new")):
        _refuse(f"there is no queue in {name}")
    with _refusing():
        mails = Queue(name)
        if pop:
            with mails.claim() as claim:
                if claim is None:
                    _refuse(f"{mails.dir} is empty or other programs are handling all its mails")
                _print_mail(claim.message)
                claim.done()  # and not before it is printed: the reader may be gone
        elif get:
            message = mails.get(get)
            if message is None:
                _refuse(f"there is no mail {get} in {mails.dir}")
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

    try:
        settings = utils.import_settings(True, boot_module=boot)
    except utils.ServerError as error:
        _refuse(str(error))
    relay, receiver = getattr(settings, "relay", None), getattr(settings, "receiver", None)
    waiting = (getattr(relay, "outgoing", None), getattr(receiver, "retries", None))
    here = next((each for each in waiting if each is not None and _same_place(each.dir, name)), None)
    failures = QueueReceiver(name).retry(keys) if here is None else here.retry_now(keys)
    print(f"{len(keys) - len(failures)} of {len(keys)} mails were handled.")
    for key, failure in failures.items():
        print(f"{key} {'is undeliverable' if failure.permanent else 'stays'}: {failure.reason}", file=sys.stderr)
    if failures:
        sys.exit(1)


def _same_place(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


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


def restart_command(
    pid: str = "./run/smtp.pid",
    KILL: bool = False,
    ALL: str | None = None,
    FORCE: bool = False,
    chroot: str | None = None,
    chdir: str = ".",
    boot: str = "config.boot",
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: Octal | None = None,
    debug: bool = False,
    workers: int = 1,
) -> None:
    """Stops the server when it is running, and starts it.

    Options:
        -pid FILE: the file with the process number, counted from -chdir
        -KILL: do not let it finish what it is handling
        -ALL DIR: stop every server that has its pid file in this folder; only that of -pid is started
        -FORCE: start even though another server holds the pid file
        -chroot DIR: make this the root folder, in which everything that Lamson needs must be found
        -chdir DIR: the folder of the project, inside -chroot
        -boot MODULE: the module that makes the receiver and loads the handlers
        -uid USER: become this user (name or number) once the port is bound
        -gid GROUP: become this group (name or number) once the port is bound
        -umask OCTAL: permissions that new files do not get
        -debug: stay in the foreground, log to the terminal too, load handlers again when they change
        -workers NUMBER: processes that share the work; their states have to be in a database
    """
    from lamson import utils

    if ALL is not None:
        _stop_all(ALL, KILL)
    _stop([utils.real_path(pid, chdir, chroot)], KILL)
    start_command(pid, FORCE, chroot, chdir, boot, uid, gid, umask, debug, workers)


def routes_command(path: str = ".", test: str | None = None, TRAILING: Sequence[str] = ("config.testing",)) -> None:
    """Shows the routes in the order in which they are tried, and which ones take an address.

    Exits with 1 when no route takes the address.

    Options:
        -path DIR: the folder to import from
        -test ADDRESS: the address to try
        -- MODULE ...: modules that load the handlers, or handlers
    """
    import importlib

    from lamson import utils
    from lamson.routing import Router, lamson_setting

    sys.path.insert(0, os.path.abspath(path))
    for module in TRAILING:
        with _refusing(), utils.explained(f"cannot import {module}: "):
            importlib.import_module(module)

    def show(functions: list, captures: dict) -> None:
        for func in functions:
            words = [f"{func.__module__}.{func.__name__}"]
            words += [word for word in ("stateless", "nolocking") if lamson_setting(func, word)]
            print("   ", *words, *(f"{name}={value!r}" for name, value in captures.items()))

    print("Routes, in the order in which they are tried:")
    for format in Router.ORDER:
        print(f"\n  {format}")
        show(Router.REGISTERED[format][1], {})
    if test:
        matches = list(Router.match(test))
        if not matches:
            _refuse(f"no route takes {test}")
        print(f"\n{test} is taken by:\n")
        for functions, captures in matches:
            show(functions, captures)


def send_command(
    port: Port = 8825,
    host: str = "127.0.0.1",
    username: str | None = None,
    password: str | None = None,
    ssl: bool = False,
    starttls: bool = False,
    debug: int = 1,
    *,
    sender: str,
    to: str,
    subject: str = "",
    body: str = "",
    attach: str | None = None,
) -> None:
    """Sends one mail to a server, and shows what the two say to each other.

    Options:
        -port NUMBER: the server's port
        -host HOST: the server's host
        -username NAME: log in with this name
        -password WORD: log in with this password
        -ssl: speak TLS from the start
        -starttls: change to TLS before anything else is said; any certificate will do
        -debug LEVEL: 0 shows nothing
        -sender ADDRESS: who the mail is from
        -to ADDRESS: who it is for, several separated by commas
        -subject TEXT: its subject
        -body TEXT: its text
        -attach FILE: a file to go with it
    """
    from lamson.conversation import reason
    from lamson.errors import LamsonError
    from lamson.mail import MailResponse
    from lamson.relay import Relay, unverified_context

    # Made for trying a server of one's own, whose certificate nobody has signed.
    tls = unverified_context() if ssl or starttls else False
    relay = Relay(host, port, username, password, ssl and tls, starttls and tls, _smtplib_level(debug))
    try:
        message = MailResponse(To=to, From=sender, Subject=subject, Body=body)
        if attach:
            message.attach(filename=attach, disposition="attachment")
        with _conversation():
            relay.deliver(message)
    except (OSError, ValueError, LamsonError) as error:
        _refuse(reason(error, relay)[1])


def sendmail_command(
    port: Port = 8825,
    host: str = "127.0.0.1",
    debug: int = 0,
    TRAILING: Sequence[str] = (),
    f: str | None = None,
    t: bool = False,
) -> None:
    """Sends the mail on standard input to a server, as the program sendmail does.

    Name it in your muttrc: set sendmail="lamson sendmail -port 8825 -host 127.0.0.1". Sendmail's other options that
    mail programs use (-i, -oi, -oem, -B8BITMIME, -F NAME and so on) are accepted, and change nothing.

    The mail is sent as it is, only without its Bcc header. Exits as sendmail does: with 0 when the server has taken the
    mail, 75 when it may take it later, 69 when it refuses it, 64 when there is no recipient.

    Options:
        -port NUMBER: the server's port
        -host HOST: the server's host
        -debug LEVEL: 1 shows the conversation
        -- RECIPIENT ...: who it is for
        -f ADDRESS: who it is from, when not the one in its From header
        -t: send it to those in its To, Cc and Bcc headers
    """
    import re
    from email.utils import getaddresses, parseaddr

    from lamson.conversation import reason
    from lamson.mail import MailRequest
    from lamson.server import Relay

    # A program on this machine writes the line ends of files. SMTP has no others than these (RFC 5321 section 2.3.8).
    content = re.sub(rb"\r\n|\n|\r", b"\r\n", sys.stdin.buffer.read())
    headers = MailRequest("sendmail", None, None, content)
    recipients = list(TRAILING)
    if t:
        fields = [value for name in ("To", "Cc", "Bcc") if (value := headers[name])]
        recipients += [address for _, address in getaddresses(fields) if address]
    if not recipients:
        _refuse("there is no recipient", USAGE)
    sender = parseaddr(headers["From"] or "")[1] if f is None else f.strip("<>")
    message = MailRequest("sendmail", sender, recipients, content)
    if "Bcc" in message:
        del message["Bcc"]
    relay = Relay(host, port, debug=_smtplib_level(debug))
    try:
        with _conversation():
            relay.deliver(message, To=recipients, From=sender)
    except (OSError, ValueError) as error:
        temporary, why = reason(error, relay)
        _refuse(why, TEMPORARY_FAILURE if temporary else UNAVAILABLE)


def rewrite_sendmail(argv: Sequence[str]) -> list[str]:
    """Take sendmail's own options out of a command line for `sendmail_command`, and part those it keeps from values."""
    known = args.options_of(sendmail_command)
    kept: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        letter, value = token[1:2], token[2:]
        if token == "--":
            return [*kept, token, *tokens]
        if not token.startswith("-") or token.lstrip("-").partition("=")[0] in known:
            kept.append(token)
        elif letter in ("f", "r"):
            kept += ["-f", value or (tokens.pop(0) if tokens else "")]
        elif letter in ("F", "N", "R", "V", "X") and not value:
            del tokens[:1]
        elif set(token[1:]) <= set("itmnv"):
            kept += ["-t"] if "t" in token else []
        elif letter not in ("F", "N", "R", "V", "X", "o", "b", "B", "e", "q"):
            kept.append(token)
    return kept


def start_command(
    pid: str = "./run/smtp.pid",
    FORCE: bool = False,
    chroot: str | None = None,
    chdir: str = ".",
    boot: str = "config.boot",
    uid: int | str | None = None,
    gid: int | str | None = None,
    umask: Octal | None = None,
    debug: bool = False,
    workers: int = 1,
) -> None:
    """Starts the server of the project in this folder, in the background.

    Comes back once clients can connect, and says where; or with the reason why they cannot, and exit code 1. What goes
    wrong before the project's own log is set up is in logs/lamson.err, what handlers print in logs/lamson.out.

    With -uid and -gid the port may be a low one: it is bound first. The folders run, logs and app/data have to belong
    to that user.

    With -workers the process in the pid file looks after the others, and starts a new one when one of them dies. Memory
    is not shared: what handlers keep in variables, each worker has for itself.

    Options:
        -pid FILE: the file to keep the process number in, counted from -chdir
        -FORCE: start even though another server holds the pid file
        -chroot DIR: make this the root folder, in which everything that Lamson needs must be found
        -chdir DIR: the folder of the project, inside -chroot
        -boot MODULE: the module that makes the receiver and loads the handlers
        -uid USER: become this user (name or number) once the port is bound
        -gid GROUP: become this group (name or number) once the port is bound
        -umask OCTAL: permissions that new files do not get
        -debug: stay in the foreground, log to the terminal too, load handlers again when they change
        -workers NUMBER: processes that share the work; their states have to be in a database
    """
    from lamson import utils

    config = utils.real_path("config", chdir, chroot)
    if not os.path.isdir(config):
        _refuse(f"there is no {config}. Go to your project's folder, or make one: lamson gen -project NAME")

    def settings() -> Any:
        return utils.import_settings(True, boot_module=boot)

    _start("Lamson", pid, FORCE, chroot, chdir, uid, gid, umask, settings, debug, workers)


def _start(name: str, *options: Any) -> None:
    """Start a server with the options of `utils.start_server`, and say where it listens."""
    from lamson import utils

    debug = options[-2]
    try:
        where = utils.start_server(*options)
    except utils.ServerError as error:
        if debug and error.__cause__ is not None and not isinstance(error.__cause__, OSError):
            import traceback

            traceback.print_exception(error.__cause__)
        _refuse(str(error))
    if not debug:
        print(f"{name} listens on {where}.")


def status_command(pid: str = "./run/smtp.pid") -> None:
    """Tells whether the server is running. Exits with 1 when it is not.

    Options:
        -pid FILE: the file with the process number
    """
    from lamson.pidfile import find_server

    with _refusing():
        server = find_server(pid)
    if server is not None:
        print(f"Lamson is running, pid {server.number} ({pid}).")
    elif os.path.exists(pid):
        _refuse(f"not running. {pid} is left over from a server that has died")
    else:
        _refuse(f"not running. There is no {pid}")


def stop_command(pid: str = "./run/smtp.pid", KILL: bool = False, ALL: str | None = None) -> None:
    """Stops the server, and comes back when it is gone.

    It finishes what it is handling first, which takes 40 seconds at most; if it takes longer, this exits with 1.

    Options:
        -pid FILE: the file with the process number
        -KILL: do not let it finish what it is handling
        -ALL DIR: stop every server that has its pid file in this folder
    """
    if ALL is not None:
        _stop_all(ALL, KILL)
    elif not _stop([pid], KILL):
        _refuse(f"nothing to stop: no server is running with {pid}")


def _stop_all(folder: str, KILL: bool) -> None:
    if not os.path.isdir(folder):
        _refuse(f"there is no folder {folder}")
    paths = sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pid"))
    if not _stop(paths, KILL):
        print(f"Nothing was running in {folder}.")


def _stop(paths: Iterable[str], KILL: bool) -> int:
    """Stop the servers of these pid files, all at once, and return how many there were."""
    from lamson.pidfile import STOP_TIME, find_server

    stopping, failed = [], 0
    for path in paths:
        with _refusing():
            server = find_server(path)
            if server is not None:
                server.signal(KILL)
                stopping.append(server)
    for server in stopping:
        if server.wait(STOP_TIME):
            print(f"Stopped pid {server.number} ({server.path}).")
        else:
            failed += 1
            print(f"lamson: pid {server.number} ({server.path}) is still busy.", file=sys.stderr)
    if failed:
        _refuse(f"not stopped within {STOP_TIME} seconds. To end it with its work undone: lamson stop -KILL")
    return len(stopping)


def syncdb_command() -> None:
    """Makes the tables that are missing in the project's database: those of app/model, and Lamson's own.

    The database is that of database_config in config/settings.py. Of the tables that are there already, those of
    app/model stay as they are, and Lamson's own are brought up to date when an older Lamson made them.
    """
    import importlib
    import pkgutil

    from lamson import schema, utils
    from lamson.database import SQLAlchemyConfirmationStorage, SQLAlchemyStorage

    with _refusing(), utils.explained():
        settings = utils.import_settings(False)
        # A table is known once the module that has it is imported.
        if importlib.util.find_spec("app") and importlib.util.find_spec("app.model"):
            for module in pkgutil.iter_modules(importlib.import_module("app.model").__path__, "app.model."):
                importlib.import_module(module.name)
        if getattr(settings, "database_config", None) is None:
            raise utils.ServerError("config/settings.py has no database_config.")
        database = utils.configure_database(settings.database_config, also_create=True)
        tables = {schema.versions.name, *(database.metadata.tables if database.metadata is not None else ())}
        for storage in SQLAlchemyStorage(database), SQLAlchemyConfirmationStorage(database):
            storage.prepare()
            tables.add(storage.table.name)
    print(f"{database.engine.url.render_as_string()} has the tables: {', '.join(sorted(tables))}.")


def train_command(
    ham: str | None = None,
    spam: str | None = None,
    db: str = "run/spamdb",
    untrain: bool = False,
    spambayes: str | None = None,
) -> None:
    """Trains the spam filter with mails of which you know what they are.

    It needs some of both kinds, the more the better, and about as many of one as of the other. A mail that was trained
    before does not count twice, so a folder may be given again when there is more in it; one that was trained as the
    other kind changes sides. Servers that use the database need not be restarted.

    Options:
        -ham PATH: mails that are none: a Maildir, a file in mbox format, a folder of files, or one mail
        -spam PATH: mails that are spam, likewise
        -db FILE: the database of the spam filter, which is made when it is not there
        -untrain: take back what was trained with these mails
        -spambayes FILE: add what SpamBayes has learned, from the file that its sb_dbexpimp -e has written
    """
    from sqlite3 import Error

    from lamson.errors import LamsonError
    from lamson.spam import Filter

    if not (ham or spam or spambayes):
        _misused("train", "say what to learn from: -ham, -spam or -spambayes")
    if untrain and (spambayes or not os.path.exists(db)):
        _refuse("what came from SpamBayes cannot be taken back" if spambayes else f"there is no {db}")
    given = [(kind, _contents_in(path)) for kind, path in (("ham", ham), ("spam", spam)) if path]
    try:
        with Filter(db) as trained:
            for kind, (mails, total) in given:
                learn = getattr(trained, f"untrain_{kind}" if untrain else f"train_{kind}")
                new = sum(learn(content) for _, content in _with_progress(mails, total))
                if untrain:
                    print(f"Took back {new} {kind}; {total - new} had not been trained as {kind}.")
                else:
                    print(f"Learned {new} {kind}; {total - new} had been learned before.")
            if spambayes:
                hams, spams, tokens = trained.import_spambayes(spambayes)
                print(f"Added what SpamBayes learned from {hams} ham and {spams} spam: {tokens} tokens.")
    except (LamsonError, Error, OSError) as error:
        _refuse(f"cannot train {db}: {error}")


def version_command() -> None:
    """Tells the version of Lamson."""
    from lamson import __version__

    print(f"Lamson {__version__}")


def web_command(basedir: str = ".", port: Port = 8888, host: str = "127.0.0.1") -> None:
    """Serves the files of a folder to browsers on this machine, until ctrl-c.

    Options:
        -basedir DIR: the folder
        -port NUMBER: the port to listen on
        -host HOST: the address to listen on
    """
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if not os.path.isdir(basedir):
        _refuse(f"there is no folder {basedir}")
    try:
        server = ThreadingHTTPServer((host, port), partial(SimpleHTTPRequestHandler, directory=basedir))
    except OSError as error:
        _refuse(f"cannot listen on {host}:{port}: {error.strerror}")
    with server:
        print(f"Serving {os.path.abspath(basedir)} at http://{host}:{server.server_port}/", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


# --- what commands share -----------------------------------------------------------------------------------------


def _refuse(reason: str, code: int = 1) -> NoReturn:
    print(f"lamson: {reason}{'' if reason.endswith(('.', '?')) else '.'}", file=sys.stderr)
    sys.exit(code)


def _misused(name: str, reason: str) -> NoReturn:
    _refuse(f"{name}: {reason}. See: lamson help -for {name}", 2)


@contextmanager
def _refusing() -> Iterator[None]:
    """Make a refusal of an error that says all there is to say."""
    from lamson.errors import LamsonError

    try:
        yield
    except LamsonError as error:
        _refuse(str(error))


def _mails_in(path: str) -> tuple[Iterator[tuple[str, "MailRequest"]], int]:
    """Return the mails of a Maildir or mbox, each with its key, and how many there are."""
    import mailbox

    from lamson.mail import MailRequest
    from lamson.queue import Queue

    if os.path.isdir(os.path.join(path, "cur")):
        mails = Queue(path)
        keys = mails.keys()
        # One that another program has taken since is no longer there to read.
        return ((key, message) for key in keys if (message := mails.get(key)) is not None), len(keys)
    if not os.path.isfile(path):
        _refuse(f"{path} is neither a Maildir nor a file")
    mbox = mailbox.mbox(path, create=False)
    keys = mbox.keys()
    if not keys and os.path.getsize(path):
        _refuse(f"{path} is not in mbox format: it has no line that begins with 'From '")
    return ((f"mail {key}", MailRequest("mbox", None, None, mbox.get_bytes(key))) for key in keys), len(keys)


def _contents_in(path: str) -> tuple[Iterator[tuple[str, bytes]], int]:
    """Return the mails of a Maildir, an mbox, a folder of files or a file, with their names, and how many there are."""
    import mailbox

    from lamson.envelope import split_envelope
    from lamson.maildir import Maildir

    if os.path.isdir(path):
        is_maildir = os.path.isdir(os.path.join(path, "cur"))
        if is_maildir:
            files = [str(file) for file in Maildir(path).files()]
        else:
            files = sorted(entry.path for entry in os.scandir(path) if entry.is_file() and entry.name[0] != ".")

        def contents() -> Iterator[tuple[str, bytes]]:
            for file in files:
                # A mail program may have taken it away or marked it as read since.
                with suppress(FileNotFoundError), open(file, "rb") as opened:
                    content = opened.read()
                    yield os.path.basename(file), split_envelope(content)[2] if is_maildir else content

        return contents(), len(files)
    if not os.path.isfile(path):
        _refuse(f"there is no {path}")
    with open(path, "rb") as opened:
        start = opened.read(5)
        if start and start != b"From ":  # an empty file is an mbox with nothing in it
            opened.seek(0)
            return iter([(path, opened.read())]), 1
    mbox = mailbox.mbox(path, create=False)
    keys = mbox.keys()
    return ((f"mail {key}", mbox.get_bytes(key)) for key in keys), len(keys)


def _printable(text: str) -> str:
    """Return a stranger's text as it may be written to a terminal."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    encoding = sys.stdout.encoding or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _with_progress(mails: Iterator[Any], total: int) -> Iterator[Any]:
    """Yield the mails, and on a terminal show a bar of how far it has come."""
    shown = sys.stderr.isatty()
    for done, mail in enumerate(mails):
        if shown:
            _show_progress(done, total, "")
        yield mail
    if shown:
        _show_progress(total, total, "\n")


def _show_progress(done: int, total: int, end: str) -> None:
    bar = "#" * (30 * done // max(total, 1))
    print(f"\r[{bar:30}] {done}/{total}", end=end, file=sys.stderr, flush=True)


def _smtplib_level(debug: int) -> int:
    return min(debug, 1)  # the higher levels of smtplib only add the time to each line


@contextmanager
def _conversation() -> Iterator[None]:
    """Print what a relay with debug 1 says and is told, for people, without passwords."""
    from lamson.conversation import Conversation

    with redirect_stderr(Conversation(sys.stdout, sys.stderr)):
        yield
