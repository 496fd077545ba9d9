"""What there is to set, in plain variables. The other files in config/ make the objects out of them."""

import logging

from app.model.tables import metadata

# Where mail goes that we send. `lamson log` plays that server while you develop, and catches the mail in run/queue.
# What that server does not take now waits in the folder 'queue' and is tried again.
relay_config = {"host": "localhost", "port": 8825, "queue": "run/outgoing"}

# Where mail comes in. Mail to an address that no handler takes is refused. What a handler refuses for now waits in the
# folder 'retry_queue' when it cannot be left to the client.
receiver_config = {"host": "localhost", "port": 8823, "unknown_recipients": "refuse", "retry_queue": "run/deferred"}

# The handlers of the mail server, in the order in which they are tried, and those of the server for the index.
handlers = ["app.handlers.post", "app.handlers.comment", "app.handlers.bounce"]
queue_handlers = ["app.handlers.index"]

# Posts wait here for the server that writes the index, which looks every `sleep` seconds.
queue_config = {"queue_dir": "run/posts", "sleep": 1}

# What a capture in a @route looks like. A post's name has no hyphen, so that name-delete is never taken for one.
router_defaults = {
    "host": r"oneshotblog\.test|localhost",
    "post_name": "[a-z0-9._]{1,40}",
    "post_id": "[0-9a-f]{10}",
    "id_number": "[a-z0-9]+",
}

# Templates are in the folder 'module' of the package 'dir'.
template_config = {"dir": "app", "module": "templates"}

# Posts, comments, states and confirmations. Not in app/data, which the whole world may read.
database_config = {"metadata": metadata, "url": "sqlite:///run/osb.db", "log_level": logging.WARNING}

# Where pages are written, where browsers find that folder, and the host in the address that the index asks people to
# write to.
web_config = {"folder": "app/data", "url": "http://localhost:8888", "host": "localhost"}

# What has been learned of spam (`lamson train`), SpamBayes options, and where spam goes.
spam_config = {"db": "run/spamdb", "rc": "config/hammierc", "queue": "run/spam"}
