"""settings.py is what you edit. boot.py, queue.py and forward.py make servers of it, testing.py what the tests need."""
