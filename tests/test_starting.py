"""`lamson start` when the moment is bad: somebody interrupts it, or the system has nothing to give."""

import os
import signal

import pytest

from processes import Shell, eventually


# `lamson start`, to which a signal comes in the moment in which its daemon is born.
INTERRUPTED = """
import os, signal, sys
from lamson.__main__ import main

front, fork = os.getpid(), os.fork

def interrupted():
    child = fork()
    if os.getpid() == front:
        os.kill(front, signal.{name})
    return child

os.fork = interrupted
sys.exit(main(["start"]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("moment", ["at once", "while it waits"])
def test_a_start_that_is_interrupted_starts_nothing(tmp_path, name, code, moment):
    with Shell(tmp_path) as shell:
        shell.run("lamson gen -project mine")
        shell.run("cd mine")
        settings = shell.folder / "config/settings.py"
        settings.write_text(
            settings.read_text() + "\nimport os, time\nwhile os.path.exists('wait'):\n    time.sleep(0.01)\n"
        )
        (shell.folder / "wait").touch()
        if moment == "at once":
            (shell.folder / "start.py").write_text(INTERRUPTED.format(name=name))
            shell.run("python start.py", code=code)
        else:
            with shell.popen("exec lamson start") as front:
                pid = shell.folder / "run/smtp.pid"
                eventually(lambda: pid.exists() and pid.read_text().strip(), "the daemon's number")
                os.kill(front.pid, getattr(signal, name))
                front.communicate(timeout=60)
                assert front.returncode == code
        assert shell.left() == {}
        assert not (shell.folder / "run/smtp.pid").exists()
