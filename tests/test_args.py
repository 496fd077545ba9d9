"""Tests for lamson.args: command lines read from the functions they call."""

import types
from collections.abc import Sequence

import pytest

from lamson import args

mod = types.ModuleType("mod")


def greet_command(
    name: str,
    times: int = 1,
    port: args.Port = 8825,
    umask: args.Octal | None = None,
    uid: int | str | None = None,
    text: str = "",
    LOUD: bool = False,
    TRAILING: Sequence[str] = ("the", "world"),
) -> None:
    """Greets somebody.

    It does so politely,
    and at once.

    Options:
        -name NAME: who is greeted
        -times NUMBER: how often: once,
            or more than once
        -port NUMBER: the port
        -umask OCTAL: the mask
        -uid USER: name or number
        -text TEXT: what is said
        -LOUD: in capital letters
        -- MORE ...: who else
    """


def quiet_command() -> None:
    """Says nothing."""


def help_command(**options: str) -> None:
    """Shows help.

    Options:
        -for COMMAND: the command
    """


mod.greet_command = greet_command
mod.quiet_command = quiet_command
mod.help_command = help_command
mod.other = None


def parse(*argv):
    func, found = args.parse_command(argv, mod)
    assert func is greet_command
    return found


def refusal(*argv):
    with pytest.raises(args.ArgumentError) as caught:
        args.parse_command(argv, mod)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_one_dash_two_dashes_and_an_equals_sign_mean_the_same():
    for argv in (["-name", "Zed"], ["--name", "Zed"], ["-name=Zed"], ["--name=Zed"]):
        assert parse("greet", *argv) == {"name": "Zed"}


def test_values_get_the_types_of_the_annotations():
    found = parse("greet", "-name", "7", "-times", "7", "-port", "25", "-umask", "027")
    assert found == {"name": "7", "times": 7, "port": 25, "umask": 0o27}


def test_a_user_is_a_number_or_a_name():
    assert parse("greet", "-name", "x", "-uid", "1000")["uid"] == 1000
    assert parse("greet", "-name", "x", "-uid", "nobody")["uid"] == "nobody"


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["-LOUD"], True),
        (["--LOUD"], True),
        (["-LOUD", "True"], True),
        (["-LOUD", "False"], False),
        (["-LOUD=false"], False),
        (["-LOUD", "-times", "2"], True),
    ],
)
def test_a_flag_is_true_when_it_stands_alone_and_takes_a_truth(argv, value):
    assert parse("greet", "-name", "x", *argv)["LOUD"] is value


def test_what_follows_two_dashes_belongs_to_no_option():
    assert parse("greet", "-name", "x", "--", "-times", "--", "b")["TRAILING"] == ["-times", "--", "b"]


def test_what_belongs_to_no_option_may_stand_without_two_dashes():
    assert parse("greet", "a", "-name", "x", "b", "-")["TRAILING"] == ["a", "b", "-"]
    assert parse("greet", "-name", "x", "-LOUD", "a")["TRAILING"] == ["a"]


def test_a_value_may_begin_with_a_dash():
    assert parse("greet", "-name", "-- hi")["name"] == "-- hi"
    assert parse("greet", "-name", "-5", "-times", "-5") == {"name": "-5", "times": -5}
    assert parse("greet", "-name=-times")["name"] == "-times"
    assert parse("greet", "-name=--")["name"] == "--"
    assert parse("greet", "-name", "-")["name"] == "-"


def test_a_value_may_be_empty_and_have_an_equals_sign():
    assert parse("greet", "-name", "x", "-text", "")["text"] == ""
    assert parse("greet", "-name=a=b", "-text", "c=d") == {"name": "a=b", "text": "c=d"}


def test_an_unknown_option_is_named_with_the_closest_one():
    assert refusal("greet", "-nam", "x") == (
        "lamson greet: there is no option -nam, did you mean -name? See: lamson help -for greet"
    )
    assert "did you mean -LOUD?" in refusal("greet", "-name", "x", "-loud")
    assert "there is no option --zzz." in refusal("greet", "--zzz=4")
    assert "there is no option -TRAILING" in refusal("greet", "-TRAILING", "x")


def test_a_missing_option_is_named():
    assert refusal("greet") == "lamson greet: -name is missing. See: lamson help -for greet"


def test_several_missing_options_are_all_named():
    def send_command(sender: str, to: str) -> None: ...

    with pytest.raises(args.ArgumentError, match="^-sender and -to are missing.$"):
        args.parse(send_command, [])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-times", "often"], "-times takes a whole number, not 'often'"),
        (["-port", "99999"], "-port takes a port number (0 to 65535), not '99999'"),
        (["-port", "-1"], "-port takes a port number (0 to 65535), not '-1'"),
        (["-umask", "089"], "-umask takes an octal number such as 027, not '089'"),
        (["-LOUD=maybe"], "-LOUD takes True or False, not 'maybe'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(argv, words):
    assert f"lamson greet: {words}. See: lamson help -for greet" == refusal("greet", "-name", "x", *argv)


def test_a_forgotten_value_is_not_taken_from_the_next_option():
    assert "-text needs a value (-name is none; -text=-name makes it one)" in refusal("greet", "-text", "-name", "x")
    assert "-text needs a value (--name=x is none" in refusal("greet", "-text", "--name=x")
    assert "-name needs a value." in refusal("greet", "-name")
    assert "-name needs a value" in refusal("greet", "-name", "--", "x")


def test_an_option_twice_is_refused():
    assert "-name is there twice" in refusal("greet", "-name", "a", "-name", "b")


def test_a_command_that_takes_nothing_more_refuses_it():
    assert refusal("quiet", "x") == "lamson quiet: 'x' belongs to no option. See: lamson help -for quiet"


def test_a_value_without_its_option_is_told_where_it_may_belong():
    def gen_command(project: str, FORCE: bool = False) -> None: ...

    with pytest.raises(args.ArgumentError, match="'mine' belongs to no option, did you mean -project mine?"):
        args.parse(gen_command, ["mine", "-FORCE"])


def test_an_unknown_command_is_named_with_the_closest_one():
    assert refusal("gret") == "lamson: there is no command 'gret', did you mean greet? See: lamson help"
    assert refusal("zzz") == "lamson: there is no command 'zzz'. See: lamson help"


def test_no_command_asks_for_help():
    assert args.parse_command([], mod) == (help_command, {})
    assert args.parse_command(["--help"], mod) == (help_command, {})
    assert args.parse_command(["greet", "-h"], mod) == (help_command, {"for": "greet"})


def test_options_that_python_cannot_name_come_from_the_docstring():
    assert args.parse_command(["help", "-for", "greet"], mod) == (help_command, {"for": "greet"})
    assert "-fro" in refusal("help", "-fro", "greet")


def test_the_commands_of_a_module_are_found_by_name():
    assert list(args.available_commands(mod)) == ["greet", "help", "quiet"]


def test_help_lists_the_commands_with_their_first_sentence():
    assert args.available_help(mod) == "  greet  Greets somebody.\n  help   Shows help.\n  quiet  Says nothing."


def test_help_for_a_command_has_usage_words_and_options_with_defaults():
    expected = """\
Usage: lamson greet -name NAME [-times NUMBER] [-port NUMBER] [-umask OCTAL] [-uid USER] [-text TEXT] [-LOUD] \
[-- MORE ...]

Greets somebody.

It does so politely,
and at once.

  -name NAME     who is greeted (required)
  -times NUMBER  how often: once, or more than once (default 1)
  -port NUMBER   the port (default 8825)
  -umask OCTAL   the mask
  -uid USER      name or number
  -text TEXT     what is said
  -LOUD          in capital letters
  -- MORE ...    who else (default the world)"""
    assert args.help_for_command(mod, "greet") == expected


def test_help_for_a_command_without_options_is_short():
    assert args.help_for_command(mod, "quiet") == "Usage: lamson quiet\n\nSays nothing."


def test_help_for_an_unknown_command_is_refused():
    with pytest.raises(args.ArgumentError, match="no command 'gret', did you mean greet"):
        args.help_for_command(mod, "gret")
