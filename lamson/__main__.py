"""``python -m lamson`` and the console command ``lamson``: reads the command line, and runs the command it names."""

import os
import sys

from lamson import args, commands


def main(argv: list[str] | None = None) -> int:
    """Run the command that `argv` (without the program's name; None: the process's own) names.

    Returns the exit code: 0 when it was done, 2 when the command line was not understood. A command that refuses
    raises SystemExit with its own.
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
    except BrokenPipeError:
        # Whoever read the output has had enough (`lamson help | head`). Python would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
