"""The other end of a relay: an aiosmtpd that remembers, a server that does what it is told to, and a name service."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import dns.flags
import dns.message
import dns.rcode
import dns.resolver
import dns.rrset
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult


class FreePort(Controller):
    """aiosmtpd's server on a port that the system chooses."""

    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class Got(NamedTuple):
    """A message that a `Sink` has taken; `options` are those of MAIL."""

    sender: str
    recipients: list[str]
    content: bytes
    options: list[str]


class Sink:
    """`got` has each message, `logins` the names and passwords; `refuse` has what RCPT answers to whom.

    The password is "secret". Other `options` are those of aiosmtpd's Controller.
    """

    def __init__(self, utf8=True, **options):
        self.got = []
        self.logins = []
        self.refuse = {}
        options = {"enable_SMTPUTF8": utf8, "authenticator": self.login, **options}
        self.controller = FreePort(self, hostname="127.0.0.1", port=0, **options)

    def login(self, server, session, envelope, mechanism, data):
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"secret", handled=False)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.refuse:
            return self.refuse[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.got.append(Got(envelope.mail_from, envelope.rcpt_tos, envelope.content, envelope.mail_options))
        return "250 OK"

    def __enter__(self):
        self.controller.start()
        self.port = self.controller.port
        return self

    def __exit__(self, *error):
        self.controller.stop()


# --- a server that does what it is told to ------------------------------------------------------------------------

DROP = "the connection is closed here"
SILENCE = "nothing is said here until the client goes"
DEAF = ", but nothing that you say after this is read"  # behind a reply


class Host:
    """An SMTP server that answers as `answers` says, and as every server does to what is not in there.

        host.answers["RCPT TO:<no@y.z>"] = "550 Nobody by that name"
        host.answers["MAIL"] = ["451 Not now", None]        # the first time this, then as ever

    The keys are lines, verbs, or "." for the end of a message and "" for the greeting. `got` has (sender, recipients,
    content) of each message that was answered with 2xx, `talks` the lines of each connection. `when_got` is called
    before such an answer is sent. With `tls` it offers STARTTLS, or starts with TLS when `implicit`.
    """

    def __init__(self, extensions: tuple[str, ...] = ("PIPELINING", "8BITMIME"), tls: ssl.SSLContext | None = None):
        self.extensions = extensions
        self.tls = tls
        self.implicit = False
        self.answers: dict[str, str | list[str | None] | Callable[[str], str | None]] = {}
        self.got: list[tuple[str, list[str], bytes]] = []
        self.talks: list[list[str]] = []
        self.encrypted: list[bool] = []  # for each message
        self.when_got: Callable[[bytes], None] = lambda content: None
        self.address = "127.0.0.1"
        self.port = 0
        self._listening: socket.socket | None = None
        self._clients: set[socket.socket] = set()
        self._guard = threading.Lock()
        self.stopped = threading.Event()

    def __enter__(self) -> "Host":
        return self if self._listening else self.listen()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def listen(self, port: int = 0, address: str = "127.0.0.1") -> "Host":
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listening = socket.create_server((address, port), family=family, backlog=50)
        self.address, self.port = self._listening.getsockname()[:2]
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Go away, with all connections: the port is refused from now on."""
        self.stopped.set()
        if self._listening is not None:
            # close() alone would not wake the thread that waits in accept().
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            self._listening = None
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        with self._guard:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._guard:
                self._clients.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        talk: list[str] = []
        self.talks.append(talk)
        try:
            _Talk(self, client, talk).run()
        except OSError:
            pass  # the client is gone
        finally:
            with self._guard:
                self._clients.discard(client)
            client.close()

    def answer(self, line: str, usual: str) -> str:
        """What to say to a line."""
        for key in dict.fromkeys((line, line.partition(" ")[0])):
            told = self.answers.get(key)
            with self._guard:
                if isinstance(told, list):
                    told = told.pop(0) if told else None
            if callable(told):
                told = told(line)
            if told is not None:
                return told
        return usual


class _Talk:
    """One connection."""

    def __init__(self, host: Host, client: socket.socket, lines: list[str]):
        self.host = host
        self.lines = lines
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.encrypted = False
        self._use(client)
        if host.implicit:
            self._encrypt()

    def _use(self, client: socket.socket) -> None:
        self.client = client
        self.stream = client.makefile("rb")

    def _encrypt(self) -> None:
        assert self.host.tls is not None
        self._use(self.host.tls.wrap_socket(self.client, server_side=True))
        self.encrypted = True

    def run(self) -> None:
        going = self.say("", "220 host.test ESMTP")
        while going and (raw := self.stream.readline()):
            line = raw.decode("utf-8").rstrip("\r\n")
            verb = line.partition(" ")[0].upper()
            line = verb + line[len(verb) :]
            line = line.replace("MAIL from:", "MAIL FROM:").replace("RCPT to:", "RCPT TO:")
            self.lines.append(line)
            going = self.do(verb, line)

    def say(self, line: str, usual: str) -> str | None:
        """Answer. Returns what was said, None when that ended the conversation."""
        return self.tell(self.host.answer(line, usual))

    def tell(self, reply: str) -> str | None:
        if reply == SILENCE:
            self.stream.read()
            return None
        if reply == DROP:
            return None
        self.client.sendall(reply.encode() + b"\r\n")
        if reply.endswith(DEAF):
            self.host.stopped.wait()
            return None
        return None if reply.startswith("421") else reply

    def do(self, verb: str, line: str) -> str | None:
        if verb == "EHLO":
            offers = [*self.host.extensions, *(["STARTTLS"] if self.host.tls and not self.encrypted else [])]
            words = ["host.test", *offers]
            return self.say(line, "\r\n".join([f"250-{word}" for word in words[:-1]] + [f"250 {words[-1]}"]))
        if verb == "STARTTLS":
            said = self.say(line, "220 Go ahead")
            if said and said.startswith("220"):
                self._encrypt()
            return said
        if verb in ("MAIL", "RCPT"):
            said = self.say(line, "503 MAIL comes first" if verb == "RCPT" and self.sender is None else "250 OK")
            address = line.partition("<")[2].partition(">")[0]
            if said and said.startswith("250") and verb == "MAIL":
                self.sender, self.recipients = address, []
            elif said and said.startswith("250"):
                self.recipients.append(address)
            return said
        if verb == "DATA":
            said = self.say(line, "354 Go ahead" if self.recipients else "503 Nobody to send it to")
            return self._message() if said and said.startswith("354") else said
        if verb == "QUIT":
            self.say(line, "221 Bye")
            return None
        if verb == "RSET":
            self.sender, self.recipients = None, []
        return self.say(line, "250 OK")

    def _message(self) -> str | None:
        content = b""
        while (line := self.stream.readline()) != b".\r\n":
            if not line:
                return None
            content += line[1:] if line.startswith(b".") else line
        self.lines.append(".")
        reply = self.host.answer(".", "250 OK")
        taken = (self.sender or "", self.recipients, content)
        self.sender, self.recipients = None, []
        if reply.startswith("2") and taken[1]:
            self.host.got.append(taken)
            self.host.encrypted.append(self.encrypted)
            self.host.when_got(content)
        return self.tell(reply)


# --- a name service -----------------------------------------------------------------------------------------------

NO_SUCH_NAME = "NXDOMAIN"
BROKEN = "SERVFAIL"


class NameServer:
    """A name server on a free port of loopback that knows the `zone`.

        zone["example.test", "MX"] = ["10 mx1.example.test.", "20 mx2.example.test."]
        zone["broken.test", "MX"] = BROKEN

    A name that is in it with other types only has no such records; one that is not in it does not exist. Questions
    that were asked are in `asked`; `resolver()` asks this server.
    """

    def __init__(self) -> None:
        self.zone: dict[tuple[str, str], list[str] | str] = {}
        self.asked: list[tuple[str, str]] = []
        self.silent = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> "NameServer":
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())  # wakes the thread
        self._thread.join()
        self._socket.close()

    def resolver(self) -> dns.resolver.Resolver:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        resolver.port = self._socket.getsockname()[1]
        resolver.timeout = resolver.lifetime = 5.0
        return resolver

    def _serve(self) -> None:
        for packet, client in self._packets():
            question = dns.message.from_wire(packet)
            response = dns.message.make_response(question)
            response.flags |= dns.flags.RA
            name = question.question[0].name.to_text(omit_final_dot=True).lower()
            kind = dns.rdatatype.to_text(question.question[0].rdtype)
            self.asked.append((name, kind))
            records = self.zone.get((name, kind))
            if records == BROKEN:
                response.set_rcode(dns.rcode.SERVFAIL)
            elif isinstance(records, list):
                response.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", kind, *records))
            elif not any(known == name for known, _ in self.zone):
                response.set_rcode(dns.rcode.NXDOMAIN)
            if not self.silent:
                self._socket.sendto(response.to_wire(), client)

    def _packets(self) -> Iterator[tuple[bytes, tuple]]:
        while (received := self._socket.recvfrom(4096))[0]:
            yield received
