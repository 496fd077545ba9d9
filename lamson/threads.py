"""Threads that the system may refuse."""

import threading
from collections.abc import Callable
from typing import Any


def beside(func: Callable[[], object]) -> Callable[[], object]:
    """Run ``func()`` in a thread, and return what waits for its end. When there is no thread, it runs in that wait."""
    thread = threading.Thread(target=func)
    try:
        thread.start()
    except RuntimeError:
        return func
    return thread.join


def started(target: Callable[..., None], name: str, *args: Any) -> bool:
    """Start a daemon thread. Returns whether the system has given one."""
    try:
        threading.Thread(target=target, args=args, name=name, daemon=True).start()
    except RuntimeError:
        return False
    return True
