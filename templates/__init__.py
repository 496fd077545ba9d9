"""What `lamson gen` copies. Installed as the package `lamson.templates`."""
