"""Makes the server that writes the index: `lamson start -boot config.queue -pid run/queue.pid`.

It has no port. It takes what the mail server has put into run/posts.
"""

import logging.config

from app.model import pages

from config import settings
from lamson import queue, view
from lamson.database import configure_database
from lamson.routing import Router
from lamson.server import QueueReceiver

logging.config.fileConfig("config/logging.conf", disable_existing_loggers=False)

settings.receiver = QueueReceiver(**settings.queue_config)
settings.database = configure_database(settings.database_config)

Router.load(settings.queue_handlers)

# A folder of its own, since the mail server's handlers would take what is in there for a new post:
# `lamson queue -name run/unindexed -boot config.queue -retry ALL` gives it to those of the index.
Router.UNDELIVERABLE_QUEUE = queue.Queue("run/unindexed")

view.LOADER = view.jinja2_loader(**settings.template_config)

# So that there is something to see before the first post, and after the template was changed.
pages.write_index()
