"""A pytest plugin that puts our protocol classes in the place of aiosmtpd's, for aiosmtpd's own tests.

    python -m pytest -p peers .../aiosmtpd/tests

How each test ended goes to the file that PEERS_REPORT names: a line with its name, a tab, and how.
"""

import os
import socket
import sys
import types
from importlib import resources

import aiosmtpd.lmtp
import aiosmtpd.smtp
import pytest

from lamson.limits import Limits
from lamson.protocol import LMTPProtocol, SMTPProtocol


class SMTP(SMTPProtocol):
    """Ours, made from aiosmtpd's options."""

    def __init__(self, handler, **options):
        super().__init__(handler, Limits(size_limit=aiosmtpd.smtp.DATA_SIZE_DEFAULT), **options)

    def _expects_proxy(self):
        return self._proxy_timeout is not None  # aiosmtpd asks everybody for a header, where it asks


class LMTP(SMTP, LMTPProtocol):
    """The same for LMTP."""


aiosmtpd.smtp.SMTP = SMTP
aiosmtpd.lmtp.LMTP = LMTP

# The tests want this module of setuptools, which newer ones have no more, for one function.
sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources")).resource_filename = (  # type: ignore[attr-defined]
    lambda package, name: str(resources.files(package) / name)
)


@pytest.fixture(autouse=True, scope="session")
def free_port():
    """A port of our own, for all tests that do not choose one."""
    from aiosmtpd.tests import conftest

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    conftest.HostPort.__new__.__defaults__ = ("127.0.0.1", port)


def pytest_runtest_logreport(report):
    if report.when == "call" or report.failed:
        outcome = "passed" if report.passed else str(report.longrepr).splitlines()[-1] if report.failed else "skipped"
        with open(os.environ["PEERS_REPORT"], "a") as file:
            file.write(f"{report.nodeid.rpartition('/')[2]}\t{outcome}\n")
