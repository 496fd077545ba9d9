"""Makes the surroundings of the tests. `nosetests` imports this first, and so does `lamson routes`.

Tests need no server and leave nothing behind but what came out in run/queue: mail that is sent lands there at once,
and states and tables are in memory.
"""

import logging.config

from config import settings
from lamson import view
from lamson.database import configure_database
from lamson.routing import Router
from lamson.testing import QueueRelay

logging.config.fileConfig("config/test_logging.conf", disable_existing_loggers=False)

settings.relay = QueueRelay("run/queue")
settings.receiver = None
settings.database = configure_database({**settings.database_config, "url": "sqlite://"}, also_create=True)

# An error in a handler fails the test, in place of a line in the log and a mail in run/undeliverable.
Router.LOG_EXCEPTIONS = False
Router.UNDELIVERABLE_QUEUE = None

Router.defaults(**settings.router_defaults)
Router.load(settings.handlers)
Router.RELOAD = False

view.LOADER = view.jinja2_loader(**settings.template_config)
