"""How long a thread has been ready to run while others ran: what tells it from one that waits for something.

    delay = RunDelay()  # in the thread that it is about
    delay.seconds()

Linux counts it for each thread, in nanoseconds: the second number of ``/proc/self/task/ID/schedstat``
(Documentation/scheduler/sched-stats.rst). Where nobody counts, it is 0.
"""

import contextlib
import os
import threading


class RunDelay:
    """Of the thread that makes it. `seconds` may be called from any thread, and is 0 after `close`."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        # An error: it is another system, or there are no descriptors left, and mail is to be handled all the same.
        with contextlib.suppress(OSError):
            self._descriptor = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    def seconds(self) -> float:
        """Return how long that has been, in the thread's whole life."""
        if self._descriptor is None:
            return 0.0
        return int(os.pread(self._descriptor, 80, 0).split()[1]) / 1e9

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
