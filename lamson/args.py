"""Command lines of the form ``lamson send -port 8823 -ssl -to you@example.com``, read from the functions they call.

A command is a function called ``NAME_command``. Its parameters are the options, their annotations the types, their
defaults the defaults, and its docstring is the help:

    def greet_command(name: str, times: int = 1, LOUD: bool = False, TRAILING: Sequence[str] = ()) -> None:
        '''Greets somebody.

        Options:
            -name NAME: who is greeted
            -times NUMBER: how often
            -LOUD: in capital letters
            -- GREETING: what to say
        '''

    $ lamson greet -name Zed -times=3 --LOUD -- hello there
    >>> parse_command(sys.argv[1:], module)
    (<function greet_command>, {'name': 'Zed', 'times': 3, 'LOUD': True, 'TRAILING': ['hello', 'there']})

An option without a default has to be given. A flag (``bool``) is true when it stands alone, and takes True or False.
``TRAILING`` gets what belongs to no option. ``**options`` takes the options that the docstring names besides, for
names that Python keeps for itself (``-for``). A command that stands in for another program may have a function
``rewrite_NAME`` beside it in its module, which is given its tokens first and returns those to read.

What cannot be understood raises `ArgumentError`. Nothing is printed.
"""

import inspect
import sys
import types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

PROGRAM = "lamson"
ASKS_FOR_HELP = ("-h", "-help", "--help")
Command = Callable[..., Any]


class ArgumentError(ValueError):
    """A command line that cannot be understood. The text is one line that says what is wrong and where help is."""


def port_number(text: str) -> int:
    """Return the TCP port that `text` names; 0 lets the system choose one when it is listened on."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise ValueError(f"{number} is no port")
    return number


def octal_number(text: str) -> int:
    """Return the number whose octal digits `text` has, as in ``-umask 027``."""
    return int(text, 8)


# The type of a parameter, the function that reads it from a command line, and what an error calls it.
Port = Annotated[int, port_number, "a port number (0 to 65535)"]
Octal = Annotated[int, octal_number, "an octal number such as 027"]


class Option:
    """One option of a command: what its function's signature and docstring say about it."""

    def __init__(self, name: str, type: Any, default: Any, metavar: str, help: str):
        self.name = name
        self.default = default
        self.metavar = metavar
        self.help = help
        # `int | None` is an int that may be left out: nobody types a None.
        union = get_origin(type) in (types.UnionType, Union)
        self.types = [part for part in get_args(type) if part is not types.NoneType] if union else [type]

    @property
    def flag(self) -> bool:
        return self.types == [bool]

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def read(self, text: str) -> Any:
        """Return the value that `text` stands for. Raises ArgumentError when it stands for none."""
        for type in self.types:
            convert, *_ = getattr(type, "__metadata__", [_truth if type is bool else type])
            try:
                return convert(text)
            except ValueError:
                continue
        raise ArgumentError(f"-{self.name} takes {' or '.join(map(_words_for, self.types))}, not {text!r}.")


def _truth(text: str) -> bool:
    values = {"true": True, "false": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def _words_for(type: Any) -> str:
    if hasattr(type, "__metadata__"):
        return type.__metadata__[1]
    return {int: "a whole number", float: "a number", bool: "True or False"}.get(type, "a text")


# --- what a function says about itself ---------------------------------------------------------------------------


def available_commands(mod: types.ModuleType) -> dict[str, Command]:
    """Return the commands that `mod` defines or imports, by name, sorted."""
    suffix = "_command"
    names = sorted(name for name in vars(mod) if name.endswith(suffix) and not name.startswith("_"))
    return {name.removesuffix(suffix): getattr(mod, name) for name in names}


def command_named(name: str, mod: types.ModuleType) -> Command:
    """Return one command of `mod`. Raises ArgumentError, with the closest name there is, when it has none."""
    commands = available_commands(mod)
    if name not in commands:
        raise ArgumentError(f"{PROGRAM}: there is no command {name!r}{_close(name, commands)} See: {PROGRAM} help")
    return commands[name]


def split_docstring(func: Command) -> tuple[str, str, dict[str, tuple[str, str]]]:
    """Return the first paragraph of a command's docstring, the rest, and its options: name -> (metavar, help).

    The name of what belongs to no option is ``TRAILING``.
    """
    prose, _, listed = (inspect.getdoc(func) or "").partition("\nOptions:\n")
    summary, _, rest = prose.strip().partition("\n\n")
    described: dict[str, tuple[str, str]] = {}
    name = ""
    for line in filter(None, map(str.strip, listed.splitlines())):
        head, colon, text = line.partition(":")
        if line.startswith("-") and colon:
            option, _, metavar = head.partition(" ")
            name = option.lstrip("-") or "TRAILING"
            described[name] = metavar, text.strip()
        else:
            described[name] = described[name][0], f"{described[name][1]} {line}"
    return " ".join(summary.split()), rest.strip(), described


def options_of(func: Command) -> dict[str, Option]:
    """Return the options of a command by name, in the order of its signature; ``TRAILING`` is among them."""
    described = split_docstring(func)[2]
    options: dict[str, Option] = {}
    for name, parameter in inspect.signature(func).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            for other in described.keys() - options.keys():
                options[other] = Option(other, parameter.annotation, None, *described[other])
        else:
            options[name] = Option(name, parameter.annotation, parameter.default, *described.get(name, ("", "")))
    return options


# --- a command line ----------------------------------------------------------------------------------------------


def parse_command(argv: Sequence[str], mod: types.ModuleType) -> tuple[Command, dict[str, Any]]:
    """Return the function that a command line names, and its keyword arguments; the help when it names none.

    `-h`, `-help` and `--help` in the place of an option ask for help too. Raises ArgumentError, see there.
    """
    name, *rest = argv or ["help"]
    if name in ASKS_FOR_HELP:
        name = "help"
    func = command_named(name, mod)
    if rest and rest[0] in ASKS_FOR_HELP:
        return command_named("help", mod), {"for": name}
    rewrite = getattr(sys.modules[func.__module__], f"rewrite_{name}", list)
    try:
        return func, parse(func, rewrite(rest))
    except ArgumentError as error:
        raise ArgumentError(f"{PROGRAM} {name}: {error} See: {PROGRAM} help -for {name}") from None


def parse(func: Command, argv: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments for `func` that a command line gives. Raises ArgumentError."""
    options = options_of(func)
    named = {name: option for name, option in options.items() if name != "TRAILING"}
    found: dict[str, Any] = {}
    trailing: list[str] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            trailing += tokens
            break
        if not token.startswith("-") or token == "-":
            trailing.append(token)
            continue
        name, equals, value = _split(token)
        if name not in named:
            raise ArgumentError(f"there is no option {token.partition('=')[0]}{_close(name, named, '-')}")
        if name in found:
            raise ArgumentError(f"-{name} is there twice.")
        if not equals:
            value = _value(named[name], named, tokens)
        found[name] = named[name].read(value)
    if trailing:
        if "TRAILING" not in options:
            forgotten = [name for name, option in named.items() if option.required and name not in found]
            hint = f", did you mean -{forgotten[0]} {trailing[0]}?" if forgotten else "."
            raise ArgumentError(f"{trailing[0]!r} belongs to no option{hint}")
        found["TRAILING"] = trailing
    missing = [f"-{name}" for name, option in named.items() if option.required and name not in found]
    if missing:
        raise ArgumentError(f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
    return found


def _split(token: str) -> tuple[str, str, str]:
    """``--port=8823`` -> ``('port', '=', '8823')``"""
    return (token[2:] if token.startswith("--") else token[1:]).partition("=")


def _value(option: Option, named: dict[str, Option], tokens: list[str]) -> str:
    """Take the option's value off the front of `tokens`.

    A value may begin with a dash (a text that is a signature, a number below zero). Only what is an option of this
    command is not taken for one, since then the value has been forgotten.
    """
    if option.flag:
        return tokens.pop(0) if tokens and tokens[0].lower() in ("true", "false") else "True"
    if not tokens or tokens[0] == "--" or (tokens[0].startswith("-") and _split(tokens[0])[0] in named):
        instead = f" ({tokens[0]} is none; -{option.name}={tokens[0]} makes it one)" if tokens else ""
        raise ArgumentError(f"-{option.name} needs a value{instead}.")
    return tokens.pop(0)


def _close(name: str, known: dict[str, Any], dash: str = "") -> str:
    import difflib  # only somebody who mistyped waits for it

    lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1)
    return f", did you mean {dash}{lower[close[0]]}?" if close else "."


# --- help --------------------------------------------------------------------------------------------------------


def available_help(mod: types.ModuleType) -> str:
    """Return every command of `mod` with the first sentence of its help, one a line."""
    commands = available_commands(mod)
    width = max(map(len, commands))
    return "\n".join(f"  {name:{width}}  {split_docstring(func)[0]}" for name, func in commands.items())


def usage(name: str, func: Command) -> str:
    """Return how the command is typed: ``lamson gen -project NAME [-FORCE]``."""
    words = [PROGRAM, name]
    for option in sorted(options_of(func).values(), key=lambda option: not option.required):
        word = f"-{option.name} {option.metavar}".rstrip()
        if option.name == "TRAILING":
            word = f"-- {option.metavar}"
        words.append(word if option.required else f"[{word}]")
    return " ".join(words)


def describe(option: Option) -> tuple[str, str]:
    """Return an option as it is typed, and what it does: ``('-port NUMBER', 'the port (default 8825)')``."""
    typed = f"-- {option.metavar}" if option.name == "TRAILING" else f"-{option.name} {option.metavar}"
    if option.required:
        note = " (required)"
    elif option.default is None or option.default is False or option.default in ("", ()):
        note = ""
    else:
        default = option.default if isinstance(option.default, (str, int)) else " ".join(option.default)
        note = f" (default {default})"
    return typed.rstrip(), option.help + note


def help_for_command(mod: types.ModuleType, name: str) -> str:
    """Return the help of one command: usage, docstring, options with their defaults. Raises ArgumentError."""
    func = command_named(name, mod)
    summary, rest, _ = split_docstring(func)
    rows = [describe(option) for option in options_of(func).values()]
    width = max((len(typed) for typed, _ in rows), default=0)
    table = "\n".join(f"  {typed:{width}}  {text}" for typed, text in rows)
    return "\n\n".join(filter(None, (f"Usage: {usage(name, func)}", summary, rest, table)))
