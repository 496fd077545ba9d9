"""Makes the server of config/settings.py. `lamson start` imports this, in the project's folder."""

import logging.config

from config import settings
from lamson import queue, view
from lamson.database import SQLAlchemyStorage, configure_database
from lamson.routing import Router
from lamson.server import Relay, SMTPReceiver

logging.config.fileConfig("config/logging.conf", disable_existing_loggers=False)

# These come first: handlers write `from config.settings import relay`, so it has to be there when they are loaded.
settings.relay = Relay(**settings.relay_config)
settings.receiver = SMTPReceiver(**settings.receiver_config)
settings.database = configure_database(settings.database_config)

Router.defaults(**settings.router_defaults)
Router.load(settings.handlers)

# True looks for changed handlers before every mail. `lamson start -debug` does so anyway.
Router.RELOAD = False

# Which state each sender is in, also after a restart.
Router.STATE_STORE = SQLAlchemyStorage(settings.database)

# Where mail goes that a handler failed on. `lamson queue -name run/undeliverable -keys` lists it.
Router.UNDELIVERABLE_QUEUE = queue.Queue("run/undeliverable")

view.LOADER = view.jinja2_loader(**settings.template_config)
