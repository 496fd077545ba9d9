"""Is this server an open relay? It must pass mail for our own hosts on, and nobody else's.

Run it with `nosetests`. No server has to run: a RouterConversation gives its mail straight to the handlers.
"""

from lamson.routing import Router
from lamson.testing import RouterConversation, assert_equal, assert_in_state, queue

client = RouterConversation("somebody@example.com", "Testing the relay")


def test_mail_for_our_host_is_forwarded():
    client.begin()
    client.say("tester@test.com", "Please pass this on.", expect="tester@test.com")
    assert_in_state("app.handlers.sample", "tester@test.com", client.From, "NEW")


def test_mail_for_anyone_else_is_refused():
    client.begin()
    client.say("tester@badplace.notinterwebs", "Please pass this on, too.")
    assert_equal(queue().count(), 0, "It was passed on. Set `host` in router_defaults to your own hosts.")

    # No handler takes the address, which is when the server answers 550 to it.
    assert_equal(list(Router.match("tester@badplace.notinterwebs")), [])
