"""Tests for lamson.servercommands: real servers, in projects made by `lamson gen`."""

import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from smtplib import SMTP

import pytest

from commandline import LAMSON, deliver, handler, kill_servers, make_project, refused, run, set_port, start
from lamson import commands, pidfile, servercommands
from lamson.mail import MailRequest
from lamson.pidfile import find_server
from lamson.queue import Queue
from processes import alive, eventually


@pytest.fixture
def open_project(monkeypatch):
    """As `project`, and every user can get there: pytest's folders are for their owner only."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.chdir(folder)
        yield make_project(Path(folder), monkeypatch)
        kill_servers(Path(folder))
        monkeypatch.undo()


# --- start, status, stop, restart ---------------------------------------------------------------------------------


def test_a_server_starts_listens_is_found_and_stops(project):
    port, pid = start()
    assert Path("run/smtp.pid").read_text() == f"{pid}\n"
    with SMTP("127.0.0.1", port) as client:
        assert client.noop()[0] == 250
    assert run("status").stdout == f"Lamson is running, pid {pid} (./run/smtp.pid).\n"
    assert run("stop").stdout == f"Stopped pid {pid} (./run/smtp.pid).\n"
    assert not alive(pid)
    assert not Path("run/smtp.pid").exists()
    assert "not running" in refused("status")
    assert "nothing to stop" in refused("stop")


def test_start_takes_no_output_of_the_terminal_with_it(project):
    # With pipes, run() would wait for as long as the server has them open.
    port, pid = start()
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert os.readlink(f"/proc/{pid}/fd/1") == str(project / "logs/lamson.out")
    assert os.readlink(f"/proc/{pid}/fd/2") == str(project / "logs/lamson.err")


def test_start_outside_of_a_project_is_refused(folder):
    assert f"there is no {folder}/config. Go to your project's folder, or make one: lamson gen" in refused("start")
    assert list(folder.iterdir()) == []


def test_start_in_a_folder_that_is_not_there_is_refused(folder):
    assert "there is no" in refused("start", "-chdir", "nowhere")
    assert f"There is no folder {folder}/nowhere" in refused("log", "-chdir", "nowhere")


def test_start_is_refused_when_the_port_is_taken(project):
    with socket.create_server(("127.0.0.1", 0)) as other:
        set_port(other.getsockname()[1])
        said = refused("start")
        assert f"cannot listen on localhost:{other.getsockname()[1]}: Address already in use" in said
    assert not Path("run/smtp.pid").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\nimport nonexistent_thing\n", "app/handlers/sample.py:2: ModuleNotFoundError: No module named"),
        ("x = 1\n\ndef START(:\n", "app/handlers/sample.py:3: SyntaxError: invalid syntax"),
        (
            "from lamson.routing import route\n@route('(new)@x')\ndef START(message): pass\n",
            "sample.py:2: RoutingError: ",
        ),
        ("raise SystemExit('no secret')\n", "app/handlers/sample.py:1: SystemExit: no secret"),
    ],
)
def test_start_is_refused_with_file_and_line_when_a_handler_cannot_be_imported(project, text, words):
    Path("app/handlers/sample.py").write_text(text)
    assert words in refused("start")
    assert not Path("run/smtp.pid").exists()
    assert "Traceback" in Path("logs/lamson.log").read_text() + Path("logs/lamson.err").read_text()


def test_start_is_refused_when_boot_makes_no_receiver(project):
    Path("config/empty.py").write_text("")
    assert "settings.receiver" in refused("start", "-boot", "config.empty")


def test_start_is_refused_when_the_states_have_no_place(project):
    (project / "app/data").rename(project / "app/elsewhere")
    assert f"The state storage cannot be prepared as user {os.geteuid()}: There is no folder" in refused("start")


def test_start_tells_when_the_process_dies_without_a_word(project):
    Path("config/boot.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert "ended before it listened" in refused("start")
    assert "left over from a server that has died" in refused("status")


def test_ctrl_c_while_the_server_is_starting_ends_it(project):
    os.mkfifo("run/gate")
    Path("config/slow.py").write_text('open("run/gate").read()\n')
    with subprocess.Popen([*LAMSON, "start", "-boot", "config.slow"], stderr=subprocess.PIPE) as starting:
        eventually(lambda: find_server("run/smtp.pid"), "a pid file")
        server = find_server("run/smtp.pid")
        starting.send_signal(signal.SIGINT)
        try:
            _, errors = starting.communicate(timeout=30)
        finally:
            starting.kill()  # it has ended, or it never would
    assert errors == b""
    assert starting.returncode == 130
    assert server.wait(10)


def test_start_is_refused_where_its_files_cannot_be_written(project):
    Path("run/smtp.pid").mkdir()
    assert f"{project}/run/smtp.pid: Is a directory" in refused("start")
    Path("logs/lamson.err").mkdir()
    assert f"{project}/logs/lamson.err: Is a directory" in refused("start", "-pid", "run/other.pid")
    assert not Path("run/other.pid").exists()


def test_a_second_start_is_refused_and_names_the_first(project):
    port, pid = start()
    assert f"A server is running already, pid {pid} in" in refused("start")
    assert alive(pid)


def test_a_stale_pid_file_blocks_nothing_even_with_the_number_of_a_live_process(project):
    Path("run/smtp.pid").write_text(f"{os.getpid()}\n")
    assert "left over from a server that has died" in refused("status")
    assert "nothing to stop" in refused("stop")
    port, pid = start()
    assert Path("run/smtp.pid").read_text() == f"{pid}\n"


def test_start_with_force_starts_another_one(project):
    _, first = start()
    _, second = start("-FORCE")
    assert alive(first) and alive(second)
    os.kill(first, signal.SIGTERM)
    eventually(lambda: not alive(first), "the end of the first server")
    assert run("status").stdout == f"Lamson is running, pid {second} (./run/smtp.pid).\n"


def test_start_in_another_folder_counts_the_pid_file_from_there(project, monkeypatch):
    monkeypatch.chdir("/")
    port, pid = start("-chdir", str(project), "-pid", "run/other.pid")
    assert (project / "run/other.pid").read_text() == f"{pid}\n"
    assert os.readlink(f"/proc/{pid}/cwd") == str(project)
    run("stop", "-pid", str(project / "run/other.pid"))


def test_the_umask_of_the_server_is_that_of_the_starter_or_the_one_given(project):
    for options, expected in (([], "0022"), (["-umask", "027"], "0027")):
        before = os.umask(0o022)
        try:
            _, pid = start(*options)
        finally:
            os.umask(before)
        assert f"Umask:\t{expected}\n" in Path(f"/proc/{pid}/status").read_text()
        run("stop")


def test_what_handlers_print_is_in_the_logs(project):
    handler('print("printed", flush=False)')
    port, _ = start()
    deliver(port)
    assert Path("logs/lamson.out").read_text() == "printed\n"


def test_stop_lets_the_server_finish_what_it_is_handling(project):
    os.mkfifo("run/entered")
    os.mkfifo("run/gate")
    handler('open("run/entered", "w").close()\nopen("run/gate").read()\nopen("run/handled", "w").close()')
    port, pid = start()
    client = SMTP("127.0.0.1", port, timeout=60)
    answers = []
    sending = threading.Thread(
        target=lambda: answers.append(client.sendmail("me@mydomain.com", ["test@test.com"], "Subject: hello\n\nHi.\n"))
    )
    sending.start()
    Path("run/entered").read_text()
    with subprocess.Popen([*LAMSON, "stop"], stdout=subprocess.PIPE, text=True) as stopping:
        eventually(lambda: "stopping:" in Path("logs/lamson.log").read_text(), "stopping: in the log")
        assert stopping.poll() is None
        assert alive(pid)
        Path("run/gate").write_text("go on")
        assert stopping.stdout.read() == f"Stopped pid {pid} (./run/smtp.pid).\n"
        assert stopping.wait() == 0
    sending.join()
    client.close()
    assert answers == [{}]  # 250: nobody was refused
    assert Path("run/handled").exists()
    assert not alive(pid)


def test_a_server_that_does_not_finish_in_time_is_told_of_and_can_be_killed(project, monkeypatch, capsys):
    os.mkfifo("run/entered")
    os.mkfifo("run/gate")
    handler('open("run/entered", "w").close()\nopen("run/gate").read()')
    port, pid = start()
    client = threading.Thread(target=lambda: pytest.raises(OSError, deliver, port))
    client.start()
    Path("run/entered").read_text()
    monkeypatch.setattr(pidfile, "STOP_TIME", 0.1)
    with pytest.raises(SystemExit) as caught:
        commands.stop_command()
    assert caught.value.code == 1
    assert f"pid {pid} (./run/smtp.pid) is still busy" in (said := capsys.readouterr().err)
    assert "lamson stop -KILL" in said
    assert alive(pid)
    assert run("stop", "-KILL").stdout == f"Stopped pid {pid} (./run/smtp.pid).\n"
    client.join()
    assert not alive(pid)
    assert not Path("run/smtp.pid").exists()


def test_stop_all_stops_every_server_with_a_pid_file_in_the_folder(project):
    _, first = start()
    _, second = start("-port", "0", command="log")
    Path("run/stale.pid").write_text("1\n")
    said = run("stop", "-ALL", "run").stdout
    assert sorted(said.splitlines()) == sorted(
        [f"Stopped pid {first} (run/smtp.pid).", f"Stopped pid {second} (run/log.pid)."]
    )
    assert not alive(first) and not alive(second)
    assert run("stop", "-ALL", "run").stdout == "Nothing was running in run.\n"
    assert "there is no folder nowhere" in refused("stop", "-ALL", "nowhere")


def test_restart_stops_the_server_and_starts_it(project):
    _, first = start()
    _, second = start(command="restart")
    assert first != second
    assert not alive(first) and alive(second)


def test_restart_starts_a_server_that_was_not_running(project):
    _, pid = start(command="restart")
    assert alive(pid)


def test_the_state_of_a_sender_survives_a_restart(project):
    handler("pass")
    with open("app/handlers/sample.py", "a") as file:
        file.write(
            '\n@route("first@(host)")\ndef FIRST(message, host=None): pass\n'
            '\n@route("(address)@(host)", address="chat")\n'
            'def START(message, address=None, host=None):\n    print("met")\n    return KNOWN\n'
            '\n@route("(address)@(host)", address="chat")\n'
            'def KNOWN(message, address=None, host=None):\n    print("knew")\n'
        )
    port, _ = start()
    deliver(port, to="chat@test.com")
    port, _ = start(command="restart")
    deliver(port, to="chat@test.com")
    assert Path("logs/lamson.out").read_text() == "met\nknew\n"


def debugging(*argv):
    """Start a server in the foreground; its log comes on stderr."""
    return subprocess.Popen([*LAMSON, *argv, "-debug"], stderr=subprocess.PIPE, text=True)


def read_until(stream, words):
    seen = ""
    for line in stream:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"{words!r} did not come: {seen}")


def test_debug_stays_in_the_foreground_logs_to_the_terminal_and_ends_cleanly_on_ctrl_c(project):
    with debugging("start") as server:
        said = read_until(server.stderr, "started:")
        port = int(re.search(r"started: \S+:(\d+)", said)[1])
        assert find_server("run/smtp.pid").number == server.pid
        deliver(port)
        read_until(server.stderr, "received:")
        server.send_signal(signal.SIGINT)
        server.communicate()
        assert server.wait() == 0
    assert not Path("run/smtp.pid").exists()
    assert "received:" in Path("logs/lamson.log").read_text()


def test_debug_loads_a_handler_again_when_it_changes(project):
    handler('print("first", file=open("run/said", "a"))')
    with debugging("start") as server:
        port = int(re.search(r"started: \S+:(\d+)", read_until(server.stderr, "started:"))[1])
        deliver(port)
        handler('print("second one", file=open("run/said", "a"))')
        deliver(port)
        server.terminate()
        server.communicate()
        assert server.returncode == 0
    assert Path("run/said").read_text() == "first\nsecond one\n"


def test_debug_shows_the_traceback_of_what_stops_the_start(project):
    Path("app/handlers/sample.py").write_text("import nonexistent_thing\n")
    done = subprocess.run([*LAMSON, "start", "-debug"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("lamson: app/handlers/sample.py:1: ModuleNotFoundError:")


def test_a_queue_receiver_can_be_started_and_stopped(project):
    handler('print(message["subject"])')
    Path("config/queued.py").write_text(
        "from config import boot, settings\nfrom lamson.server import QueueReceiver\n"
        'settings.receiver = QueueReceiver("run/inbox", sleep=0.01)\n'
    )
    Queue("run/inbox").push(MailRequest("test", "me@mydomain.com", ["test@test.com"], b"Subject: hello\n\nHi.\n"))
    said = run("start", "-boot", "config.queued").stdout
    assert said.startswith("Lamson listens on queue run/inbox, pid ")
    eventually(lambda: Queue("run/inbox").count() == 0, "an empty queue")
    run("stop")
    assert Path("logs/lamson.out").read_text() == "hello\n"


@pytest.mark.parametrize("error", ["RuntimeError", "SystemExit"])
def test_a_server_whose_receiver_ends_says_so_and_ends(project, error):
    Path("config/broken.py").write_text(
        "from config import boot, settings\nfrom lamson.server import QueueReceiver\n\n"
        f"class Broken(QueueReceiver):\n    def start(self):\n        raise {error}('is broken')\n\n"
        "settings.receiver = Broken('run/inbox')\n"
    )
    run("start", "-boot", "config.broken")
    eventually(lambda: find_server("run/smtp.pid") is None, "the end of the server")
    log = Path("logs/lamson.log").read_text()
    assert "failed: the receiver has ended" in log and f"{error}: is broken" in log


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may bind low ports and change users")


def low_port():
    for port in range(1023, 600, -1):
        try:
            with socket.create_server(("127.0.0.1", port)):
                return port
        except OSError:
            continue
    pytest.skip("no port below 1024 is free")


@needs_root
def test_privileges_are_dropped_after_a_low_port_is_bound(open_project):
    set_port(low_port())
    handler("raise RuntimeError")
    for path in [open_project, *open_project.rglob("*")]:
        os.chown(path, 65534, 65534)
    Queue("run/left-by-root")
    port, pid = start("-uid", "nobody", "-gid", "65534")
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534\n" in status
    assert "Gid:\t65534\t65534\t65534\t65534\n" in status
    assert re.search(r"Groups:\s*65534\s*\n", status)
    for path in (
        "run/smtp.pid",
        "logs/lamson.log",
        "run/undeliverable/new",
        "run/left-by-root",
        "app/data/lamson.db",
    ):
        assert (Path(path).stat().st_uid, path) == (65534, path)
    deliver(port)
    assert Queue("run/undeliverable").count() == 1
    run("stop")
    assert not alive(pid)
    assert not Path("run/smtp.pid").exists()


@needs_root
def test_dropping_privileges_without_a_place_to_write_is_refused(open_project):
    assert "The state storage cannot be prepared as user 65534" in refused("start", "-uid", "nobody")
    os.chown("app/data", 65534, 65534)
    assert "User 65534 may not write to run/undeliverable" in refused("start", "-uid", "nobody")
    assert find_server("run/smtp.pid") is None


def test_a_user_that_does_not_exist_is_refused(project):
    assert "There is no user no-such-user" in refused("start", "-uid", "no-such-user")


@needs_root
def test_a_server_runs_inside_a_chroot(project):
    port, pid = start("-chroot", "/", "-chdir", str(project).lstrip("/"))
    assert os.readlink(f"/proc/{pid}/cwd") == str(project)
    assert Path("run/smtp.pid").read_text() == f"{pid}\n"
    deliver(port)
    start("-chroot", "/", "-chdir", str(project), command="restart")
    assert not alive(pid)


@needs_root
def test_a_chroot_without_python_in_it_is_refused(project):
    assert "lamson" in refused("start", "-chroot", ".")
    assert find_server("run/smtp.pid") is None


# --- log ----------------------------------------------------------------------------------------------------------


def test_the_log_server_needs_no_project(folder):
    port, pid = start("-port", "0", command="log")
    deliver(port, to="anybody@anywhere.example")
    assert Path("run/log.pid").read_text() == f"{pid}\n"
    mails = Queue("run/queue")
    assert mails.count() == 1
    message = mails.get(mails.keys()[0])
    assert (message.From, message.To) == ("me@mydomain.com", ["anybody@anywhere.example"])
    run("stop", "-pid", "run/log.pid")
    assert sorted(os.listdir()) == ["run"]


def test_the_log_server_logs_where_there_is_a_folder_for_it_and_queues_where_it_is_told(folder):
    (folder / "logs").mkdir()
    port, _ = start("-port", "0", "-queue", "run/other", command="log")
    deliver(port)
    assert Queue("run/other").count() == 1
    assert not Path("run/queue").exists()
    assert "test@test.com" in Path("logs/logger.log").read_text()


def test_the_log_server_debugs_in_the_foreground(folder):
    with debugging("log", "-port", "0") as server:
        port = int(re.search(r"started: \S+:(\d+)", read_until(server.stderr, "started:"))[1])
        deliver(port)
        read_until(server.stderr, "test@test.com")
        server.send_signal(signal.SIGINT)
        server.communicate()
        assert server.returncode == 0


def test_the_log_server_says_when_the_projects_mail_goes_to_another_port(project):
    said = run("log", "-port", "0").stdout
    assert "config/settings.py relays to port 8825" in said
    assert "Give relay_config the port 0" in said
    run("stop", "-pid", "run/log.pid")
    set_port(0, "relay_config")
    assert "Note" not in run("log", "-port", "0").stdout


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("relay_config = {'host': 'localhost', 'port': 25}\n", 25),
        ("relay_config = {'port': 25}\nrelay_config = {'port': 26}\n", 26),
        ("relay_config = dict(port=25)\n", None),
        ("relay_config = {'port': PORT}\n", None),
        ("relay_config = 25\n", None),
        ("relay_config = {'port': '25'}\n", None),
        ("other = {'port': 25}\n", None),
        ("def broken(:\n", None),
        ("x = '\0'\n", None),
        ("raise SystemExit\nrelay_config = {'port': 25}\n", 25),
    ],
)
def test_the_relays_port_is_read_without_running_the_settings(folder, text, port):
    Path("settings.py").write_text(text)
    assert servercommands._relay_port("settings.py") == port


def test_no_settings_have_no_relay_port(folder):
    assert servercommands._relay_port("settings.py") is None
