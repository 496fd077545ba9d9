"""``python -m lamson`` and the console command ``lamson``: reads the command line, and runs the command it names."""

import os
import sys

from lamson import args, commands


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name; None: the process's own) names.

    Returns the exit code: 0 when it was done, 1 when a file or the network failed it, 2 when the command line was not
    understood. A command that refuses raises SystemExit with its own.
    """
    try:
        command, options = args.parse_command(sys.argv[1:] if argv is None else argv, commands)
    except args.ArgumentError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        try:
            command(**options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has had enough: lamson help | head -1
        _drop_output()
        return 141
    except OSError as error:
        _drop_output()
        print(f"lamson: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}.", file=sys.stderr)
        return 1
    return 0


def _drop_output() -> None:
    """Send what is still to be printed nowhere, or else Python complains when it cannot print it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == "__main__":
    sys.exit(main())
