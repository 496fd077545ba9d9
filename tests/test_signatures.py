"""Mail that somebody signed still verifies after receive, queue and forward: S/MIME, PGP/MIME and DKIM."""

import base64
import re
import shutil
import smtplib
import subprocess

import pytest

from lamson.queue import Queue
from lamson.relay import Relay
from lamson.routing import Router, route, stateless
from lamson.server import QueueReceiver, SMTPReceiver
from sink import Sink

BODY = (
    b"Content-Type: multipart/mixed; boundary=in\r\n\r\n"
    b"--in\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"caf\xe9   \r\n.dot\r\n\r\n"
    b"--in\r\nContent-Type: application/octet-stream\r\nContent-Transfer-Encoding: BASE64\r\n\r\n"
    b"AAEC\r\n/w==\r\n--in--\r\n"
)
HEADERS = (
    b"From:  Zed <zed@example.com>\r\nTO: list@test.com\r\nsubject: =?x?q?odd?= \r\n\tfolded\r\nMIME-Version: 1.0\r\n"
)


@pytest.fixture
def through(tmp_path):
    """Send bytes in by SMTP, let a handler queue them, a second server relay them, and return what came out."""
    with Sink() as sink:
        relay, queue = Relay("127.0.0.1", sink.port), Queue(tmp_path / "queue")

        @route("in@test.com")
        @stateless
        def QUEUE(message):
            queue.push(message)

        receiver = SMTPReceiver("127.0.0.1", 0)
        receiver.start()

        def send(content, change=None):
            with smtplib.SMTP("127.0.0.1", receiver.port) as client:
                client.sendmail("zed@example.com", "in@test.com", content)
            Router.clear_routes()

            @route(".+")
            @stateless
            def FORWARD(message):
                if change:
                    change(message)
                relay.deliver(message)

            QueueReceiver(str(tmp_path / "queue")).start(one_shot=True)
            return sink.got[0][2]

        yield send
        receiver.close()


def change_headers(message):
    """What a mailing list does to a message, the signed content left alone."""
    assert "odd" in message["Subject"] and message.text()
    message["Reply-To"] = "list@test.com"
    message["List-Id"] = "<list.test.com>"
    del message["X-Not-There"]


def tool(*command, data=b""):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, input=data, capture_output=True, check=True)


@pytest.mark.parametrize("change", [None, change_headers])
def test_smime(through, tmp_path, change):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=Zed/emailAddress=zed@example.com"]
    tool(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", *subject
    )
    signed = tool("openssl", "smime", "-sign", "-signer", cert, "-inkey", key, "-crlfeol", "-binary", data=BODY).stdout
    signed = re.sub(rb"\r?\n", b"\r\n", signed)  # openssl writes its own lines as files have them
    came_out = through(HEADERS.replace(b"MIME-Version: 1.0\r\n", b"") + signed, change)
    if change is None:
        assert came_out == HEADERS.replace(b"MIME-Version: 1.0\r\n", b"") + signed
    verify = ["openssl", "smime", "-verify", "-CAfile", cert, "-purpose", "any"]
    assert tool(*verify, data=came_out).stdout == BODY
    with pytest.raises(subprocess.CalledProcessError):  # the check can fail
        tool(*verify, data=came_out.replace(b"caf\xe9   \r\n", b"caf\xe9\r\n"))


@pytest.mark.parametrize("change", [None, change_headers])
def test_pgp_mime(through, tmp_path, change):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    tool(*gpg, "--quick-generate-key", "zed@example.com", "default", "default", "1d")
    signature = tool(*gpg, "--armor", "--detach-sign", data=BODY).stdout.replace(b"\n", b"\r\n")
    kind = b'multipart/signed; micalg=pgp-sha512; protocol="application/pgp-signature"; boundary=out'
    attached = b"Content-Type: application/pgp-signature; name=a.asc\r\n\r\n" + signature
    parts = b"not MIME\r\n--out\r\n" + BODY + b"\r\n--out\r\n" + attached + b"\r\n--out--\r\n"
    message = HEADERS + b"Content-Type: " + kind + b"\r\n\r\n" + parts
    came_out = through(message, change)
    if change is None:
        assert came_out == message
    content, after = came_out.split(b"--out\r\n", 1)[1].split(b"\r\n--out\r\n", 1)
    (tmp_path / "signature").write_bytes(after.split(b"\r\n\r\n", 1)[1].split(b"\r\n--out--")[0])
    tool(*gpg, "--verify", str(tmp_path / "signature"), "-", data=content)
    with pytest.raises(subprocess.CalledProcessError):
        tool(*gpg, "--verify", str(tmp_path / "signature"), "-", data=content.replace(b"caf\xe9   ", b"caf\xe9"))
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)


@pytest.mark.parametrize("canonicalization", [b"simple/simple", b"relaxed/relaxed"])
@pytest.mark.parametrize("change", [None, change_headers])
def test_dkim(through, tmp_path, canonicalization, change):
    dkim = pytest.importorskip("dkim")
    private = tool("openssl", "genrsa", "-traditional", "2048").stdout
    public = tool("openssl", "rsa", "-pubout", "-outform", "DER", data=private).stdout
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    message = HEADERS + BODY
    ways = tuple(canonicalization.split(b"/"))
    signed = dkim.sign(
        message, b"sel", b"example.com", private, canonicalize=ways, include_headers=[b"from", b"to", b"subject"]
    )
    came_out = through(signed + message, change)

    def dns(name, timeout=5):
        return record if name in (b"sel._domainkey.example.com.", "sel._domainkey.example.com.") else b""

    assert dkim.verify(came_out, dnsfunc=dns)
    assert not dkim.verify(came_out.replace(b"Zed", b"Ned"), dnsfunc=dns)
