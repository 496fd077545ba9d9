"""Which of many routes may match."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamson.routeindex import RouteIndex, required_texts
from lamson.routing import RoutingBase


@pytest.mark.parametrize(
    "format, texts",
    [
        ("help@example.com", ["help@example", "com"]),  # the dot is any character
        (r"help@example\.com", ["help@example.com"]),
        (r"^(?P<list>[a-z]+)-(?P<action>join|leave)@example\.com$", ["-", "@example.com"]),
        (r"(?P<name>LIST(?:-x)?)@(?P<host>h)", ["list", "@h"]),
        (r"(ab)+c(de){0,3}f", ["ab", "c", "f"]),
        (r"a|b", []),
        (r"(?=abc)x(?!d)y(?i:Z)", ["x", "yz"]),
        ("caf\u00e9@x", ["caf", "@x"]),
        (r"(a)?(?(1)b|c)d", ["d"]),
        (r"(", []),
        ("", []),
    ],
)
def test_what_a_regular_expression_requires(format, texts):
    assert required_texts(format) == texts


def test_of_a_thousand_routes_few_are_tried():
    formats = [rf"list{number}-(?P<action>join|leave)@(?P<host>example\.com)" for number in range(1000)]
    formats += [r"(?P<address>.+)@(?P<host>example\.com)", "help@.+"]
    index = RouteIndex(formats)
    assert len(index.candidates("list77-join@example.com")) < 30
    assert {77, 1000} <= set(index.candidates("LIST77-join@EXAMPLE.com"))
    assert len(index.candidates("somebody@example.com")) < 30
    assert index.candidates("list77-join@l\u00efst.example") == list(range(1002))


def test_the_router_tries_a_new_route_as_well():
    router = RoutingBase()
    for number in range(3):
        router.register_route(f"list{number}@.+", len)
        assert [functions for functions, _ in router.match(f"List{number}@x")] == [[len]]
    # A letter of Unicode that is a K but for its case.
    router.register_route("kilo@x", len)
    assert re.fullmatch("kilo@x", "\u212ailo@x", re.IGNORECASE) and list(router.match("\u212ailo@x"))


LETTERS = st.text("abAB-@.", min_size=1, max_size=4)
FORMATS = st.recursive(
    LETTERS.map(re.escape) | st.sampled_from([".", ".+", "[ab]", "a?", r"\w*", "", "^", "$", "(?i:A)"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        inner.map("(?:{})+".format),
        inner.map("(?:{})?".format),
        inner.map("({}){{2}}".format),
        inner.map("(?={})".format),
        inner.map("(?!{})".format),
    ),
    max_leaves=8,
)


@given(st.lists(FORMATS, max_size=8), st.text("abAB-@.", max_size=8))
def test_nothing_that_matches_is_missing(formats, address):
    candidates = RouteIndex(formats).candidates(address)
    assert candidates == sorted(set(candidates))
    matching = [n for n, format in enumerate(formats) if re.compile(f"^(?:{format})$", re.I).fullmatch(address)]
    assert set(matching) <= set(candidates)


@given(st.text(string.printable, max_size=20))
def test_no_text_is_an_error(format):
    assert isinstance(required_texts(format), list)
