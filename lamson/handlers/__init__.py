"""Handler modules that come with Lamson: name them in ``handlers`` of ``config/settings.py`` like your own."""
