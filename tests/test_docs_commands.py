"""Tests for docs/commands.md: it is made from the docstrings, which say something about every option."""

import subprocess
import sys
from pathlib import Path

import pytest

from lamson import args, commands

HERE = Path(__file__).parent.parent
COMMANDS = args.available_commands(commands)


def test_the_page_is_what_the_docstrings_say():
    script = HERE / "scripts/make-command-docs"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_docstring_describes_each_option_and_no_other(name):
    summary, _, described = args.split_docstring(COMMANDS[name])
    assert summary.endswith(".")
    options = args.options_of(COMMANDS[name])
    assert list(described) == list(options)
    for option in options.values():
        assert option.help, option.name
        assert bool(option.metavar) == (not option.flag), option.name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_each_command_and_option(name):
    section = (HERE / "docs/commands.md").read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]
    for option in args.options_of(COMMANDS[name]).values():
        assert f"| `{args.describe(option)[0]}` |" in section
