"""Which hosts take the mail for a domain, as the name service says (RFC 5321 section 5.1).

    hosts = MailHosts()
    hosts.of("example.com")             # ['mx1.example.com', 'mx2.example.com'], in the order to try them
    hosts.addresses("mx1.example.com")  # ['192.0.2.1', '2001:db8::1']

A domain without MX records takes its mail itself. One whose MX is "." takes none (RFC 7505), and one that does not
exist neither: both raise `NoMailHost`, which no later attempt will mend. A name service that does not answer, or not
properly, raises another OSError, and may answer later.
"""

import contextlib
import ipaddress
import random
import socket
from collections.abc import Iterable
from typing import Any

import dns.exception
import dns.name
import dns.resolver

REMEMBERED = 1000  # answers of the name service that are kept for as long as they are valid


class NoMailHost(OSError):
    """Nobody takes mail for this domain, and trying again cannot help."""


class Ourselves(NoMailHost):
    """The mail would come back to the server that sends it (RFC 5321 section 5.1)."""


class MailHosts:
    """Asks the name service; by default the one in ``/etc/resolv.conf``, or else `resolver`'s."""

    def __init__(self, resolver: dns.resolver.Resolver | None = None):
        self._resolver = resolver

    def of(self, domain: str) -> list[str]:
        """Return the names of the hosts in the order to try them: by preference, equal ones in random order.

        An address literal (``[192.0.2.1]``, RFC 5321 section 4.1.3) gives that address. Raises NoMailHost or OSError.
        """
        if domain.startswith("["):
            return [_literal(domain)]
        if domain.lower().rstrip(".") == "localhost":  # RFC 6761 section 6.3: never asked for in the name service
            return ["localhost"]
        records = self._ask(domain, "MX")
        if not records:
            return [domain]
        random.shuffle(records)
        records.sort(key=lambda record: record.preference)
        names = [record.exchange.to_text(omit_final_dot=True) for record in records]
        names = [name for name in names if name not in ("", ".")]
        if not names:
            raise NoMailHost(f"{domain} takes no mail")
        return names

    def addresses(self, host: str) -> list[str]:
        """Return the addresses of a host that `of` has named, IPv4 first. Raises NoMailHost or OSError."""
        if host == "localhost" or _is_address(host):
            return [host]
        found: list[str] = []
        failure: OSError = NoMailHost(f"{host} has no address")
        for kind in ("A", "AAAA"):
            try:
                found += [record.address for record in self._ask(host, kind)]
            except NoMailHost:
                break  # there is no such name, whatever one asks about it
            except OSError as error:
                failure = error
        if not found:
            raise failure
        return found

    def _ask(self, name: str, kind: str) -> list[Any]:
        """Return the records; none when the name has others only."""
        try:
            question = dns.name.from_text(name)
        except (dns.exception.DNSException, UnicodeError) as error:
            raise NoMailHost(f"{name!r} is no name of a host: {error}") from error
        try:
            if self._resolver is None:
                self._resolver = dns.resolver.Resolver()
                self._resolver.cache = dns.resolver.LRUCache(REMEMBERED)
            return list(self._resolver.resolve(question, kind))
        except dns.resolver.NoAnswer:
            return []
        except dns.resolver.NXDOMAIN as error:
            raise NoMailHost(f"there is no domain {name}") from error
        except dns.exception.DNSException as error:
            raise OSError(f"cannot find out which host takes mail for {name}: {error}") from error


def is_one_of(host: str, port: int, places: Iterable[tuple[str, int]]) -> bool:
    """Whether a connection to this host, a name or an address, ends at one of these places.

    They are addresses of this machine with their ports, and ``0.0.0.0`` or ``::`` is each of its addresses.
    """
    wanted = [ipaddress.ip_address(address) for address, number in places if number == port]
    if not wanted:
        return False
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, _, _, _, (text, *_) in found:
        address = ipaddress.ip_address(text)
        for place in wanted:
            if place == address or (
                place.is_unspecified and place.version == address.version and _is_of_this_machine(family, str(text))
            ):
                return True
    return False


def _is_of_this_machine(family: int, address: str) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 0))
        return True
    return False


def _literal(domain: str) -> str:
    address = domain.strip("[]")
    if address[:5].lower() == "ipv6:":
        address = address[5:]
    if not _is_address(address):
        raise NoMailHost(f"{domain} is no address literal")
    return address


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
