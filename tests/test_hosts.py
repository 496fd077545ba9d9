"""Which hosts take mail for a domain, asked of a real name service on this machine."""

import pytest

from lamson.hosts import MailHosts, NoMailHost
from sink import BROKEN


def test_hosts_come_in_order_of_preference_and_equal_ones_in_any(names):
    names.zone["example.test", "MX"] = ["20 c.test.", "10 a.test.", "10 b.test.", "30 d.test."]
    hosts = MailHosts(names.resolver())
    orders = {tuple(hosts.of("example.test")) for _ in range(64)}
    assert orders == {("a.test", "b.test", "c.test", "d.test"), ("b.test", "a.test", "c.test", "d.test")}


def test_a_domain_without_mx_is_its_own_host(names):
    names.zone["example.test", "A"] = ["127.0.0.1"]
    names.zone["example.test", "AAAA"] = ["::1"]
    hosts = MailHosts(names.resolver())
    assert hosts.of("Example.test") == ["Example.test"]
    assert hosts.addresses("example.test") == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("domain", "host"),
    [("localhost", "localhost"), ("[127.0.0.1]", "127.0.0.1"), ("[IPv6:::1]", "::1")],
)
def test_localhost_and_address_literals_need_no_name_service(names, domain, host):
    hosts = MailHosts(names.resolver())
    assert hosts.of(domain) == hosts.addresses(host) == [host]
    assert names.asked == []


@pytest.mark.parametrize("domain", ["null.test", "missing.test", "[1.2.3]", "", "x" * 64 + ".test", "a..b"])
def test_what_takes_no_mail_never_will(names, domain):
    names.zone["null.test", "MX"] = ["0 ."]
    with pytest.raises(NoMailHost):
        MailHosts(names.resolver()).of(domain)


def test_a_name_service_that_fails_may_answer_later(names):
    names.zone["broken.test", "MX"] = BROKEN
    hosts = MailHosts(names.resolver())
    with pytest.raises(OSError, match="broken.test") as caught:
        hosts.of("broken.test")
    assert not isinstance(caught.value, NoMailHost)


def test_a_name_service_that_is_silent_may_answer_later(names):
    names.silent = True
    resolver = names.resolver()
    resolver.timeout = resolver.lifetime = 0.05
    with pytest.raises(OSError, match="silent.test") as caught:
        MailHosts(resolver).of("silent.test")
    assert not isinstance(caught.value, NoMailHost)


def test_a_host_without_an_address(names):
    names.zone["mx.test", "MX"] = ["10 other.test."]
    names.zone["half.test", "A"] = BROKEN
    names.zone["half.test", "AAAA"] = ["::1"]
    names.zone["broken.test", "A"] = BROKEN
    hosts = MailHosts(names.resolver())
    for missing in ("mx.test", "missing.test"):
        with pytest.raises(NoMailHost):
            hosts.addresses(missing)
    assert hosts.addresses("half.test") == ["::1"]
    with pytest.raises(OSError) as caught:
        hosts.addresses("broken.test")
    assert not isinstance(caught.value, NoMailHost)
