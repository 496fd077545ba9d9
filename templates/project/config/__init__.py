"""settings.py is what you edit. boot.py makes a running server of it, and testing.py what the tests need."""
