"""What there is to set, in plain variables. config/boot.py and config/testing.py make the objects out of them."""

import logging

from app.model.tables import metadata

# Where mail goes that you send. `lamson log` plays that server while you develop, and catches the mail in run/queue.
# What that server does not take now waits in the folder 'queue' and is tried again.
relay_config = {"host": "localhost", "port": 8825, "queue": "run/outgoing"}

# Where mail comes in. 'refuse' answers 550 to mail for an address that no handler takes, so that nobody can send spam
# through this server. 'queue' would take such mail and keep it in run/undeliverable. What a handler refuses for now
# (4xx) for one recipient of several waits in the folder 'retry_queue' and is given to it again.
receiver_config = {"host": "localhost", "port": 8823, "unknown_recipients": "refuse", "retry_queue": "run/deferred"}

# The modules that have your handlers. They are tried in this order.
handlers = ["app.handlers.sample"]

# What a capture in a @route looks like, where the @route does not say it: a regular expression for each name.
# Put your own domain in place of test.com.
router_defaults = {"host": r"test\.com|localhost"}

# Templates are in the folder 'module' of the package 'dir'.
template_config = {"dir": "app", "module": "templates"}

# Where states and the tables of app/model are kept, as SQLAlchemy writes it.
database_config = {"metadata": metadata, "url": "sqlite:///app/data/lamson.db", "log_level": logging.WARNING}
