"""Handler modules. Those that `handlers` in config/settings.py names are loaded, in that order."""
