"""Passes every mail for our hosts on to the relay. A place to start from: change it, or write your own beside it.

A handler is a function that answers to addresses. In the address of a @route each (name) is a capture: what stands
there in the recipient's address is given to the function under that name. What (address) may look like is said here;
(host) has its pattern from `router_defaults` in config/settings.py, and mail for any other host is refused.

A function without @stateless is also a state. Lamson remembers for every sender which one they are in, and runs only
that one. Somebody who never wrote before is in START.
"""

from config.settings import relay

from lamson.routing import route, route_like, stateless


@route("(address)@(host)", address=".+")
def START(message, address=None, host=None):
    """Runs for the first mail of each sender. Returning another function moves the sender to that state."""
    return NEW


@route_like(START)
def NEW(message, address=None, host=None):
    """Runs for every later mail of theirs, and keeps them here."""
    return NEW


@route_like(START)
@stateless
def FORWARD(message, address=None, host=None):
    """Runs for every mail, whatever state the sender is in. If the relay does not take it, run/undeliverable has it."""
    relay.deliver(message)
