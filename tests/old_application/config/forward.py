# Gives what no handler could handle to the mail server: lamson start -boot config.forward -pid run/forward.pid

from config import settings
from lamson.routing import Router
from lamson.server import Relay, QueueReceiver
import logging
import logging.config

logging.config.fileConfig("config/logging.conf")

settings.relay = Relay(host=settings.relay_config['host'], port=settings.relay_config['port'])

settings.receiver = QueueReceiver("run/undeliverable", 1)

Router.load(['lamson.handlers.forward'])
