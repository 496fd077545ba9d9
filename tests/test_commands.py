"""Tests for lamson.commands and the command line: real processes, in projects made by `lamson gen`."""

import asyncio
import mailbox
import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from smtplib import SMTP

import pytest
from aiosmtpd.smtp import SMTP as SMTPServer
from aiosmtpd.smtp import AuthResult

import lamson
from lamson import args, commands, pidfile, servercommands, terminal
from lamson.mail import MailRequest
from lamson.outgoing import RetryQueue
from lamson.pidfile import find_server
from lamson.queue import Queue
from sink import Sink

# As the console command is, and unlike -m alone, -P leaves the current folder out of the import path.
LAMSON = [sys.executable, "-P", "-m", "lamson"]
OPTIONS = {
    "blast": "input host port debug",
    "classify": "db config input clues",
    "cleanse": "input output",
    "gen": "project FORCE",
    "help": "for",
    "log": "port host chroot chdir uid gid umask pid FORCE debug queue",
    "queue": "pop get keys remove count clear list retry boot name",
    "restart": "pid KILL ALL FORCE chroot chdir boot uid gid umask debug workers",
    "routes": "path test TRAILING",
    "send": "port host username password ssl starttls debug sender to subject body attach",
    "sendmail": "port host debug TRAILING f t",
    "start": "pid FORCE chroot chdir boot uid gid umask debug workers",
    "status": "pid",
    "stop": "pid KILL ALL",
    "syncdb": "",
    "train": "ham spam db untrain spambayes",
    "version": "",
    "web": "basedir port host",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of a test."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    kill_servers(tmp_path)


@pytest.fixture
def project(folder, monkeypatch):
    """A new project whose server takes any free port, and which is the current folder."""
    return make_project(folder, monkeypatch)


@pytest.fixture
def open_project(monkeypatch):
    """As `project`, and every user can get there: pytest's folders are for their owner only."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.chdir(folder)
        yield make_project(Path(folder), monkeypatch)
        kill_servers(Path(folder))
        monkeypatch.undo()


def make_project(folder, monkeypatch):
    assert run("gen", "-project", "mymailserver").returncode == 0
    monkeypatch.chdir(folder / "mymailserver")
    set_port(0)
    return folder / "mymailserver"


def kill_servers(folder):
    for path in folder.rglob("*.pid"):
        server = find_server(str(path))
        if server is not None:
            server.signal(KILL=True)
            assert server.wait(10)


def run(*argv, code=0, **options):
    """Run one command line, check its exit code, and return the finished process."""
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    done = subprocess.run([*LAMSON, *argv], **options)
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in (done.stderr if isinstance(done.stderr, str) else done.stderr.decode())
    return done


def refused(*argv, code=1, **options):
    """Run a command line that is refused, and return the one line that says why."""
    lines = run(*argv, code=code, **options).stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("lamson"), lines
    return lines[0]


def set_port(port, name="receiver_config"):
    path = Path("config/settings.py")
    text, count = re.subn(rf'(?m)^({name} = .*"port": )\d+', rf"\g<1>{port}", path.read_text())
    assert count == 1
    path.write_text(text)


def start(*argv, command="start"):
    """Start a server and return its port and pid."""
    said = run(command, *argv).stdout
    found = re.search(r"listens on \S+:(\d+), pid (\d+)\.$", said)
    assert found, said
    return int(found[1]), int(found[2])


def handler(text):
    """Make `text` the body of the project's only function, which runs for every mail."""
    body = "".join(f"    {line}\n" for line in text.splitlines())
    Path("app/handlers/sample.py").write_text(
        "from lamson.routing import route, stateless\n\n"
        '@route("(address)@(host)", address=".+")\n@stateless\n'
        f"def START(message, address=None, host=None):\n{body}"
    )


def deliver(port, body="Hi there.", to="test@test.com"):
    with SMTP("127.0.0.1", port, timeout=60) as client:
        client.sendmail("me@mydomain.com", [to], f"Subject: hello\r\n\r\n{body}\r\n")


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


class Catcher:
    """A mail server in a thread, for clients to talk to. `mails` has what it was given."""

    def __init__(self, **options):
        self.mails = []
        self.logins = []
        self.answers = {}  # what to say to a recipient
        self.loop = asyncio.new_event_loop()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        wrap = options.pop("wrap", None)
        making = self.loop.create_server(
            lambda: SMTPServer(self, loop=self.loop, authenticator=self.login, **options), sock=self.listener, ssl=wrap
        )
        self.server = self.loop.run_until_complete(making)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def login(self, server, session, envelope, mechanism, data):
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"secret", handled=False)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address in self.answers:
            return self.answers[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.mails.append(envelope)
        return "250 OK"

    def close(self):
        self.loop.call_soon_threadsafe(self.server.close)
        if hasattr(self.server, "abort_clients"):  # Python 3.13, where what is left to the garbage fails
            self.loop.call_soon_threadsafe(self.server.abort_clients)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.listener.close()
        self.loop.close()


@pytest.fixture
def catch():
    made = []

    def make(**options):
        made.append(Catcher(**options))
        return made[-1]

    yield make
    for catcher in made:
        catcher.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    path = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*command, "-keyout", path / "key", "-out", path / "crt"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the program openssl is missing")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path / "crt", path / "key")
    return context


# --- the command line as a whole -----------------------------------------------------------------------------------


def test_the_commands_and_their_options_are_those_of_the_api():
    found = args.available_commands(commands)
    assert {name: " ".join(args.options_of(func)) for name, func in found.items()} == OPTIONS


def test_the_defaults_are_those_of_the_api():
    def default(command, option):
        return args.options_of(args.command_named(command, commands))[option].default

    assert [default(name, "port") for name in ("blast", "log", "send", "sendmail", "web")] == [
        8823,
        8825,
        8825,
        8825,
        8888,
    ]
    assert [default(name, "pid") for name in ("start", "stop", "status", "restart")] == ["./run/smtp.pid"] * 4
    assert default("log", "pid") == "./run/log.pid"
    assert default("log", "queue") == default("queue", "name") == "run/queue"
    assert default("start", "boot") == "config.boot"
    assert [default(name, "debug") for name in ("blast", "send", "sendmail")] == [0, 1, 0]
    assert default("routes", "TRAILING") == ("config.testing",)


def test_lamson_alone_prints_help(folder):
    assert run().stdout == run("help").stdout == run("--help").stdout
    for name in OPTIONS:
        assert f"\n  {name} " in run().stdout


@pytest.mark.parametrize("name", OPTIONS)
def test_help_for_a_command_names_each_option(name, capsys):
    commands.help_command(**{"for": name})
    printed = capsys.readouterr().out
    for option in OPTIONS[name].replace("TRAILING", "- ").split():
        assert f"\n  -{option}" in printed


def test_help_starts_fast_because_it_imports_nothing_heavy(folder):
    program = """if True:
        import sys
        before = set(sys.modules)
        from lamson.__main__ import main
        main(["help"])
        print(*(set(sys.modules) - before))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
    heavy = {"asyncio", "email", "logging", "socket", "ssl", "subprocess", "tempfile", "difflib", "smtplib", "mailbox"}
    heavy |= {"aiosmtpd", "sqlalchemy", "jinja2", "uvloop", "daemon", "dns", "chardet", "nose2"}
    assert loaded & heavy == set()
    ours = {name.removeprefix("lamson.") for name in done.stdout.splitlines()[-1].split() if "lamson" in name}
    kinds = {func.__module__.removeprefix("lamson.") for func in args.available_commands(commands).values()}
    assert ours == {"lamson", "__main__", "args", "mailboxes", "terminal", *kinds}


def test_an_unknown_command_is_misuse(folder):
    assert refused("strat", code=2) == "lamson: there is no command 'strat', did you mean start? See: lamson help"
    assert "'strat', did you mean start?" in refused("help", "-for", "strat", code=2)


def test_an_unknown_option_a_missing_one_and_a_wrong_type_are_misuse(folder):
    assert "-prot, did you mean -port? See: lamson help -for send" in refused("send", "-prot", "25", code=2)
    assert "-sender and -to are missing. See: lamson help -for send" in refused("send", code=2)
    assert "-port takes a port number (0 to 65535), not 'x'." in refused("send", "-port", "x", code=2)


def test_a_reader_that_has_had_enough_is_no_error(folder):
    with subprocess.Popen([*LAMSON, "help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_file_that_fails_a_command_is_named_in_one_line(folder):
    (folder / "run/queue").mkdir(parents=True)
    (folder / "run/queue/new").mkdir()
    (folder / "run/queue/cur").write_text("")
    assert refused("queue", "-count") == "lamson: run/queue/cur: File exists."


def test_version_tells_it(folder):
    assert run("version").stdout == f"Lamson {lamson.__version__}\n"


# --- gen -----------------------------------------------------------------------------------------------------------


def test_gen_writes_a_project_and_says_what_to_type_next(folder):
    said = run("gen", "-project", "mymailserver").stdout
    assert "    cd mymailserver\n    lamson start\n    nosetests\n" in said
    for path in (
        "app/handlers/sample.py",
        "config/boot.py",
        "config/logging.conf",
        "muttrc",
        "run",
        "logs",
        "app/data",
    ):
        assert (folder / "mymailserver" / path).exists()
    assert not list(folder.rglob("*.pyc"))


def test_gen_refuses_what_is_there_already(folder):
    (folder / "mine").mkdir()
    assert "mine is there already" in refused("gen", "-project", "mine")
    assert list((folder / "mine").iterdir()) == []


def test_gen_with_force_adds_what_is_missing_and_overwrites_nothing(folder):
    (folder / "mine/config").mkdir(parents=True)
    (folder / "mine/config/settings.py").write_text("my own")
    said = run("gen", "-project", "mine", "-FORCE").stdout
    assert said.startswith("Kept mine/config/settings.py, which was there already.\n")
    assert (folder / "mine/config/settings.py").read_text() == "my own"
    assert (folder / "mine/config/boot.py").exists()


def test_gen_in_a_place_that_cannot_be_written_is_refused(folder):
    (folder / "file").write_text("")
    assert "cannot write file/project: Not a directory" in refused("gen", "-project", "file/project")


# --- start, status, stop, restart -----------------------------------------------------------------------------------


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
        eventually(lambda: find_server("run/smtp.pid"))
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
    eventually(lambda: not alive(first))
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
        eventually(lambda: "stopping:" in Path("logs/lamson.log").read_text())
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
    eventually(lambda: Queue("run/inbox").count() == 0)
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
    eventually(lambda: find_server("run/smtp.pid") is None)
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


# --- log -----------------------------------------------------------------------------------------------------------


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


# --- send, sendmail -------------------------------------------------------------------------------------------------


def send(port, *argv, code=0):
    return run("send", "-port", str(port), "-sender", "me@mydomain.com", "-to", "test@test.com", *argv, code=code)


def test_send_sends_a_mail_and_shows_the_conversation(folder, catch):
    server = catch()
    said = send(server.port, "-subject", "My test.", "-body", "Hi there.").stdout.splitlines()
    (mail,) = server.mails
    assert (mail.mail_from, mail.rcpt_tos) == ("me@mydomain.com", ["test@test.com"])
    assert b"Subject: My test.\r\n" in mail.content
    assert mail.content.endswith(b"\r\n\r\nHi there.\r\n")
    assert f"connect: to ('127.0.0.1', {server.port})" in said
    assert "send: rcpt to:<test@test.com>" in map(str.lower, said)
    assert "reply: 250 OK" in said
    assert "send: Hi there." in said
    assert all(line.startswith(("connect: ", "send: ", "reply: ")) for line in said)


def test_send_with_debug_0_shows_nothing(folder, catch):
    done = send(catch().port, "-debug", "0")
    assert done.stdout == done.stderr == ""


def test_send_sends_to_several_and_with_a_body_that_begins_with_dashes(folder, catch):
    server = catch()
    run("send", "-port", str(server.port), "-sender", "Me <me@x.com>", "-to", "a@x.com, B <b@x.com>", "-body", "-- hé")
    (mail,) = server.mails
    assert (mail.mail_from, mail.rcpt_tos) == ("me@x.com", ["a@x.com", "b@x.com"])
    assert MailRequest(None, None, None, mail.content).body() == "-- hé"


def test_send_attaches_a_file(folder, catch):
    server = catch()
    (folder / "some data.bin").write_bytes(bytes(range(256)))
    send(server.port, "-body", "Here.", "-attach", "some data.bin", "-debug", "0")
    message = MailRequest(None, None, None, server.mails[0].content)
    part = next(part for part in message.to_message().walk() if part.get_filename())
    assert part.get_filename() == "some data.bin"
    assert part.get_payload(decode=True) == bytes(range(256))


def test_send_refuses_to_attach_what_is_not_there(folder, catch):
    server = catch()
    done = send(server.port, "-attach", "missing.txt", code=1)
    assert "missing.txt" in done.stderr and len(done.stderr.splitlines()) == 1
    assert server.mails == []


def test_send_is_refused_with_what_the_server_said(folder, catch):
    server = catch()
    server.answers["test@test.com"] = "550 5.1.1 never heard of"
    assert send(server.port, code=1).stderr == "lamson: refused: test@test.com: 550 5.1.1 never heard of.\n"


def test_send_is_refused_when_nobody_listens(folder):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert f"cannot send to 127.0.0.1:{port}: Connection refused" in send(port, code=1).stderr


def test_send_logs_in_after_starttls_and_keeps_the_password_to_itself(folder, catch, certificate):
    server = catch(tls_context=certificate, require_starttls=True, auth_required=True)
    login = ["-username", "zed", "-password", "secret"]
    said = send(server.port, "-starttls", *login).stdout
    assert server.logins == [(b"zed", b"secret")]
    assert len(server.mails) == 1
    assert "send: AUTH " in said and "(secret)" in said
    assert "AHplZABzZWNyZXQ" not in said
    refusal = send(server.port, "-starttls", "-username", "zed", "-password", "wrong", code=1).stderr
    assert refusal.startswith("lamson: refused: 535 ")


def test_send_speaks_tls_from_the_start(folder, catch, certificate):
    server = catch(wrap=certificate)
    send(server.port, "-ssl")
    assert len(server.mails) == 1


def sendmail(port, *argv, content=b"From: Me <me@x.com>\n\nHi.\n", code=0):
    return run("sendmail", "-port", str(port), *argv, code=code, input=content, text=False)


def test_sendmail_sends_what_it_reads_as_it_is(folder, catch):
    server = catch()
    content = b"X-Odd:   spaces\n\ttoo\nFrom: Me <me@x.com>\nTo: a@x.com\n\n\xff\xfe 8 bits\n.\n..\nFrom here\n\nend \n"
    done = sendmail(server.port, "--", "a@x.com", "b@x.com", content=content)
    assert done.stdout == done.stderr == b""
    (mail,) = server.mails
    assert (mail.mail_from, mail.rcpt_tos) == ("me@x.com", ["a@x.com", "b@x.com"])
    assert mail.content == content.replace(b"\n", b"\r\n")


def test_sendmail_makes_one_kind_of_line_end_of_all(folder, catch):
    server = catch()
    sendmail(server.port, "a@x.com", content=b"From: me@x.com\r\nTo: a@x.com\n\nbare\rand\r\nboth\n")
    assert server.mails[0].content == b"From: me@x.com\r\nTo: a@x.com\r\n\r\nbare\r\nand\r\nboth\r\n"


def test_sendmail_takes_the_bcc_header_out(folder, catch):
    server = catch()
    sendmail(server.port, "a@x.com", content=b"From: me@x.com\nBcc: secret@x.com,\n other@x.com\nTo: a@x.com\n\nHi.\n")
    assert server.mails[0].content == b"From: me@x.com\r\nTo: a@x.com\r\n\r\nHi.\r\n"


def test_sendmail_understands_what_mail_programs_say_to_sendmail(folder, catch):
    server = catch()
    words = "-oem -oi -i -B8BITMIME -N delay,failure -R hdrs -F MyName -fbounces@x.com -v -bm -odi -- a@x.com"
    sendmail(server.port, *words.split())
    assert [(mail.mail_from, mail.rcpt_tos) for mail in server.mails] == [("bounces@x.com", ["a@x.com"])]


@pytest.mark.parametrize(
    "words", ["-f bounces@x.com a@x.com", "-r bounces@x.com a@x.com", "-f <bounces@x.com> -- a@x.com"]
)
def test_sendmail_takes_the_sender_that_is_given(folder, catch, words):
    server = catch()
    sendmail(server.port, *words.split())
    assert server.mails[0].mail_from == "bounces@x.com"


def test_sendmail_takes_recipients_from_the_headers_when_told(folder, catch):
    server = catch()
    content = b"From: me@x.com\nTo: A <a@x.com>, b@x.com\nCc: c@x.com\nBcc: d@x.com\n\nHi.\n"
    sendmail(server.port, "-oi", "-ti", content=content)
    assert server.mails[0].rcpt_tos == ["a@x.com", "b@x.com", "c@x.com", "d@x.com"]
    assert b"d@x.com" not in server.mails[0].content


def test_sendmail_exits_as_sendmail_does(folder, catch):
    server = catch()
    assert b"no recipient" in sendmail(server.port, code=64).stderr
    server.answers = {"gone@x.com": "550 no", "later@x.com": "450 busy"}
    assert b"gone@x.com: 550 no" in sendmail(server.port, "gone@x.com", code=69).stderr
    assert b"later@x.com: 450 busy" in sendmail(server.port, "later@x.com", code=75).stderr
    server.listener.close()
    assert sendmail(1, "a@x.com", code=75).stderr.startswith(b"lamson: cannot send to 127.0.0.1:1: ")


def test_sendmail_still_refuses_options_of_nobody(folder):
    assert "there is no option -prot, did you mean -port?" in refused("sendmail", "-prot", "25", code=2)


# --- blast, cleanse -------------------------------------------------------------------------------------------------

MAILS = [b"From: me@x.com\nTo: a@x.com\nSubject: one\n\nHi.\n", b"From: me@x.com\nTo: b@x.com, c@x.com\n\nHo.\n"]


@pytest.fixture(params=["maildir", "mbox"])
def mails(folder, request):
    box = mailbox.Maildir("mails") if request.param == "maildir" else mailbox.mbox("mails")
    for content in MAILS:
        box.add(content)
    box.close()
    return box


def test_blast_sends_every_mail(mails, catch):
    server = catch()
    done = run("blast", "-input", "mails", "-port", str(server.port))
    assert done.stdout == f"Sent 2 mails to 127.0.0.1:{server.port}.\n"
    assert done.stderr == ""
    assert sorted(mail.rcpt_tos for mail in server.mails) == [["a@x.com"], ["b@x.com", "c@x.com"]]


def test_blast_goes_on_after_a_refusal_and_names_it(mails, catch):
    server = catch()
    server.answers["a@x.com"] = "550 no"
    done = run("blast", "-input", "mails", "-port", str(server.port), code=1)
    assert done.stdout.startswith("Sent 1 mails")
    first, last = done.stderr.splitlines()
    assert first.endswith("refused: a@x.com: 550 no") and last == "lamson: 1 mails were refused."


def test_blast_sends_queued_mail_to_those_it_was_queued_for(folder, catch):
    server = catch()
    Queue("mails").push(MailRequest(None, "bounce@x.com", ["hidden@x.com"], MAILS[0]))
    run("blast", "-input", "mails", "-port", str(server.port))
    assert [(mail.mail_from, mail.rcpt_tos) for mail in server.mails] == [("bounce@x.com", ["hidden@x.com"])]


def test_blast_stops_when_nobody_listens(mails):
    assert "Connection refused" in refused("blast", "-input", "mails", "-port", "1")


def test_blast_and_cleanse_refuse_what_is_no_mailbox(folder):
    (folder / "text").write_text("just text\n")
    assert "nowhere is neither a Maildir nor a file" in refused("blast", "-input", "nowhere")
    assert "text is not in mbox format" in refused("cleanse", "-input", "text", "-output", "out")
    assert "another Maildir" in refused("cleanse", "-input", "text", "-output", "./text")
    assert sorted(os.listdir()) == ["text"]


def test_cleanse_writes_canonical_mail_into_another_maildir(mails):
    assert run("cleanse", "-input", "mails", "-output", "clean").stdout == "Cleansed 2 mails, 0 could not be.\n"
    clean = Queue("clean")
    texts = sorted(str(clean.get(key)) for key in clean.keys())
    assert texts == sorted(str(MailRequest(None, None, None, content)) for content in MAILS)


def test_cleanse_keeps_the_envelope_of_queued_mail(folder):
    Queue("mails").push(MailRequest(None, "bounce@x.com", ["hidden@x.com"], MAILS[0]))
    run("cleanse", "-input", "mails", "-output", "clean")
    _, message = Queue("clean").pop()
    assert (message.From, message.To) == ("bounce@x.com", ["hidden@x.com"])


def test_cleanse_counts_what_could_not_be(mails, monkeypatch, capsys):
    def broken(message):
        if message["subject"] == "one":
            raise ValueError("cannot be read")
        return "Subject: two\n\nHi.\n"

    monkeypatch.setattr(MailRequest, "__str__", broken)
    with pytest.raises(SystemExit) as caught:
        commands.cleanse_command("mails", "clean")
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == "Cleansed 1 mails, 1 could not be.\n"
    assert "cannot be cleansed: cannot be read" in printed.err
    assert Queue("clean").count() == 1


def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch):
    assert list(terminal.with_progress(iter("ab"), 2)) == ["a", "b"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(terminal.with_progress(iter("ab"), 2)) == ["a", "b"]
    assert capsys.readouterr().err == (
        "\r[                              ] 0/2"
        "\r[###############               ] 1/2"
        "\r[##############################] 2/2\n"
    )


# --- queue -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def queued(folder):
    queue = Queue("run/queue")
    return [queue.push(MailRequest(None, "me@x.com", ["a@x.com"], content)) for content in MAILS]


def test_queue_counts_lists_and_prints(queued):
    assert run("queue", "-count").stdout == "2\n"
    assert run("queue", "-keys").stdout == "".join(f"{key}\n" for key in sorted(queued))
    assert run("queue", "-get", queued[0], text=False).stdout == MAILS[0]
    assert run("queue", "-count").stdout == "2\n"


def test_queue_pops_the_oldest(queued):
    assert run("queue", "-pop", text=False).stdout == MAILS[0]
    assert run("queue", "-pop", text=False).stdout == MAILS[1]
    assert "run/queue is empty" in refused("queue", "-pop")


def test_queue_keeps_a_mail_that_it_could_not_print(queued):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*LAMSON, "queue", "-pop"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "lamson: No space left on device.\n")
    assert run("queue", "-count").stdout == "2\n"


def test_queue_removes_and_clears(queued):
    run("queue", "-remove", queued[0])
    assert run("queue", "-keys").stdout == f"{queued[1]}\n"
    run("queue", "-clear")
    assert run("queue", "-count").stdout == "0\n"
    assert run("queue", "-keys").stdout == ""


def test_queue_refuses_keys_and_queues_that_are_not_there(queued):
    assert "no mail x in run/queue" in refused("queue", "-get", "x")
    assert "no message 'x'" in refused("queue", "-remove", "x")
    assert "there is no queue in run/other" in refused("queue", "-count", "-name", "run/other")
    assert not Path("run/other").exists()


def test_queue_lists_who_wrote_to_whom_and_why_it_is_there(queued):
    Queue("run/queue").push(MailRequest(None, "", ["b@x.com", "c\x1b@x.com"], b""), reason="550 No.")
    printed = run("queue", "-list").stdout
    assert f"{queued[0]}\n    from <me@x.com> to a@x.com, " in printed
    assert "    from <> to b@x.com, c\\x1b@x.com, " in printed and printed.endswith(" old\n    550 No.\n")


def test_queue_retry_gives_undeliverable_mail_to_the_handlers_once_more(folder):
    commands.gen_command("p")
    os.chdir("p")
    handler = Path("app/handlers/sample.py")
    works = handler.read_text()
    undeliverable = Queue("run/undeliverable")
    keys = [undeliverable.push(MailRequest(None, "me@x.com", [f"{n}@test.com"], MAILS[0])) for n in "ab"]
    handler.write_text(
        works + "\n\ndef deliver(message):\n    raise ValueError('still no luck')\n\nrelay.deliver = deliver\n"
    )
    answer = run("queue", "-name", "run/undeliverable", "-retry", "ALL", code=1)
    assert answer.stdout == "0 of 2 mails were handled.\n"
    assert f"{keys[0]} stays: still no luck" in answer.stderr
    assert (
        undeliverable.keys() == keys and "still no luck" in run("queue", "-list", "-name", "run/undeliverable").stdout
    )
    done = "\n\ndef deliver(message):\n    open('done', 'a').write(message.recipient)\n\nrelay.deliver = deliver\n"
    handler.write_text(works + done)
    assert run("queue", "-name", "run/undeliverable", "-retry", keys[1]).stdout == "1 of 1 mails were handled.\n"
    assert Path("done").read_text() == "b@test.com" and undeliverable.keys() == keys[:1]
    answer = run("queue", "-name", "run/undeliverable", "-retry", "no-such-key", code=1)
    assert answer.stderr == "no-such-key stays: it is not there, or another program is handling it\n"


def test_queue_retry_sends_what_is_in_the_queue_of_the_relay(folder):
    commands.gen_command("p")
    os.chdir("p")
    with Sink() as server:
        settings = Path("config/settings.py")
        settings.write_text(settings.read_text().replace("8825", str(server.port)))
        outgoing = RetryQueue("run/outgoing", None, None)
        message = MailRequest(None, "me@x.com", ["a@x.com", "b@x.com", "gone@x.com"], MAILS[0])
        keys = [outgoing.push(message, "450 Later") for _ in range(3)]
        server.refuse = {"b@x.com": "450 4.2.1 Still later", "gone@x.com": "550 5.1.1 Gone"}

        answer = run("queue", "-name", "run/outgoing", "-retry", keys[1], code=1)
        assert answer.stdout == "0 of 1 mails were handled.\n"
        assert (
            f"{keys[1]} stays: localhost said: 450 4.2.1 Still later; localhost said: 550 5.1.1 Gone\n" == answer.stderr
        )
        assert [recipients for _, recipients, *_ in server.got] == [["a@x.com"]]
        assert [entry.recipients for entry in Queue("run/undeliverable").entries()] == [["gone@x.com"]]
        left = {entry.key: (entry.recipients, entry.reason) for entry in Queue("run/outgoing").entries()}
        assert left[keys[1]] == (["b@x.com"], "localhost said: 450 4.2.1 Still later") and len(left) == 3

        server.refuse = {"gone@x.com": "550 5.1.1 Gone"}
        answer = run("queue", "-name", "./run/outgoing", "-retry", "ALL", code=1)
        assert answer.stdout == "1 of 3 mails were handled.\n"
        assert answer.stderr.splitlines() == [
            f"{key} is undeliverable: localhost said: 550 5.1.1 Gone" for key in (keys[0], keys[2])
        ]
        assert Queue("run/outgoing").count() == 0 and Queue("run/undeliverable").count() == 3
    answer = run("queue", "-name", "run/outgoing", "-retry", keys[0], code=1)
    assert answer.stderr == f"{keys[0]} stays: it is not there, or another program is handling it\n"


def test_queue_retry_routes_what_a_handler_wanted_later(folder):
    commands.gen_command("p")
    os.chdir("p")
    deliver = """

def deliver(message):
    if message.recipient == "no@test.com":
        raise SMTPError(550, "5.1.1 No longer")
    open("done", "a").write(message.recipient)


from lamson.server import SMTPError
relay.deliver = deliver
"""
    with Path("app/handlers/sample.py").open("a") as handler:
        handler.write(deliver)
    deferred = RetryQueue("run/deferred", None, None)
    key = deferred.push(MailRequest(None, "me@x.com", ["a@test.com", "no@test.com"], MAILS[0]), "450 Later")
    answer = run("queue", "-name", "run/deferred", "-retry", "ALL", code=1)
    assert answer.stderr == f"{key} is undeliverable: 550 5.1.1 No longer\n"
    assert Path("done").read_text() == "a@test.com" and Queue("run/deferred").count() == 0
    assert [entry.recipients for entry in Queue("run/undeliverable").entries()] == [["no@test.com"]]


def test_queue_wants_one_thing_to_do(queued):
    assert "say one thing to do" in refused("queue", code=2)
    assert "say one thing to do" in refused("queue", "-pop", "-clear", code=2)
    assert run("queue", "-count").stdout == "2\n"


# --- routes, syncdb, web ---------------------------------------------------------------------------------------------


def test_routes_shows_the_routes_and_what_an_address_matches(project):
    said = run("routes", "-test", "zed@test.com").stdout
    assert "\n    app.handlers.sample.START\n" in said
    assert "app.handlers.sample.FORWARD stateless\n" in said
    assert "zed@test.com is taken by:" in said
    assert "app.handlers.sample.START address='zed' host='test.com'" in said
    assert "no route takes zed@example.com" in refused("routes", "-test", "zed@example.com")


def test_routes_imports_what_it_is_told_from_where_it_is_told(project, monkeypatch):
    monkeypatch.chdir("/")
    assert "lamson.handlers.log.START" in run("routes", "--", "lamson.handlers.log").stdout
    (project / "mine.py").write_text("from lamson.routing import route\n@route('a@b.c')\ndef START(message): pass\n")
    assert "mine.START" in run("routes", "-path", str(project), "mine").stdout
    assert "cannot import nothing: ModuleNotFoundError" in refused("routes", "nothing")


def tables(path):
    with sqlite3.connect(path) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_syncdb_makes_the_tables_of_the_project_and_lamsons_own(project):
    Path("app/model/cats.py").write_text(
        "from sqlalchemy import Column, Integer, Table\nfrom app.model.tables import metadata\n"
        'cats = Table("cats", metadata, Column("id", Integer, primary_key=True))\n'
    )
    names = ["cats", "lamson_confirmation", "lamson_schema", "lamson_state"]
    assert run("syncdb").stdout == "sqlite:///app/data/lamson.db has the tables: " + ", ".join(names) + ".\n"
    assert tables("app/data/lamson.db") == set(names)
    run("syncdb")
    start()


def test_syncdb_is_refused_without_a_project_or_a_database(project, monkeypatch):
    Path("config/settings.py").write_text("")
    assert "config/settings.py has no database_config" in refused("syncdb")
    monkeypatch.chdir(project.parent)
    assert "There is no config/settings.py" in refused("syncdb")


def test_web_serves_the_files_of_a_folder_and_none_beside_it(folder):
    (folder / "site").mkdir()
    (folder / "site/page.html").write_text("hello")
    (folder / "secret.txt").write_text("secret")
    with subprocess.Popen(
        [*LAMSON, "web", "-basedir", "site", "-port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            url = re.search(r"at (http://127\.0\.0\.1:\d+/)", server.stdout.readline())[1]
            assert urllib.request.urlopen(url + "page.html").read() == b"hello"
            for path in ("../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "x/../../secret.txt", "/secret.txt"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(url + path)
        finally:
            server.send_signal(signal.SIGINT)
        server.communicate()
        assert server.returncode == 0


def test_web_is_refused_where_it_cannot_be(folder):
    assert "there is no folder nowhere" in refused("web", "-basedir", "nowhere")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in refused("web", "-port", port)


# --- commands as functions -------------------------------------------------------------------------------------------


def test_commands_are_functions(folder, capsys):
    commands.version_command()
    commands.help_command()
    commands.gen_command(project="mine")
    with pytest.raises(SystemExit) as caught:
        commands.gen_command(project="mine", FORCE=False)
    assert caught.value.code == 1
    with pytest.raises(SystemExit) as caught:
        commands.help_command(**{"for": "nothing"})
    assert caught.value.code == 2
    with pytest.raises(TypeError):
        commands.help_command(other="x")
