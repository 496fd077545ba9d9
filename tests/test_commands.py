"""Tests for lamson.commands and the command line as a whole: what all commands have, and that they are functions."""

import subprocess
import sys

import pytest

import lamson
from commandline import LAMSON, refused, run
from lamson import args, commands

OPTIONS = {
    "blast": "input host port debug",
    "classify": "db config input clues",
    "cleanse": "input output",
    "gen": "project FORCE",
    "help": "for",
    "log": "port host chroot chdir uid gid umask pid FORCE debug queue",
    "queue": "pop get keys remove count clear list retry boot name",
    "restart": "pid KILL ALL FORCE chroot chdir boot uid gid umask debug workers",
    "routes": "path test TRAILING",
    "send": "port host username password ssl starttls debug sender to subject body attach",
    "sendmail": "port host debug TRAILING f t",
    "start": "pid FORCE chroot chdir boot uid gid umask debug workers",
    "status": "pid",
    "stop": "pid KILL ALL",
    "syncdb": "",
    "train": "ham spam db untrain spambayes",
    "version": "",
    "web": "basedir port host",
}


def test_the_commands_and_their_options_are_those_of_the_api():
    found = args.available_commands(commands)
    assert {name: " ".join(args.options_of(func)) for name, func in found.items()} == OPTIONS


def test_the_defaults_are_those_of_the_api():
    def default(command, option):
        return args.options_of(args.command_named(command, commands))[option].default

    assert [default(name, "port") for name in ("blast", "log", "send", "sendmail", "web")] == [
        8823,
        8825,
        8825,
        8825,
        8888,
    ]
    assert [default(name, "pid") for name in ("start", "stop", "status", "restart")] == ["./run/smtp.pid"] * 4
    assert default("log", "pid") == "./run/log.pid"
    assert default("log", "queue") == default("queue", "name") == "run/queue"
    assert default("start", "boot") == "config.boot"
    assert [default(name, "debug") for name in ("blast", "send", "sendmail")] == [0, 1, 0]
    assert default("routes", "TRAILING") == ("config.testing",)


def test_lamson_alone_prints_help(folder):
    assert run().stdout == run("help").stdout == run("--help").stdout
    for name in OPTIONS:
        assert f"\n  {name} " in run().stdout


@pytest.mark.parametrize("name", OPTIONS)
def test_help_for_a_command_names_each_option(name, capsys):
    commands.help_command(**{"for": name})
    printed = capsys.readouterr().out
    for option in OPTIONS[name].replace("TRAILING", "- ").split():
        assert f"\n  -{option}" in printed


def test_help_takes_the_command_without_for_too(folder):
    assert run("help", "send").stdout == run("help", "-for", "send").stdout
    assert "there is no command 'sned', did you mean send?" in refused("help", "sned", code=2)


def test_help_starts_fast_because_it_imports_nothing_heavy(folder):
    program = """if True:
        import sys
        before = set(sys.modules)
        from lamson.__main__ import main
        main(["help"])
        print(*(set(sys.modules) - before))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    heavy = {"asyncio", "email", "logging", "socket", "ssl", "subprocess", "tempfile", "difflib", "smtplib", "mailbox"}
    heavy |= {"aiosmtpd", "sqlalchemy", "jinja2", "uvloop", "daemon", "dns", "chardet", "nose2"}
    assert loaded & heavy == set()
    ours = {name.removeprefix("lamson.") for name in done.stdout.splitlines()[-1].split() if "lamson" in name}
    kinds = {func.__module__.removeprefix("lamson.") for func in args.available_commands(commands).values()}
    assert ours == {"lamson", "__main__", "args", "mailboxes", "terminal", *kinds}


def test_an_unknown_command_is_misuse(folder):
    assert refused("strat", code=2) == "lamson: there is no command 'strat', did you mean start? See: lamson help"
    assert "'strat', did you mean start?" in refused("help", "-for", "strat", code=2)


def test_an_unknown_option_a_missing_one_and_a_wrong_type_are_misuse(folder):
    assert "-prot, did you mean -port? See: lamson help -for send" in refused("send", "-prot", "25", code=2)
    assert "-sender and -to are missing. See: lamson help -for send" in refused("send", code=2)
    assert "-port takes a port number (0 to 65535), not 'x'." in refused("send", "-port", "x", code=2)


def test_a_reader_that_has_had_enough_is_no_error(folder):
    with subprocess.Popen([*LAMSON, "help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_file_that_fails_a_command_is_named_in_one_line(folder):
    (folder / "run/queue").mkdir(parents=True)
    (folder / "run/queue/new").mkdir()
    (folder / "run/queue/cur").write_text("")
    assert refused("queue", "-count") == "lamson: run/queue/cur: File exists."


def test_version_tells_it(folder):
    assert run("version").stdout == f"Lamson {lamson.__version__}\n"


# --- commands as functions ----------------------------------------------------------------------------------------


def test_commands_are_functions(folder, capsys):
    commands.version_command()
    commands.help_command()
    commands.gen_command(project="mine")
    with pytest.raises(SystemExit) as caught:
        commands.gen_command(project="mine", FORCE=False)
    assert caught.value.code == 1
    with pytest.raises(SystemExit) as caught:
        commands.help_command(**{"for": "nothing"})
    assert caught.value.code == 2
    with pytest.raises(TypeError):
        commands.help_command(other="x")
