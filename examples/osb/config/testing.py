"""Makes the surroundings of the tests. `nosetests` imports this first, and so does `lamson routes`.

No server is needed. Mail that is sent lands in run/queue at once, the database is in memory, pages go to run/pages.
"""

import logging.config

from config import settings
from lamson import queue, view
from lamson.confirm import ConfirmationEngine
from lamson.database import SQLAlchemyConfirmationStorage, configure_database
from lamson.html import HtmlMail
from lamson.routing import Router
from lamson.testing import QueueRelay

logging.config.fileConfig("config/test_logging.conf", disable_existing_loggers=False)

settings.web_config["folder"] = "run/pages"
settings.relay = QueueRelay("run/queue")
settings.receiver = None
settings.database = configure_database({**settings.database_config, "url": "sqlite://"}, also_create=True)
settings.confirmation = ConfirmationEngine("run/test_pending", SQLAlchemyConfirmationStorage(settings.database))
settings.index_queue = queue.Queue("run/test_posts")
settings.look = HtmlMail("mail/style.css", "mail/page.html")
settings.spam_config.update(db="run/test_spamdb", queue="run/test_spam")

# An error in a handler fails the test, in place of a line in the log and a mail in run/undeliverable.
Router.LOG_EXCEPTIONS = False
Router.UNDELIVERABLE_QUEUE = None

Router.defaults(**settings.router_defaults)
Router.load(settings.handlers)

view.LOADER = view.jinja2_loader(**settings.template_config)
