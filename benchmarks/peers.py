"""The programs that Lamson is measured beside, installed in a folder outside the tree, each once.

    python benchmarks/peers.py                  # installs all of them, and says where they are
    python benchmarks/peers.py salmon haraka    # only these

The folder is `~/.cache/lamson-benchmarks`, or `lamson-benchmarks` in `XDG_CACHE_HOME`; removing it removes them all.

salmon        an interpreter that has salmon-mail (PyPI), of the same version as the one that runs this
spambayes     SpamBayes (PyPI), and the Python 2.7 that it needs, which has to be there
haraka        Haraka (npm) with a plugin that takes every message and throws it away; needs Node 20
smtp-source, smtp-sink    Postfix's own client and server for tests; Debian: apt install postfix

Stock aiosmtpd needs no installing: Lamson is built on it.
"""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

SALMON = "salmon-mail==3.3.0"
SPAMBAYES = "spambayes==1.1b3"
HARAKA = "Haraka@3.3.4"

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lamson-benchmarks"

# What Debian keeps out of the path of users.
SYSTEM = ":/usr/sbin:/sbin"


class Missing(Exception):
    """A peer is not there, and this is why."""


def program(name):
    """The path of a program of Postfix's."""
    found = shutil.which(name, path=os.environ.get("PATH", os.defpath) + SYSTEM)
    if found is None:
        raise Missing(f"the program {name} is not there (Debian: apt install postfix)")
    return found


def salmon():
    """The path of an interpreter that has Salmon."""
    version = "{}.{}".format(*sys.version_info)
    folder = CACHE / f"salmon-{version}"
    python = folder / "bin/python"
    if not _is_installed(folder, SALMON):
        _make(folder)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", SALMON])
        _run([str(python), "-c", "import salmon.server"])
        _note(folder, SALMON)
    return str(python)


def python2():
    """The path of a Python 2.7."""
    named = [os.environ.get("PYTHON2", ""), shutil.which("python2.7") or "", shutil.which("python2") or ""]
    for path in filter(None, named + glob.glob(os.path.expanduser("~/.pyenv/versions/2.7*/bin/python2.7"))):
        # A shim in the path may be there and not work.
        if subprocess.run([path, "-c", "import zlib"], capture_output=True).returncode == 0:
            return path
    raise Missing("SpamBayes runs on Python 2.7 only, and there is none (name it in PYTHON2)")


def spambayes():
    """The folder that SpamBayes is installed in."""
    python = python2()
    folder = CACHE / "spambayes"
    if not _is_installed(folder, SPAMBAYES):
        _make(folder)
        _run([python, "-m", "pip", "install", "--quiet", "--target", str(folder), SPAMBAYES])
        _run([python, "-c", "import spambayes.hammie"], PYTHONPATH=str(folder))
        _note(folder, SPAMBAYES)
    return str(folder)


def haraka():
    """The folder that Haraka is installed in; see `haraka_command`."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise Missing("Haraka needs node and npm, and they are not there")
    folder = CACHE / "haraka"
    if not _is_installed(folder, HARAKA):
        _make(folder)
        command = [npm, "install", "--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts", "--loglevel=error"]
        _run([*command, "--prefix", str(folder), HARAKA])
        _note(folder, HARAKA)
    return str(folder)


HARAKA_PLUGIN = """
exports.register = function () {
    this.register_hook('rcpt', 'take');
    this.register_hook('queue', 'take');
};
exports.take = function (next) { next(OK); };
"""


def haraka_command(port, where):
    """The command that serves on a port of loopback and throws every message away, set up in the folder `where`."""
    package = Path(haraka()) / "node_modules/Haraka"
    settings, plugins = Path(where) / "config", Path(where) / "plugins"
    settings.mkdir(parents=True)
    plugins.mkdir()
    (settings / "smtp.ini").write_text(f"listen=127.0.0.1:{port}\nnodes=0\n")
    (settings / "log.ini").write_text("[main]\nlevel=ERROR\n")
    (settings / "plugins").write_text("sink\n")
    (settings / "me").write_text("localhost\n")
    shutil.copy(package / "config/connection.ini", settings)  # it does not start without
    (plugins / "sink.js").write_text(HARAKA_PLUGIN)
    return ["node", str(package / "bin/haraka"), "-c", str(where)]


def _is_installed(folder, what):
    stamp = folder / "installed"
    return stamp.exists() and stamp.read_text() == what


def _make(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _note(folder, what):
    (folder / "installed").write_text(what)


def _run(command, **environment):
    print(f"installing: {' '.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise Missing(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-300:]}")


PEERS = {
    "salmon": salmon,
    "spambayes": spambayes,
    "haraka": haraka,
    "smtp-source": lambda: program("smtp-source"),
    "smtp-sink": lambda: program("smtp-sink"),
}


def main():
    wanted = sys.argv[1:] or list(PEERS)
    if not set(wanted) <= PEERS.keys():
        sys.exit(__doc__)
    for name in wanted:
        try:
            print(f"{name}: {PEERS[name]()}")
        except Missing as error:
            print(f"{name}: missing: {error}")


if __name__ == "__main__":
    main()
