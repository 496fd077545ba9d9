"""What a message costs the Router, by the number of routes: 1,000 beside 10.

    python benchmarks/routes.py [--messages 5000] [--rounds 5]

Half of the routes stand for mailing lists with a name in the address, the other half for hosts. What is timed is all of
`Router.deliver` with a handler that does nothing, the best of the rounds.
"""

import argparse
import time

from frame import ratio
from lamson.mail import MailRequest
from lamson.routing import Router, route


def build(count: int) -> None:
    """Give the Router so many routes, and one more that takes everything."""
    Router.clear_routes()
    Router.clear_states()
    for number in range(count // 2):

        @route(f"list{number}-(action)@(host)", action="join|leave", host=r"lists\.example\.com")
        def START(message, action=None, host=None):
            return START

        @route("(name)@(host)", name=".+", host=rf"host{number}\.example\.com")
        def NAMED(message, name=None, host=None):
            return NAMED


def measure(messages: int) -> float:
    """Microseconds for one message."""
    requests = [
        MailRequest("bench", "a@example.org", f"list{number % 5}-join@lists.example.com", b"Subject: Hi\n\nHello.\n")
        for number in range(messages)
    ]
    begin = time.perf_counter()
    for request in requests:
        Router.deliver(request)
    return (time.perf_counter() - begin) / messages * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    best = {}
    for count in (10, 1000):
        build(count)
        measure(100)
        best[count] = min(measure(options.messages) for _ in range(options.rounds))
        print(f"{count:5} routes: {best[count]:6.1f} microseconds a message")
    ratio("a message with 1,000 routes", best[1000], "10 routes", best[10], "<= 2", "us")


if __name__ == "__main__":
    main()
