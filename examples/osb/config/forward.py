"""Makes a server that gives undeliverable mail away: `lamson start -boot config.forward -pid run/forward.pid`.

That is for mail in run/undeliverable which this application cannot do anything with. The old mail server, which
`relay_config` names, may know its recipients.
"""

import logging.config

from config import settings
from lamson.routing import Router
from lamson.server import QueueReceiver, Relay

logging.config.fileConfig("config/logging.conf", disable_existing_loggers=False)

settings.relay = Relay(settings.relay_config["host"], settings.relay_config["port"])
settings.receiver = QueueReceiver("run/undeliverable")

Router.load(["lamson.handlers.forward"])

# What the other server does not take comes back, and is tried again.
Router.UNDELIVERABLE_QUEUE = settings.receiver.queue
