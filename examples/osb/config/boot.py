"""Makes the mail server: `lamson start`. It takes posts, comments, answers and bounces."""

import logging.config

from config import settings
from lamson import queue, view
from lamson.confirm import ConfirmationEngine
from lamson.database import SQLAlchemyConfirmationStorage, SQLAlchemyStorage, configure_database
from lamson.html import HtmlMail
from lamson.routing import Router
from lamson.server import Relay, SMTPReceiver

logging.config.fileConfig("config/logging.conf", disable_existing_loggers=False)

# These come first: handlers import them from config.settings, so they have to be there when handlers are loaded.
settings.relay = Relay(**settings.relay_config)
settings.receiver = SMTPReceiver(**settings.receiver_config)
settings.database = configure_database(settings.database_config)
settings.confirmation = ConfirmationEngine("run/pending", SQLAlchemyConfirmationStorage(settings.database))
settings.index_queue = queue.Queue(settings.queue_config["queue_dir"])
settings.look = HtmlMail("mail/style.css", "mail/page.html")

Router.defaults(**settings.router_defaults)
Router.load(settings.handlers)
Router.STATE_STORE = SQLAlchemyStorage(settings.database)

# Where mail goes that a handler failed on.
Router.UNDELIVERABLE_QUEUE = queue.Queue("run/undeliverable")

view.LOADER = view.jinja2_loader(**settings.template_config)
