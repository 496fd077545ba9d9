"""A pytest plugin that puts our protocol classes in the place of aiosmtpd's, for aiosmtpd's own tests.

    python -m pytest -p peers --pyargs aiosmtpd.tests

`ON_PURPOSE` and `BROKEN` name the tests that have to fail, and why: one that passes is an error, and so is a name that
is none.
"""

import socket
import sys
import types
from importlib import resources

import aiosmtpd.controller
import aiosmtpd.lmtp
import aiosmtpd.smtp
import pytest

from lamson.limits import Limits
from lamson.protocol import LMTPProtocol, SMTPProtocol

# reason: tests, by module, class and name. Without parameters in brackets a name is that of all its cases.
ON_PURPOSE = {
    "SMTPUTF8 is always there, and EHLO names it behind 8BITMIME": [
        "test_smtp::TestSMTP::test_ehlo",
        "test_smtp::TestAuthMechanisms::test_ehlo",
        "test_smtp::TestStrictASCII::test_ehlo",
        "test_smtp::TestStrictASCII::test_mail_param",
        "test_lmtp::test_lhlo",
    ],
    "there is no mode for ASCII alone: real mail has 8-bit bytes in its headers": [
        "test_smtp::TestStrictASCII::test_data",
        "test_smtp::TestStrictASCII::test_bad_encoded_param",
    ],
    "a message is bytes and never decoded on the wire": [
        "test_handlers::TestMessage::test_message_decoded",
        "test_smtp::TestSMTPWithController::test_dots_escaped",
    ],
    "a command is UTF-8, or refused": ["test_smtp::TestSMTPWithController::test_bad_encodings"],
    "lines of a message may have any length": [
        "test_smtp::TestSMTPWithController::test_data_line_too_long",
        "test_smtp::TestSMTPWithController::test_long_line_double_count",
        "test_smtp::TestSMTPWithController::test_long_line_leak",
        "test_smtp::TestSMTPWithController::test_too_long_line_delay_error",
        "test_smtp::TestSMTPWithController::test_too_long_lines_then_too_long_body",
    ],
    "an error of ours is a 451 without its text, so that the client keeps the message and learns nothing": [
        "test_smtp::TestSMTPWithController::test_unexpected_errors",
        "test_smtp::TestSMTPWithController::test_unexpected_errors_unhandled",
        "test_smtp::TestSMTPWithController::test_unexpected_errors_custom_response",
        "test_smtp::TestSMTPWithController::test_exception_handler_exception",
        "test_smtp::TestSMTPWithController::test_exception_handler_undescribable",
        "test_smtp::TestSMTPWithController::test_exception_handler_multiple_connections_lost",
    ],
    "hooks that aiosmtpd calls deprecated are not called": [
        "test_handlers::TestHooks::test_hook_EHLO_deprecated",
        "test_handlers::TestDeprecation::test_process_message",
        "test_handlers::TestDeprecation::test_process_message_async",
        "test_handlers::TestDeprecation::test_ehlo_hook",
    ],
    "AUTH has PLAIN and LOGIN, and no mechanisms or hooks of the receiver's": [
        "test_handlers::TestHooks::test_hook_AUTH",
        "test_smtp::TestSMTPAuth::test_auth_loginteract_warning",
        "test_smtp::TestAuthMechanisms::test_custom_mechanism",
        "test_smtp::TestAuthMechanisms::test_DENYFALSE",
        "test_smtp::TestAuthMechanisms::test_DENYMISSING",
        "test_smtp::TestAuthMechanisms::test_NONE",
    ],
    "what a client answers to AUTH is not logged, not even with asterisks": [
        "test_smtp::TestAuthMechanisms::test_plain1_goodcreds_sanitized_log",
    ],
    "the receiver is not asked whether it likes a handshake that has succeeded": [
        "test_starttls::TestStartTLS::test_failed_handshake",
    ],
    "a handshake that fails is logged, and no exception for the receiver": [
        "test_starttls::TestTLSEnding::test_tls_handshake_failing",
    ],
    "[IPv6::1] is the address :1, which is none; ::1 is written [IPv6:::1] (RFC 5321 section 4.1.3)": [
        "test_smtp::TestSMTP::test_mail_valid_address[14]",
        "test_smtp::TestSMTP::test_rcpt_valid_address[14]",
    ],
    "comments are of RFC 5322 and have no place in a path (RFC 5321 section 4.1.2)": [
        f"test_smtp::TestSMTP::test_{command}_valid_address[{number}]"
        for command in ("mail", "rcpt")
        for number in (15, 16, 17, 18)
    ],
    "a local part is quoted as a whole or not at all (RFC 5321 section 4.1.2)": [
        f"test_smtp::TestSMTP::test_{command}_valid_address[{number}]"
        for command in ("mail", "rcpt")
        for number in (28, 29, 30, 31)
    ],
    "local parts may be longer than 64 bytes, as those of bounces and lists are": [
        "test_smtp::TestCustomization::test_limitlocalpart",
    ],
    "how often a command may be given is limited for all commands together": [
        "test_smtp::TestLimits::test_all_limit_15",
        "test_smtp::TestLimits::test_different_limits",
        "test_smtp::TestLimits::test_different_limits_custom_default",
    ],
    "who is too slow hears 421 before the connection is closed (RFC 5321 section 3.8)": [
        "test_smtp::TestTimeout::test_timeout",
    ],
    "the replies to an envelope that came in one piece go out in one piece (RFC 2920 section 3.2), not in four": [
        "test_smtp::TestProtocol::test_honors_mail_delimiters",
        "test_smtp::TestProtocol::test_empty_email",
    ],
    "how long a handler takes is not the client's doing, and no reason to hang up": [
        "test_smtp::TestSleepingHandler::test_close_after_helo",
    ],
}

# Fails with aiosmtpd's own class as well.
BROKEN = (
    {
        "from Python 3.13 on asyncio removes a socket's file, when the test wants it to be there still": [
            "test_server::TestUnthreaded::test_unixsocket",
        ]
    }
    if sys.version_info >= (3, 13)
    else {}
)


class SMTP(SMTPProtocol):
    """Ours, made from aiosmtpd's options."""

    def __init__(self, handler, **options):
        super().__init__(handler, Limits(size_limit=aiosmtpd.smtp.DATA_SIZE_DEFAULT), **options)

    def _expects_proxy(self):
        return self._proxy_timeout is not None  # aiosmtpd asks everybody for a header, where it asks


class LMTP(SMTP, LMTPProtocol):
    """The same for LMTP."""


def pytest_configure():
    aiosmtpd.smtp.SMTP = aiosmtpd.controller.SMTP = SMTP
    aiosmtpd.lmtp.LMTP = LMTP
    # The tests want this module of setuptools, which newer ones have no more, for one function.
    setuptools = sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))
    setuptools.resource_filename = lambda package, name: str(resources.files(package) / name)


@pytest.fixture(autouse=True, scope="session")
def free_port():
    """A port of our own, for all tests that do not choose one."""
    from aiosmtpd.tests import conftest

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    conftest.HostPort.__new__.__defaults__ = ("127.0.0.1", port)
    aiosmtpd.controller.InetMixin.__init__.__defaults__ = ("127.0.0.1", port, None)


def pytest_collection_modifyitems(items):
    reasons = {name: reason for reason, names in (ON_PURPOSE | BROKEN).items() for name in names}
    found = set()
    for item in items:
        name = item.nodeid.rpartition("/")[2].replace(".py::", "::")
        name = name if name in reasons else name.partition("[")[0]
        if name in reasons:
            found.add(name)
            item.add_marker(pytest.mark.xfail(reason=reasons[name], strict=True))
    if reasons.keys() - found:
        raise pytest.UsageError(f"aiosmtpd has no tests of these names: {sorted(reasons.keys() - found)}")
