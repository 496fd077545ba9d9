"""A real Postfix for tests, in a folder of its own, on loopback, and gone at the end.

    with Postfix() as postfix:
        postfix.start("relayhost = [127.0.0.1]:2525")
        with postfix.client() as client:
            client.sendmail("zed@example.com", ["joe@example.org"], b"Subject: Hi\\r\\n\\r\\nHello.\\r\\n")
        postfix.retry()

Postfix's own daemons are wanted as they are: chrooted nowhere, never asking the name service, and writing their log
into the folder. The master needs root.
"""

import contextlib
import grp
import json
import os
import pwd
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from lamson.mail import MailRequest
from processes import eventually, needs

# What every Postfix here has. Lines that a test gives stand after these, and so they win.
MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mx.example.com
mydestination =
alias_maps =
alias_database =
smtp_dns_support_level = disabled
lmtp_dns_support_level = disabled
smtpd_peername_lookup = no
# A client on loopback is one of the house to Postfix, which completes its headers. A stranger's mail stays as it is.
local_header_rewrite_clients =
biff = no
"""

# Debian's, with no chroot, and without services that nothing here uses.
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup     unix n - n 60    1 pickup
cleanup    unix n - n -     0 cleanup
qmgr       unix n - n 300   1 qmgr
tlsmgr     unix - - n 1000? 1 tlsmgr
rewrite    unix - - n -     - trivial-rewrite
bounce     unix - - n -     0 bounce
defer      unix - - n -     0 bounce
trace      unix - - n -     0 bounce
verify     unix - - n -     1 verify
flush      unix n - n 1000? 0 flush
proxymap   unix - - n -     - proxymap
proxywrite unix - - n -     1 proxymap
smtp       unix - - n -     - smtp
relay      unix - - n -     - smtp
lmtp       unix - - n -     - lmtp
showq      unix n - n -     - showq
error      unix - - n -     - error
retry      unix - - n -     - error
local      unix - n n -     - local
virtual    unix - n n -     - virtual
anvil      unix - - n -     1 anvil
scache     unix - - n -     1 scache
postlog    unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """A Postfix that is started and stopped by the test. Skips the test where there is none, or no root to run it.

    `port` is free for it as long as this lives, so that other servers can be told of it before Postfix is started, and
    still find it there when it was started again. `folder` is readable for everybody.
    """

    def __init__(self) -> None:
        needs("postfix")
        if os.getuid() != 0:
            pytest.skip("only root may start Postfix")
        # The names of Unix sockets have to be short, and pytest's folders are for their owner's eyes only.
        self.folder = Path(tempfile.mkdtemp(prefix="lamson-postfix-"))
        self.folder.chmod(0o755)
        self._shell: subprocess.Popen | None = None
        self._reserved: list[socket.socket] = []
        self.port = self.reserve_port()
        for name in ("etc", "queue", "data", "mail"):
            (self.folder / name).mkdir(mode=0o755)
        shutil.chown(self.folder / "data", "postfix")
        shutil.chown(self.folder / "mail", "nobody")

    def __enter__(self) -> "Postfix":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            for sock in self._reserved:
                sock.close()
            shutil.rmtree(self.folder)

    def reserve_port(self) -> int:
        """Returns a port of 127.0.0.1 that the system gives to nobody, and that one server may listen at.

        It is bound and not listened at. With SO_REUSEADDR, which servers set, Linux lets one of them have it then.
        """
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        self._reserved.append(sock)
        return sock.getsockname()[1]

    # running it

    def start(self, main: str = "", master: str = "", **files: str) -> None:
        """Writes lines into main.cf and master.cf, further files beside them, and starts. Returns when it listens.

        ``/etc/postfix/`` in the lines is replaced by the folder these files are in.
        """
        etc = self.folder / "etc"
        files = {
            "main.cf": MAIN.format(folder=self.folder) + main,
            "master.cf": MASTER.format(port=self.port) + master,
            **files,
        }
        for name, text in files.items():
            (etc / name).write_text(text.replace("/etc/postfix/", f"{etc}/"))
        done = self._run("postfix", "check")
        assert done.returncode == 0, done.stdout
        started = self._starts()
        # The shell ends Postfix when its input ends: when it is closed here, or with the tests, however these end.
        self._shell = subprocess.Popen(
            [
                "sh",
                "-c",
                '"$@" & read _; kill $! && wait $!',
                "sh",
                f"{self.setting('daemon_directory')}/master",
                "-c",
                etc,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually(lambda: self._starts() > started, lambda: f"a Postfix that has started\n{self.log()}")

    def _starts(self) -> int:
        """How often its log says that it has started."""
        path = self.folder / "log"
        return path.read_text(errors="replace").count(": daemon started ") if path.exists() else 0

    def stop(self) -> None:
        """Stops it. All its processes are gone when this returns; mail in its queue stays there."""
        if self._shell is None:
            return
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        try:
            self._shell.wait(10)
            eventually(lambda: not self.processes(), lambda: f"the end of {self.processes()}", seconds=10)
        finally:
            self._shell.kill()
            self._shell.wait()
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """The numbers of its processes: the queue's folder is where each of them is."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(folder / "cwd").startswith(f"{self.folder}/queue"):
                    found.append(int(folder.name))
        return found

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess:
        command = [needs(program), "-c", f"{self.folder}/etc", *words]
        output = subprocess.STDOUT if program == "postfix" else subprocess.PIPE
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True, timeout=60
        )

    # using it

    def setting(self, name: str) -> str:
        """What a parameter of main.cf is set to."""
        return self._run("postconf", "-h", name).stdout.strip()

    def client(self) -> smtplib.SMTP:
        """A connection to it."""
        return smtplib.SMTP("127.0.0.1", self.port, "client.example.net", timeout=60)

    def queue(self) -> list[dict]:
        """What waits in its queue, as `postqueue -j` tells it: ``queue_name``, ``sender``, ``recipients`` …"""
        return [json.loads(line) for line in self._run("postqueue", "-j").stdout.splitlines()]

    def deferred(self) -> list[dict]:
        """What has been tried in vain: each entry's ``recipients`` have ``address`` and ``delay_reason``."""
        return [entry for entry in self.queue() if entry["queue_name"] == "deferred"]

    def retry(self) -> None:
        """Tries everything in the queue now, and does not wait for the answers."""
        assert self._run("postqueue", "-f").returncode == 0

    def forget(self) -> None:
        """Drops all mail in its queue."""
        assert self._run("postsuper", "-d", "ALL").returncode == 0
        self.is_idle()

    def is_idle(self) -> None:
        """Waits until nothing is left in its queue."""
        eventually(lambda: not self.queue(), lambda: f"an empty queue of Postfix\n{self.queue()}\n{self.log()}")

    def log(self) -> str:
        """The last lines of its log."""
        path = self.folder / "log"
        return "\n".join(path.read_text(errors="backslashreplace").splitlines()[-50:]) if path.exists() else ""

    # its users

    def mailboxes(self, *addresses: str) -> str:
        """Returns lines for main.cf with which it keeps the mail of these addresses, and refuses all others' there."""
        nobody = pwd.getpwnam("nobody")
        domains = {address.partition("@")[2] for address in addresses}
        users = " ".join(f"{{{address}={address}/}}" for address in addresses)
        return (
            f"virtual_mailbox_domains = {' '.join(sorted(domains))}\n"
            f"virtual_mailbox_maps = inline:{{ {users} }}\n"
            f"virtual_mailbox_base = {self.folder}/mail\n"
            f"virtual_uid_maps = static:{nobody.pw_uid}\n"
            f"virtual_gid_maps = static:{grp.getgrgid(nobody.pw_gid).gr_gid}\n"
        )

    def mails(self, address: str) -> list[MailRequest]:
        """The mail in a mailbox, the oldest first, with the envelope that Postfix wrote on top of it."""
        found = []
        folder = self.folder / "mail" / address / "new"
        for path in sorted(folder.iterdir()) if folder.exists() else []:
            message = MailRequest("postfix", None, None, path.read_bytes())
            sender, recipient = message["Return-Path"].strip("<>"), message["Delivered-To"]
            found.append(MailRequest("postfix", sender, [recipient], message.original))
        return found

    def forget_mails(self) -> None:
        """Empties all mailboxes."""
        for mailbox in (self.folder / "mail").iterdir():
            shutil.rmtree(mailbox)
