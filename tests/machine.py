"""A whole Debian for tests: this machine's files, written to without a trace, with a systemd and a network of its own.

    with Machine() as machine:
        machine.run("systemctl start postfix")

It is made of namespaces and an overlay, and needs root. All that is written is in memory; all ports are free, and none
of them is seen outside. `/srv/lamson-env` has this checkout installed for the Python that runs the tests.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from processes import eventually, needs

HERE = Path(__file__).parent.parent
INIT = "/lib/systemd/systemd"

# Runs in new namespaces, of which systemd becomes the first process. Units that this machine has enabled stay off:
# basic.target wants none of them.
BOOT = f"""\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mount -t proc proc proc
# What is set there counts for all machines that share the kernel.
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/pts dev/shm srv/python srv/packages srv/checkout
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount --bind "$2" srv/python
mount --bind "$3" srv/packages
# It may be on another file system than the root, and those are not part of the overlay.
mount --bind "$4" srv/checkout
ip link set lo up
echo mail.example.com > etc/hostname
echo 127.0.1.1 mail.example.com mail >> etc/hosts
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . {INIT} --unit=basic.target --show-status=0
"""

# What `pip install` does, without a package index: the packages are those of the environment that runs the tests.
INSTALL = """\
set -e
# A Python with a shared library looks for it where it was built, which may be root's home.
echo /srv/python/lib > /etc/ld.so.conf.d/000-python.conf
ldconfig
/srv/python/bin/{python} -m venv --without-pip /srv/lamson-env
packages=$(echo /srv/lamson-env/lib/python*/site-packages)
echo /srv/packages > "$packages/packages.pth"
cp -r /srv/checkout/lamson "$packages/lamson"
cp -r /srv/checkout/templates "$packages/lamson/templates"
for script in lamson:lamson.__main__ nosetests:lamson.nosetests; do
    cat > /srv/lamson-env/bin/${{script%:*}} <<END
#!/srv/lamson-env/bin/python
import sys

from ${{script#*:}} import main

sys.exit(main())
END
    chmod 755 /srv/lamson-env/bin/${{script%:*}}
done
"""


class Machine:
    """Boots, and is gone at the end with all its processes. Skips the test where that is not possible."""

    def __init__(self) -> None:
        if os.getuid() != 0:
            pytest.skip("only root may boot a machine")
        for program in ("unshare", "nsenter", "ip"):
            needs(program)
        if not os.path.exists(INIT):
            pytest.skip("there is no systemd")
        self.folder = Path(tempfile.mkdtemp(prefix="lamson-machine-"))
        self.console = self.folder / "console"
        self._group = _own_cgroup(self.folder.name)

    def __enter__(self) -> "Machine":
        # Where its file system goes, which is seen in its namespace alone.
        (self.folder / "disk").mkdir()
        try:
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # and with it systemd, and with that every process in its namespace
        self._process.wait()
        shutil.rmtree(self.folder)
        eventually(lambda: _remove_cgroups(self._group), lambda: f"the end of all processes in {self._group}")

    def _boot(self) -> None:
        # Whatever ends the tests, ends the machine.
        unshare = [
            needs("setpriv"),
            "--pdeathsig",
            "KILL",
            needs("unshare"),
            "-m",
            "-p",
            "-u",
            "-i",
            "-n",
            "-C",
            "--fork",
            "--kill-child",
        ]
        packages = sysconfig.get_path("purelib")
        boot = ["sh", "-c", BOOT, "boot", self.folder / "disk", sys.base_prefix, packages, HERE]
        with open(self.console, "wb") as console:
            self._process = subprocess.Popen(
                ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', self._group, *unshare, *boot],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        eventually(self._has_booted, lambda: f"a machine that has booted\n{self.console.read_text()}", seconds=90)
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.run(INSTALL.format(python=python))

    def _has_booted(self) -> bool:
        if self._process.poll() is not None:
            pytest.skip(f"this machine cannot boot another one in itself: {self.console.read_text()}")
        return self._init() is not None and self._enter("systemctl is-system-running").stdout.strip() in (
            "running",
            "degraded",
        )

    def _init(self) -> int | None:
        """The number of its systemd, None as long as it is not there."""
        with contextlib.suppress(OSError, ValueError):
            (child,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if os.readlink(f"/proc/{child}/exe").endswith("systemd"):
                return int(child)
        return None

    def _enter(self, line: str, folder: str = "/") -> subprocess.CompletedProcess:
        init = self._init()
        assert init is not None, self.console.read_text()
        return subprocess.run(
            [
                *(needs("nsenter"), "-t", str(init), "-m", "-p", "-u", "-i", "-n", "-C", f"-r/proc/{init}/root"),
                *("env", "-i", "-C", folder, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
                *("LANG=C.UTF-8", "SYSTEMD_PAGER=", "sh", "-c", line),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            timeout=120,
        )

    def run(self, line: str, code: int = 0, folder: str = "/") -> str:
        """Runs a line there as root in a shell, checks its exit code, and returns all that it printed."""
        done = self._enter(line, folder)
        assert done.returncode == code, f"{line} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def path(self, name: str) -> Path:
        """Where a file of it is found from outside."""
        return Path(f"/proc/{self._init()}/root") / name.lstrip("/")


def _own_cgroup(name: str) -> str:
    """Makes a group for its processes, which systemd takes for the root of all groups, and returns its folder."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            with contextlib.suppress(OSError):
                os.mkdir(f"{place}/{name}")
                return f"{place}/{name}"
    pytest.skip("there is no folder of cgroups that may be written to")


def _remove_cgroups(folder: str) -> bool:
    """Removes a group and those inside it. Returns whether that is done: there may be processes left to end."""
    for inside, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(inside)
        except OSError:
            return False
    return True
