"""`Authentication`: the command AUTH (RFC 4954), with the mechanisms PLAIN and LOGIN, between `Connection` and
`SMTPProtocol`.

It is there under TLS only, and only when there is somebody to ask: `Limits.auth`, a function of user name and password
that returns whether they are right. It runs in a thread, so that it may ask a database. One that fails is a 454.
Nobody hears whether it was the name or the password that was wrong.
"""

import logging
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable
from typing import Any

from aiosmtpd import smtp

from lamson.connection import Connection, Refusal
from lamson.limits import Limits
from lamson.logs import printable

log = logging.getLogger(__name__)


class Authentication(Connection):
    """A connection on which a client may log in."""

    _failed_logins = 0

    def __init__(self, handler: Any, limits: Limits | None = None, **options: Any):
        limits = limits or Limits()
        if limits.auth is not None:
            options["auth_callback"] = _Callback(limits.auth)
        options.setdefault("auth_required", limits.require_auth)
        super().__init__(handler, limits, **options)

    def _may_log_in(self) -> bool:
        somebody_to_ask = self._authenticator or self._auth_callback is not smtp.login_always_fail
        return bool(somebody_to_ask and (self._tls_protocol or not self._auth_require_tls))

    @smtp.syntax("AUTH <mechanism>")
    async def smtp_AUTH(self, arg: str | None) -> None:
        assert self.session is not None and self.envelope is not None
        if not self.session.host_name:
            raise Refusal("503 Error: send EHLO first")
        if not self.session.extended_smtp:
            raise Refusal("500 Error: command 'AUTH' not recognized")
        if self._auth_require_tls and not self._tls_protocol:
            raise Refusal("538 5.7.11 Encryption required for requested authentication mechanism")
        if self.session.authenticated:
            raise Refusal("503 Already authenticated")
        if self.envelope.mail_from:
            raise Refusal("503 Error: AUTH inside of a mail transaction")
        if not arg:
            raise Refusal("501 Not enough value")
        mechanism, *initial = arg.split()
        if len(initial) > 1:
            raise Refusal("501 Too many values")
        if mechanism.upper() == "PLAIN":
            credentials = await self._ask_plain(*initial)
        elif mechanism.upper() == "LOGIN":
            credentials = await self._ask_login(*initial)
        else:
            raise Refusal("504 5.5.4 Unrecognized authentication type")
        await self._log_in(mechanism.upper(), credentials)

    async def _ask_plain(self, initial: str | None = None) -> smtp.LoginPassword:
        """RFC 4616. Whose authority is wanted, the first of the three, is not looked at: everybody has their own."""
        answer = await self.challenge_auth("") if initial is None else _decoded(initial.encode())
        parts = answer.split(b"\0")
        if len(parts) != 3:
            raise Refusal("501 5.5.2 Can't split auth value")
        return smtp.LoginPassword(*parts[1:])

    async def _ask_login(self, initial: str | None = None) -> smtp.LoginPassword:
        user = (
            await self.challenge_auth(self.AuthLoginUsernameChallenge)
            if initial is None
            else _decoded(initial.encode())
        )
        return smtp.LoginPassword(user, await self.challenge_auth(self.AuthLoginPasswordChallenge))

    async def challenge_auth(  # type: ignore[override]
        self, challenge: str | bytes, encode_to_b64: bool = True, log_client_response: bool = False
    ) -> bytes:
        """Ask, and return the answer. Raises Refusal. What the client says is never logged."""
        text = challenge.encode() if isinstance(challenge, str) else challenge
        await self.push(b"334 " + (b64encode(text) if encode_to_b64 else text))
        return _decoded(bytes(await self._line()))

    async def _log_in(self, mechanism: str, credentials: smtp.LoginPassword) -> None:
        assert self.session is not None
        result = await self.loop.run_in_executor(None, self._try_login, mechanism, credentials)
        if result.success:
            self.session.authenticated = True
            self.session.auth_data = result.auth_data
            await self.push(result.message or "235 2.7.0 Authentication successful")
            return
        self._failed_logins += 1
        user = printable(credentials.login.decode(errors="replace"))
        log.info("refused: %s logs in as <%s>", self.session.peer, user)
        await self.push(result.message or "535 5.7.8 Authentication credentials invalid")
        if 0 < self.limits.login_limit <= self._failed_logins:
            self._hang_up("failed logins")

    def _try_login(self, mechanism: str, credentials: smtp.LoginPassword) -> smtp.AuthResult:
        try:
            return self._authenticate(mechanism, credentials)
        except Exception:
            log.exception("failed: cannot find out whether a login is right")
            message = "454 4.7.0 Temporary authentication failure"
            return smtp.AuthResult(success=False, handled=False, message=message)


class _Callback:
    """aiosmtpd's callback for a function of user name and password."""

    def __init__(self, is_right: Callable[[str, str], bool]):
        self._is_right = is_right

    def __call__(self, mechanism: str, login: bytes, password: bytes) -> bool:
        try:
            return self._is_right(login.decode(), password.decode())
        except UnicodeDecodeError:
            return False


def _decoded(text: bytes) -> bytes:
    """What a client answers to a challenge (RFC 4954 section 4)."""
    if text == b"*":
        raise Refusal("501 5.7.0 Auth aborted")
    try:
        return b"" if text == b"=" else b64decode(text, validate=True)
    except Base64Error:
        raise Refusal("501 5.5.2 Can't decode base64") from None
