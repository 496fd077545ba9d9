"""The commands of ``lamson``, one function each: the options are its parameters, the help is its docstring.

    $ lamson queue -name run/undeliverable -count
    >>> queue_command(name="run/undeliverable", count=True)

A command prints what it has to say and returns None. When it refuses, it raises SystemExit with the reason, which ends
the process with exit code 1 and the reason on stderr; nothing is done by halves before that, unless the reason says so.

What is imported here is what ``lamson help`` lists: a new command is written in the module of its kind and named below.
What a command needs is imported when it runs, so that the help is there at once.
"""

import sys
from collections.abc import Sequence

from lamson import args
from lamson.projectcommands import gen_command, routes_command, syncdb_command, web_command
from lamson.queuecommands import cleanse_command, queue_command
from lamson.sendcommands import blast_command, send_command, sendmail_command
from lamson.servercommands import log_command, restart_command, start_command, status_command, stop_command
from lamson.spamcommands import classify_command, train_command

__all__ = [
    "blast_command",
    "classify_command",
    "cleanse_command",
    "gen_command",
    "help_command",
    "log_command",
    "queue_command",
    "restart_command",
    "routes_command",
    "send_command",
    "sendmail_command",
    "start_command",
    "status_command",
    "stop_command",
    "syncdb_command",
    "train_command",
    "version_command",
    "web_command",
]


def help_command(**options: str) -> None:
    """Lists the commands, or explains one of them.

    `lamson help send` is short for `lamson help -for send`.

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


def rewrite_help(argv: Sequence[str]) -> list[str]:
    """Let ``lamson help send`` be ``lamson help -for send``."""
    return list(argv) if not argv or argv[0].startswith("-") else ["-for", *argv]


def version_command() -> None:
    """Tells the version of Lamson."""
    from lamson import __version__

    print(f"Lamson {__version__}")
