"""Whether a thread waits for a processor that others have, or for something else.

    delay = RunDelay()  # in the thread that it is about
    delay.seconds()  # for how long it has been ready to run while others ran
    delay.is_ready()  # whether it would run now, or does

Linux counts the first, in nanoseconds and when such a wait ends: the second number of
``/proc/self/task/ID/schedstat`` (Documentation/scheduler/sched-stats.rst). The second is the state ``R`` in ``stat``
beside it (proc_pid_stat(5)). Where nobody says so it is 0, and False.
"""

import contextlib
import os
import threading


class RunDelay:
    """Of the thread that makes it; other threads may ask as well. After `close` nothing is counted."""

    def __init__(self) -> None:
        self._folder = f"/proc/self/task/{threading.get_native_id()}"
        self._descriptor: int | None = None
        # An error: it is another system, or there are no descriptors left, and mail is to be handled all the same.
        with contextlib.suppress(OSError):
            self._descriptor = os.open(f"{self._folder}/schedstat", os.O_RDONLY)

    def seconds(self) -> float:
        """Return how long that has been in the thread's whole life, without a wait that is going on."""
        if self._descriptor is not None:
            # A handler that closes what is not its own may have closed this, and opened another file in its place.
            with contextlib.suppress(OSError, ValueError, IndexError):
                return int(os.pread(self._descriptor, 80, 0).split()[1]) / 1e9
        return 0.0

    def is_ready(self) -> bool:
        """Return whether it is ready to run, or runs, at this moment."""
        with contextlib.suppress(OSError), open(f"{self._folder}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].startswith(b"R")
        return False

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
