"""A whole mail application in one file, without a project: it answers every mail with the mail's own text.

    python examples/echo.py 8823 8825       # takes mail at port 8823, sends its answers to the server at port 8825

For more than trying things, `lamson gen -project NAME` makes a project with settings, logs, tests and a daemon.
"""

import sys
import threading

from lamson.routing import Router, route, stateless
from lamson.server import Relay, SMTPReceiver

Router.defaults(host=r"localhost|test\.com")


def serve(port, relay_port):
    relay = Relay("127.0.0.1", relay_port)

    @route("(anything)@(host)", anything=".+")
    @stateless
    def ECHO(message, anything=None, host=None):
        if not message.is_auto_reply():  # two of us would go on for ever
            relay.deliver(message.reply(Body=message.text()))

    receiver = SMTPReceiver("127.0.0.1", port, unknown_recipients="refuse")
    receiver.start()
    return receiver


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
    threading.Event().wait()
