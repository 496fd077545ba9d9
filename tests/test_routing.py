"""Which function takes an address, and in which state its sender is."""

import sys

import pytest

from handling import mail, write_module
from lamson import routetable, routing
from lamson.errors import LamsonError
from lamson.routing import (
    Router,
    RoutingBase,
    nolocking,
    route,
    route_like,
    stateless,
)


class TestRoutes:
    def test_captures_reach_the_function_as_keyword_arguments(self):
        seen = []

        @route("(name)-(action)@(host)", name="[a-z]+", action="join|leave", host=".+")
        def START(message, **captures):
            seen.append(captures)

        Router.deliver(mail("Python-JOIN@test.com"))
        assert seen == [{"name": "python", "action": "join", "host": "test.com"}]

    @pytest.mark.parametrize(
        ("format", "captures", "address", "matches"),
        [
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "abc@test.com", True),
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "xabc1@test.com", False),
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "abc@test.com.evil", False),
            ("(name)@(host)", {"name": "[a-z]+", "host": "test.com"}, "abc@test.com\n", False),
            ("a|ab@test.com", {}, "ab@test.com", True),
            ("(name)@(host)", {"name": ".+", "host": r"(test\.com|localhost)"}, "a@localhost", True),
            ("(name)@(host)", {"name": ".+", "host": r"(test\.com|localhost)"}, "a@testxcom", False),
            (r"\(x\)@test.com", {}, "(x)@test.com", True),
            ("(?:a|b)@test.com", {}, "b@test.com", True),
            (".+", {}, "anything@at.all", True),
            ("(UPPER)@test.com", {"UPPER": "[A-Z]+"}, "lower@test.com", True),
        ],
    )
    def test_a_route_matches_a_whole_address(self, format, captures, address, matches):
        @route(format, **captures)
        def START(message, **kw):
            pass

        assert bool(list(Router.match(address))) is matches

    def test_defaults_serve_captures_without_a_regex(self):
        Router.defaults(host="test.com")

        @route("(name)@(host)", name="[a-z]+")
        def START(message, **kw):
            pass

        assert list(Router.match("a@test.com"))[0][1] == {"name": "a", "host": "test.com"}
        assert not list(Router.match("a@other.com"))

    def test_a_capture_of_the_route_wins_over_the_default(self):
        Router.defaults(host="test.com")

        @route("a@(host)", host="other.com")
        def START(message, **kw):
            pass

        assert list(Router.match("a@other.com"))

    def test_a_capture_without_regex_is_an_error_that_names_it_and_the_route(self):
        with pytest.raises(AssertionError, match=r"\(list_name\)-x@test.com.*\(list_name\)") as caught:
            route("(list_name)-x@test.com")
        assert isinstance(caught.value, LamsonError)

    def test_a_broken_regex_is_an_error_that_names_the_route_and_the_function(self):
        with pytest.raises(routing.RoutingError, match=r"\(\?P<a>\[z\)@test.com.*START"):

            @route("(a)@test.com", a="[z")
            def START(message, a):
                pass

    def test_match_goes_in_the_order_of_registration(self):
        router = RoutingBase()
        router.register_route("b.*", max)
        router.register_route(".*", min)
        router.register_route("b.*", len)
        assert router.ORDER == ["b.*", ".*"]
        assert [functions for functions, _ in router.match("bcd")] == [[max, len], [min]]
        assert router.REGISTERED["b.*"][1] == [max, len]

    def test_several_routes_on_one_function_are_all_active(self):
        @route("a@test.com")
        @route("b@test.com")
        def START(message):
            pass

        assert list(Router.match("a@test.com")) and list(Router.match("b@test.com"))

    def test_route_like_takes_every_route_of_the_other_function(self):
        @route("a@(host)", host="test.com")
        @route("b@(host)", host="test.com")
        def START(message, host=None):
            pass

        @route_like(START)
        def NEXT(message, host=None):
            pass

        for address in ("a@test.com", "b@test.com"):
            assert [f.__name__ for functions, _ in Router.match(address) for f in functions] == ["START", "NEXT"]
        assert NEXT._lamson_settings["format"] == START._lamson_settings["format"]
        assert NEXT._lamson_settings["captures"] == {"host": "test.com"}

    def test_route_like_of_an_undecorated_function_says_so(self):
        def plain(message):
            pass

        with pytest.raises(AssertionError, match="plain is not decorated"):
            route_like(plain)

    def test_a_method_cannot_be_routed(self):
        with pytest.raises(NotImplementedError, match="BadRoute.wont_work"):

            class BadRoute:
                @route("test")
                def wont_work(message):
                    pass

    def test_stateless_above_route_is_an_error_that_says_which_order_is_right(self):
        with pytest.raises(AssertionError, match="@route on top, @stateless under it"):

            @stateless
            @route("a@test.com")
            def START(message):
                pass

    def test_settings_are_on_the_function(self):
        @route("(a)@test.com", a=".+")
        @stateless
        @nolocking
        def START(message, a):
            pass

        assert START._lamson_settings["format"] == "(?P<a>.+)@test.com"
        assert START._lamson_settings["captures"] == {"a": ".+"}
        assert routing.lamson_setting(START, "stateless") and routing.lamson_setting(START, "nolocking")
        assert routing.has_lamson_settings(START)
        assert not routing.has_lamson_settings(mail)
        assert routing.lamson_setting(mail, "format") is None
        with pytest.raises(AssertionError):
            routing.assert_lamson_settings(mail)


class TestStates:
    def test_a_sender_moves_through_the_states_that_functions_return(self):
        calls = []

        @route("a@test.com")
        def START(message):
            calls.append("START")
            return CONFIRMING

        @route_like(START)
        def CONFIRMING(message):
            calls.append("CONFIRMING")
            return START if len(calls) == 3 else None

        for _ in range(4):
            Router.deliver(mail("a@test.com"))
        Router.deliver(mail("a@test.com", "other@example.com"))
        assert calls == ["START", "CONFIRMING", "CONFIRMING", "START", "START"]

    def test_only_the_first_matching_function_of_the_state_runs(self):
        calls = []

        @route("a@test.com")
        def START(message):
            calls.append("first")

        first = START

        @route(".+@test.com")
        def START(message):
            calls.append("second")

        Router.deliver(mail("a@test.com"))
        assert calls == ["first"] and first is not START

    def test_every_matching_stateless_function_runs_beside_the_state(self):
        calls = []

        @route("a@test.com")
        def START(message):
            calls.append("START")
            return END

        @route("a@test.com")
        def END(message):
            calls.append("END")

        @route(".+")
        @stateless
        def LOG(message):
            calls.append("LOG")
            return END  # means nothing: a stateless function keeps no state

        @route("a.+")
        @stateless
        def COUNT(message):
            calls.append("COUNT")

        Router.deliver(mail("a@test.com"))
        assert calls == ["START", "LOG", "COUNT"]

    def test_a_state_of_another_module_is_set_there(self, app):
        write_module(app, "one", "import two\n@route('a@test.com')\ndef START(message):\n    return two.POSTING\n")
        write_module(app, "two", "@route('a@test.com')\ndef POSTING(message):\n    pass\n")
        Router.load(["one"])
        Router.deliver(mail("a@test.com"))
        assert Router.get_state("two", mail()) == "POSTING"
        assert Router.get_state("one", mail()) == "START"
        assert Router.in_state(sys.modules["two"].POSTING, mail())

    def test_a_state_key_generator_gives_a_state_per_key(self, app):
        write_module(
            app,
            "lists",
            """
            @state_key_generator
            def key(module_name, message):
                return module_name + ":" + message["to"]

            @route(".+")
            def START(message):
                return POSTING

            @route(".+")
            def POSTING(message):
                return START
            """,
        )
        Router.load(["lists"])
        Router.deliver(mail("a@test.com"))
        assert Router.get_state("lists", mail("a@test.com")) == "POSTING"
        assert Router.get_state("lists", mail("b@test.com")) == "START"
        assert Router.state_key("lists", mail("b@test.com")) == "lists:b@test.com"
        assert Router.state_key("unknown", mail()) == "unknown"

    def test_mail_from_nobody_keeps_no_state(self):
        calls = []

        @route(".+")
        def START(message):
            calls.append(message.From)
            return END

        @route(".+")
        def END(message):
            raise AssertionError("never reached")

        Router.deliver(mail(sender=""))
        Router.deliver(mail(sender=""))
        assert calls == ["", ""]
        assert not Router.STATE_STORE.states

    def test_something_that_is_no_state_is_an_error_that_says_so(self):
        Router.LOG_EXCEPTIONS = False

        @route(".+")
        def START(message):
            return "CONFIRMING"

        with pytest.raises(AssertionError, match="START returned 'CONFIRMING'"):
            Router.deliver(mail())


def test_a_route_that_comes_in_while_the_index_is_made_is_found(monkeypatch):
    router = routing.RoutingBase()

    def START(message):
        """Nothing."""

    class Slow(routetable.RouteIndex):
        def __init__(self, formats):
            super().__init__(formats)
            if "late@example.com" not in router.ORDER:
                router.register_route("late@example.com", START)

    monkeypatch.setattr(routetable, "RouteIndex", Slow)
    router.register_route("early@example.com", START)
    assert list(router.match("early@example.com"))
    assert list(router.match("late@example.com"))
