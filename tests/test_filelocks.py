"""Locks between processes: one holds, the others wait, and a process that dies gives back what it held."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lamson import filelocks
from lamson.filelocks import FileLocks, FlockLocks, file_locks

HERE = Path(__file__).parent.parent
KINDS = [
    pytest.param(FileLocks, marks=pytest.mark.skipif(not hasattr(fcntl, "F_OFD_SETLKW"), reason="needs Linux")),
    FlockLocks,
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def start(kind, path, code):
    """A process in which `locks` are those of `path`; it stops where it says input()."""
    setup = f"import os, sys; from lamson.filelocks import *; locks = {kind.__name__}(lambda: sys.argv[1]); "
    return subprocess.Popen(
        [sys.executable, "-c", setup + code, str(path)],
        cwd=HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def is_held(kind, path, number):
    """Whether somebody holds the lock, asked with a descriptor of our own and without waiting."""
    if kind is FileLocks:
        with open(path, "rb+") as file:
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, filelocks._range(fcntl.F_WRLCK, number))
            except BlockingIOError:
                return True
    else:
        with open(f"{path}.{number}", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def test_a_lock_is_held_until_it_is_given_back_and_others_are_not(kind, tmp_path):
    path = tmp_path / "locks"
    locks = kind(lambda: str(path))
    for number in (7, 8):
        locks.acquire(number)
    locks.release(8)
    assert (is_held(kind, path, 7), is_held(kind, path, 8)) == (True, False)
    locks.release(7)
    assert not is_held(kind, path, 7)


def test_the_largest_number_is_a_lock_like_every_other(kind, tmp_path):
    path = tmp_path / "locks"
    locks = kind(lambda: str(path))
    locks.acquire(kind.count - 1)
    assert is_held(kind, path, kind.count - 1)
    locks.release(kind.count - 1)
    assert not is_held(kind, path, kind.count - 1)


def test_four_processes_count_to_four_hundred(kind, tmp_path):
    count = tmp_path / "count"
    count.write_text("0")
    code = (
        "input()\n"
        "for _ in range(100):\n"
        "    locks.acquire(5)\n"
        "    number = int(open(sys.argv[1] + '/../count').read())\n"
        "    open(sys.argv[1] + '/../count', 'w').write(str(number + 1))\n"
        "    locks.release(5)\n"
    )
    (tmp_path / "locks").mkdir()
    path = tmp_path / "locks" if kind is FlockLocks else tmp_path / "locks/file"
    code = code.replace("sys.argv[1] + '/../count'", repr(str(count)))
    processes = [start(kind, path, "\n" + code) for _ in range(4)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(60) for process in processes] == [0] * 4
    for process in processes:
        process.communicate()
    assert count.read_text() == "400"


def test_a_process_that_is_killed_holds_nothing(kind, tmp_path):
    path = tmp_path / "locks"
    process = start(kind, path, "locks.acquire(5); print('held', flush=True); input()")
    assert process.stdout.readline() == "held\n"
    assert is_held(kind, path, 5)
    process.kill()
    process.communicate()
    assert not is_held(kind, path, 5)


def test_a_child_does_not_hold_what_its_parent_held_when_that_is_killed(kind, tmp_path):
    path = tmp_path / "locks"
    code = "locks.acquire(5); child = os.fork(); os.write(1, b'held\\n' if child else b'child\\n'); input()"
    process = start(kind, path, code)
    assert {process.stdout.readline(), process.stdout.readline()} == {"held\n", "child\n"}
    assert is_held(kind, path, 5), "the child gave away what the parent holds"
    process.kill()
    process.wait()
    assert not is_held(kind, path, 5)
    process.stdin.write("\n")  # the child still waits for it
    process.communicate()


def test_a_child_takes_locks_of_its_own(kind, tmp_path):
    path = tmp_path / "locks"
    locks = kind(lambda: str(path))
    locks.acquire(5)
    child = os.fork()
    if not child:
        try:
            locks.release(5)  # a block that it left
            locks.acquire(6)
            os._exit(0 if is_held(kind, path, 6) and is_held(kind, path, 5) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_held(kind, path, 5)
    assert not is_held(kind, path, 6)
    locks.release(5)


def test_a_lock_that_cannot_be_had_is_an_error(kind, tmp_path):
    with pytest.raises(FileNotFoundError):
        kind(lambda: str(tmp_path / "nowhere/locks")).acquire(1)


def test_a_system_without_locks_of_descriptions_gets_the_other_ones(monkeypatch):
    assert isinstance(file_locks(str), FileLocks if hasattr(fcntl, "F_OFD_SETLKW") else FlockLocks)
    monkeypatch.setattr(filelocks, "_OFD_SETLKW", None)
    assert isinstance(file_locks(str), FlockLocks)
