"""settings.py is what you edit. boot.py makes a running server of it, testing.py makes the tests' surroundings of it."""
