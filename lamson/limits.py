"""`Limits`: what a receiver grants a client. The defaults are for a server on the internet.

    receiver_config = {"host": "0.0.0.0", "port": 25, "recipient_limit": 500, "certificate": "config/cert.pem"}

Every name here may stand in `receiver_config`. A limit of 0 is none. docs/security.md tells what each is good for.
"""

import dataclasses
import functools
import ipaddress
from collections.abc import Callable

MEGABYTE = 1 << 20

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may do, and how it may come in. Raises ValueError for what makes no sense."""

    # Of a message.
    size_limit: int = 25 * MEGABYTE  # bytes; announced (RFC 1870)
    header_size_limit: int = MEGABYTE // 2  # bytes before the first empty line
    hop_limit: int = 50  # Received fields: more than any way is long, so that it runs in a circle
    recipient_limit: int = 100  # RFC 5321 section 4.5.3.1.8 wants this many and more

    # Of a connection.
    message_limit: int = 10_000
    command_limit: int = 1000  # in a row, without a message that was taken
    error_limit: int = 20  # replies of 5xx in a row, without a message that was taken
    login_limit: int = 3  # failed ones
    command_timeout: float = 300  # seconds for one command, and from one piece of a message to the next
    message_timeout: float = 1800  # seconds for a whole message to come in

    # Of all connections together.
    connection_limit: int = 1000
    memory_limit: int = 512 * MEGABYTE  # bytes of all messages that come in or are handled; one always has room
    # From one address, or from one /64 of IPv6. None is 50, and no limit for this machine itself, where a proxy or
    # another mail server may stand in front.
    connection_limit_per_address: int | None = None

    # Who may come in, and how.
    certificate: str | None = None  # path of a PEM file: the certificate and those between it and its authority
    key: str | None = None  # path of a PEM file; None: it is in the other one
    implicit_tls: bool = False  # TLS from the first byte (RFC 8314 section 3.3) in place of STARTTLS
    require_tls: bool = False
    auth: Callable[[str, str], bool] | None = None  # user name, password -> whether that is right; runs in a thread
    require_auth: bool = False
    proxy_hosts: tuple[str, ...] = ()  # addresses or networks whose connections begin with a PROXY header

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_limit", "_timeout")) and (isinstance(value, bool) or value < 0):
                raise ValueError(f"{field.name} is {value!r}. It has to be 0 (no limit) or more.")
        if self.key and not self.certificate:
            raise ValueError(f"key is {self.key!r}, and there is no certificate. Name its file as 'certificate'.")
        for name in ("implicit_tls", "require_tls", "auth"):
            if getattr(self, name) and not self.certificate:
                raise ValueError(f"{name} needs TLS. Name the file of the server's certificate as 'certificate'.")
        if self.require_auth and not self.auth:
            raise ValueError("require_auth needs 'auth', a function of user name and password that returns a bool.")
        assert self.proxy_networks is not None  # raises ValueError for what is no network

    @functools.cached_property
    def proxy_networks(self) -> tuple[Network, ...]:
        if isinstance(self.proxy_hosts, str):
            raise ValueError(f"proxy_hosts is {self.proxy_hosts!r}. It has to be a list: [{self.proxy_hosts!r}].")
        try:
            return tuple(ipaddress.ip_network(host) for host in self.proxy_hosts)
        except ValueError as error:
            raise ValueError(
                f"proxy_hosts has to hold addresses such as '10.0.0.1' or '10.0.0.0/8': {error}"
            ) from error

    def is_proxy(self, address: str) -> bool:
        """Whether a connection from this address begins with a PROXY header."""
        host = _parse(address)
        return any(host in network for network in self.proxy_networks)

    def connections_allowed(self, address: str) -> int:
        """How many connections there may be from the neighbourhood of this address. 0 is no limit."""
        if self.connection_limit_per_address is not None:
            return self.connection_limit_per_address
        return 0 if not address or _is_this_machine(address) else 50


def neighbourhood(address: str) -> str:
    """Return what stands for all addresses that one client may well have: an IPv4 address, or the /64 of an IPv6 one.

    >>> neighbourhood("2001:db8:0:1:2:3:4:5")
    '2001:db8:0:1::'
    """
    if ":" not in address:
        return address
    host = _parse(address)
    return str(host) if host.version == 4 else str(ipaddress.IPv6Address(host.packed[:8] + bytes(8)))


@functools.lru_cache(1000)
def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    host = ipaddress.ip_address(address.partition("%")[0])
    return getattr(host, "ipv4_mapped", None) or host


@functools.lru_cache(1000)
def _is_this_machine(address: str) -> bool:
    return _parse(address).is_loopback
