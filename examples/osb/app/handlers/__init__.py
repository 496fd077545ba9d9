"""Handler modules. `handlers` in config/settings.py are the mail server's, `queue_handlers` those of the index."""
