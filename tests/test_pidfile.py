"""Tests for lamson.pidfile: the lock, and not the number in the file, tells whether a server lives."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lamson import pidfile
from lamson.pidfile import PidFile, ServerError, check_for_pid, find_server

HOLDER = """
import sys
from lamson.pidfile import PidFile
with PidFile(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "run" / "smtp.pid")


@pytest.fixture
def holder(path):
    """A process that holds the pid file until its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_held_file_is_found_with_the_process_number(holder, path):
    assert find_server(path).number == holder.pid
    assert Path(path).read_text() == f"{holder.pid}\n"


def test_the_file_is_gone_when_the_holder_ends(holder, path):
    server = find_server(path)
    holder.stdin.close()
    assert server.wait(10)
    assert not os.path.exists(path)
    assert find_server(path) is None


def test_a_missing_file_is_nobodys(path):
    assert find_server(path) is None
    check_for_pid(path, False)


def test_a_file_that_nobody_holds_is_no_obstacle_even_with_the_number_of_a_live_process(path):
    os.makedirs(os.path.dirname(path))
    with open(path, "w") as file:
        file.write(f"{os.getpid()}\n")
    assert find_server(path) is None
    check_for_pid(path, False)
    with PidFile(path) as held:
        assert Path(path).read_text() == f"{os.getpid()}\n"
        assert find_server(path).number == os.getpid()
    held.leave_to_child()
    assert not os.path.exists(path)


def test_a_file_with_rubbish_is_written_anew(path):
    os.makedirs(os.path.dirname(path))
    with open(path, "w") as file:
        file.write("rubbish " * 100)
    with PidFile(path) as held:
        assert Path(path).read_text() == f"{os.getpid()}\n"
    held.leave_to_child()


def test_a_second_holder_is_refused(holder, path, monkeypatch):
    with pytest.raises(ServerError, match="running already"):
        PidFile(path).hold()
    assert find_server(path).number == holder.pid


def test_check_for_pid_refuses_a_live_server_and_names_it(holder, path):
    with pytest.raises(ServerError, match=f"pid {holder.pid} in .*lamson stop"):
        check_for_pid(path, False)


def test_force_removes_the_file_of_a_live_server_which_then_leaves_its_successors_alone(holder, path):
    check_for_pid(path, True)
    assert not os.path.exists(path)
    with PidFile(path) as successor:
        holder.stdin.close()
        holder.wait()
        assert os.path.exists(path)
    successor.leave_to_child()


def test_signals_reach_the_process_and_a_killed_ones_file_is_removed(holder, path):
    server = find_server(path)
    server.signal(KILL=True)
    assert holder.wait() == -signal.SIGKILL
    assert server.wait(10)
    assert not os.path.exists(path)


def test_waiting_ends_after_the_time_given(holder, path):
    server = find_server(path)
    assert not server.wait(0.05)
    assert holder.poll() is None


def test_a_signal_to_a_process_that_has_just_ended_is_no_error(holder, path):
    server = find_server(path)
    holder.stdin.close()
    holder.wait()
    server.signal()
    assert server.wait(0)


def test_the_lock_is_left_to_forked_processes(path):
    held = PidFile(path)
    held.hold()
    copy = os.dup(held.files[0])
    held.leave_to_child()
    assert not pidfile._free(os.open(path, os.O_RDONLY))
    os.close(copy)
    assert find_server(path) is None


def test_a_symbolic_link_is_not_followed(path, tmp_path):
    os.makedirs(os.path.dirname(path))
    precious = tmp_path / "precious"
    precious.write_text("keep")
    os.symlink(precious, path)
    with pytest.raises(OSError):
        PidFile(path).hold()
    assert precious.read_text() == "keep"


def test_kill_reaches_workers_that_have_outlived_the_process_with_the_number(tmp_path):
    path = tmp_path / "smtp.pid"
    script = (
        "import os, sys, time; from lamson.pidfile import PidFile\n"
        "os.setpgrp()\n"
        "with PidFile(sys.argv[1]):\n"
        "    worker = os.fork()\n"
        "    if worker:\n"
        "        print(worker, flush=True); os._exit(0)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    try:
        assert parent.wait(60) == 0  # and nobody has its number any more
        server = find_server(str(path))
        assert server.number == parent.pid
        server.signal(KILL=True)
        assert server.wait(30) and not path.exists()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        parent.stdout.close()
