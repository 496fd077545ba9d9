"""OneShotBlog, the example: its own tests, its servers with real mail, and its pages in a browser."""

import os
import re
import shutil
import smtplib
import subprocess
from base64 import b64encode
from pathlib import Path

import html5lib
import pytest

from lamson.mail import MailRequest, MailResponse
from lamson.queue import Queue
from processes import Shell, eventually, needs

HERE = Path(__file__).parent.parent
OSB = HERE / "examples/osb"

ZED, ANN = "zed@example.com", "ann@example.com"

EVIL = (
    "<p>A <b>bold</b> post.</p><script>document.title = 'script ran'</script>"
    "<img src=x onerror=\"document.title = 'image ran'\"><a href=\"javascript:document.title='link ran'\">x</a>"
)


@pytest.fixture
def osb(tmp_path):
    """A copy of the example, without what is left of somebody's trying it."""

    def leftovers(folder, names):
        if Path(folder).name in ("run", "logs", "data"):
            return [name for name in names if name not in ("README", "style.css")]
        return [name for name in names if name == "__pycache__"]

    return Path(shutil.copytree(OSB, tmp_path / "osb", ignore=leftovers))


class Blog:
    """The example with all its servers running, and people who write to it."""

    def __init__(self, shell: Shell, folder: Path):
        self.shell, self.folder = shell, folder
        shell.run(f"cd {folder.name}")
        shell.run("lamson syncdb")
        self.web = subprocess.Popen(
            ["lamson", "web", "-basedir", "app/data", "-port", "0"],
            cwd=folder, env=shell.environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.url = re.search(r"http://\S+", self.web.stdout.readline())[0].rstrip("/")
        self.log_port = self.start("lamson log -port 0")
        self.edit('"host": "localhost", "port": 8825', f'"host": "127.0.0.1", "port": {self.log_port}')
        self.edit('"host": "localhost", "port": 8823', '"host": "127.0.0.1", "port": 0')
        self.edit("http://localhost:8888", self.url)
        self.port = self.start("lamson start")
        assert "queue run/posts" in shell.run("lamson start -boot config.queue -pid run/queue.pid")

    def edit(self, old, new):
        settings = self.folder / "config/settings.py"
        assert old in settings.read_text()
        settings.write_text(settings.read_text().replace(old, new))

    def start(self, line):
        return int(re.search(r":(\d+), pid", self.shell.run(line))[1])

    def say(self, sender, to, subject="x", body=None, html=None, **headers):
        """Sends a mail; returns nothing, as a server does that has taken it, or raises."""
        mail = MailResponse(To=to, From=sender, Subject=subject, Body=body, Html=html)
        for name, value in headers.items():
            mail[name.replace("_", "-")] = value
        with smtplib.SMTP("127.0.0.1", self.port) as client:
            client.sendmail(sender, [to], mail.as_bytes())

    def came(self, to, what):
        """Waits for the mail to `to` that has the text `what`, and takes it out of the queue."""
        sent = Queue(self.folder / "run/queue")

        def find():
            for key in sent.keys():
                mail = sent.get(key)
                if mail.To == [to] and what in mail.text():
                    sent.remove(key)
                    return mail
            return None

        return eventually(find, f"a mail to {to} with {what!r}")

    def confirm(self, who, what):
        self.say(who, self.came(who, what)["Reply-To"], "Re: Confirmation required", "Yes.")

    def count(self, queue):
        return Queue(self.folder / "run" / queue).count()

    def post_page(self, author=ZED):
        """The page of the one post there is; its address was sent to the author."""
        url = re.search(r"<(http\S+)>", self.came(author, "Your post is out").text())[1]
        assert url.startswith(f"{self.url}/posts/")
        return self.folder / "app/data/posts" / url.rpartition("/")[2]

    def index(self):
        path = self.folder / "app/data/index.html"
        return path.read_text() if path.exists() else ""

    def stop(self):
        self.web.terminate()
        self.web.wait()
        self.web.stdout.close()
        self.shell.run("lamson stop -ALL run")


@pytest.fixture
def blog(tmp_path, osb):
    with Shell(tmp_path) as shell:
        blog = Blog(shell, osb)
        yield blog
        blog.stop()
        assert shell.left() == {}


def assert_html5(page):
    parser = html5lib.HTMLParser(strict=True)  # raises for whatever the standard calls a parse error
    parser.parse(page)


# --- its own tests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["nosetests", "nose2"])
def test_its_tests_pass_with_no_server_running(tmp_path, osb, command):
    with Shell(tmp_path) as shell:
        shell.run("cd osb")
        output = shell.run(f"{command} -v")
    assert "post_tests.test_the_first_post_of_a_sender_has_to_be_confirmed ... ok" in output
    assert "spam_tests.test_spam_is_set_aside_and_nobody_is_asked ... ok" in output
    assert int(re.search(r"Ran (\d+) tests", output)[1]) >= 30
    assert os.listdir(osb / "app/data") == ["style.css"]
    assert not (osb / "run/osb.db").exists()


def test_the_example_is_complete():
    for name in ("app/handlers", "app/model", "app/templates", "config/boot.py", "muttrc", "README.md", "unittest.cfg"):
        assert (OSB / name).exists(), name
    text = (OSB / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (OSB / target).exists(), target


# --- with real servers -------------------------------------------------------------------------------------------


def test_there_is_an_index_before_the_first_post(blog):
    assert "There are no posts yet." in blog.index()
    assert_html5(blog.index())


def test_a_blog_is_written_by_mail(blog):
    blog.say(ZED, "hello@oneshotblog.test", "Grüße & <more>", "First <paragraph>.\n\nSecond: café.\n")
    assert blog.count("posts") == 0
    blog.confirm(ZED, 'a post called "hello"')
    page = blog.post_page()
    assert '<h1 dir="auto">Grüße &amp; &lt;more&gt;</h1>' in page.read_text()
    assert '<p class="plain">Second: café.</p>' in page.read_text()
    eventually(lambda: f"posts/{page.name}" in blog.index(), "the post in the index")
    assert "Grüße &amp; &lt;more&gt;" in blog.index()

    # Ann comments, and is asked, but only the first time.
    comment = re.search(r"mailto:(comment-\w+@oneshotblog\.test)", page.read_text())[1]
    blog.say(ANN, comment, "Re: Hello", "Nice, <b>Zed</b>.")
    blog.confirm(ANN, "a comment on the post")
    blog.say(ANN, comment, "Re: Hello", "Very nice.")
    assert "Nice, &lt;b&gt;Zed&lt;/b&gt;." in page.read_text()
    assert "Very nice." in page.read_text()
    assert_html5(page.read_text())
    assert_html5(blog.index())
    assert ANN not in page.read_text() and ZED not in page.read_text() + blog.index()

    # Everybody else hears 550: strangers, robots, and whoever answers twice or for somebody else.
    refused = [
        ("../../etc/passwd@oneshotblog.test", ZED, smtplib.SMTPRecipientsRefused),
        ("hello@elsewhere.example", ZED, smtplib.SMTPRecipientsRefused),
        ("post-confirm-abc@oneshotblog.test", ZED, smtplib.SMTPDataError),
        ("no-reply@oneshotblog.test", ZED, smtplib.SMTPDataError),
        ("comment-0123456789@oneshotblog.test", ANN, smtplib.SMTPDataError),
    ]
    for to, sender, error in refused:
        with pytest.raises(error, match="550"):
            blog.say(sender, to, body="x")
    with pytest.raises(smtplib.SMTPDataError, match="automatic mail"):
        blog.say("robot@example.com", "hello@oneshotblog.test", body="x", Auto_Submitted="auto-generated")

    # Zed deletes it, having been asked.
    blog.say(ZED, "hello-delete@oneshotblog.test", body="")
    blog.confirm(ZED, "wants to delete")
    assert not page.exists()
    eventually(lambda: "There are no posts yet." in blog.index(), "an empty index")
    eventually(lambda: not blog.count("posts"), "an empty queue")  # a message leaves it after its work was done
    assert [blog.count(queue) for queue in ("queue", "pending", "posts", "undeliverable", "spam")] == [0, 0, 0, 0, 0]


# What no page may have: control characters, lone surrogates, and characters that are none; and what turns text round.
NASTY = "\0\x01\x0b\x1b[31m\x7f\x85\ufffe\ufdd0\U0010ffff\u202e"


def test_strange_characters_and_tags_make_no_page_invalid(blog):
    mails = [
        ("text/plain; charset=utf-8", f"a{NASTY}b".encode()),
        ("text/html; charset=utf-8", f"<p>a{NASTY}&#0;&#1;&#xFDD0;&#xD800;".encode()),
        ("text/html; charset=utf-8", b"<h4><dd><h2>x</h2></dd></h4><p><object><p>y</object><a><svg><a>z"),
        ("text/html; charset=utf-8", b'<a href="java\x01script:x">x</a><a href="\x01javascript:x">x</a>'),
    ]
    for number, (kind, body) in enumerate(mails):
        sender = f"zed{number}@example.com"
        subject = b64encode(NASTY.encode()).decode()
        head = f"From: =?utf-8?b?{subject}?= <{sender}>\r\nSubject: =?utf-8?b?{subject}?= x\r\nContent-Type: {kind}\r\n"
        mail = head.encode() + b"Content-Transfer-Encoding: base64\r\n\r\n" + b64encode(body) + b"\r\n"

        def send(sender, to, mail=mail):
            with smtplib.SMTP("127.0.0.1", blog.port) as client:
                client.sendmail(sender, [to], mail)

        send(sender, "hello@oneshotblog.test")
        blog.confirm(sender, 'a post called "hello"')
        page = blog.post_page(sender)
        send(ANN, f"comment-{page.stem}@oneshotblog.test")
        if number == 0:
            blog.confirm(ANN, "a comment on the post")
        assert page.read_text().count('class="comment"') == 1
        assert_html5(page.read_text())
        assert "javascript" not in page.read_text()
        eventually(lambda page=page: page.name in blog.index(), "the post in the index")
    assert_html5(blog.index())
    assert blog.index().count("<bdi>") == blog.index().count("</bdi>") == 2 * len(mails)
    assert blog.count("undeliverable") == 0


def test_what_the_readme_tells_to_type_publishes_a_post(blog):
    text = (OSB / "README.md").read_text()
    ask, answer = (line[2:].replace("8823", str(blog.port)) for line in re.findall(r"^\$ lamson send .*", text, re.M))
    look = re.search(r"^\$ (lamson queue -get .*)", text, re.M)[1]
    blog.shell.run(ask)
    secret = re.search(r"post-confirm-(\w+)@localhost", blog.shell.run(look))[1]
    blog.shell.run(answer.replace("(the secret)", secret))
    assert "Hello, world." in blog.post_page("me@localhost").read_text()


def test_an_answer_that_could_not_be_worked_off_is_not_lost(blog):
    blog.say(ZED, "hello@oneshotblog.test", "Hello", "Hello.")
    (blog.folder / "app/data/posts").write_text("in the way")
    blog.confirm(ZED, 'a post called "hello"')
    assert blog.count("undeliverable") == 1
    assert blog.count("pending") == 1

    (blog.folder / "app/data/posts").unlink()
    blog.shell.run("lamson queue -name run/undeliverable -retry ALL")
    assert "Hello." in blog.post_page().read_text()
    assert blog.count("undeliverable") == blog.count("pending") == 0


def test_undeliverable_mail_is_given_to_the_old_mail_server(blog):
    lost = Queue(blog.folder / "run/undeliverable")
    lost.push(MailRequest("", ZED, ["old-list@oneshotblog.test"], b"Subject: To the old list\n\nHello.\n"))
    assert "queue run/undeliverable" in blog.shell.run("lamson start -boot config.forward -pid run/forward.pid")
    mail = blog.came("old-list@oneshotblog.test", "Hello.")
    assert (mail.From, mail["Subject"]) == (ZED, "To the old list")
    eventually(lambda: lost.count() == 0, "an empty run/undeliverable")


# --- in a browser ------------------------------------------------------------------------------------------------


class Browser:
    def __init__(self, folder):
        self.folder = folder
        self.command = [
            needs("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--window-size=390,844", f"--user-data-dir={folder}/browser", "--virtual-time-budget=2000",
        ]  # fmt: skip

    def open(self, url):
        """Returns the page as it is after its scripts have run."""
        command = [*self.command, "--dump-dom", url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.mark.skipif(shutil.which("chromium") is None, reason="the program chromium is missing")
def test_a_post_and_a_comment_are_shown_in_a_browser_and_no_script_of_theirs_runs(blog, tmp_path):
    blog.say(f"Zed <{ZED}>", "hello@oneshotblog.test", "<script>document.title='title ran'</script>", html=EVIL)
    blog.confirm(ZED, 'a post called "hello"')
    page = blog.post_page()
    comment = re.search(r"mailto:(comment-\w+@oneshotblog\.test)", page.read_text())[1]
    blog.say(f'"Ann <img src=x>" <{ANN}>', comment, body="<script>document.title='comment ran'</script> Nice.")
    blog.confirm(ANN, "a comment on the post")
    eventually(lambda: f"posts/{page.name}" in blog.index(), "the post in the index")

    browser = Browser(tmp_path)
    # This one does run scripts, or else what follows would show nothing.
    (blog.folder / "app/data/control.html").write_text(f"<!DOCTYPE html><title>x</title>{EVIL}")
    assert "<title>image ran</title>" in browser.open(f"{blog.url}/control.html")

    shown = browser.open(f"{blog.url}/posts/{page.name}")
    assert "<p>A <b>bold</b> post.</p>" in shown
    assert "&lt;script&gt;document.title='title ran'&lt;/script&gt;</h1>" in shown
    assert "&lt;script&gt;document.title='comment ran'&lt;/script&gt; Nice.</p>" in shown
    assert "Ann &lt;img src=x&gt;" in shown
    title = re.search("<title>(.*?)</title>", shown)[1]
    assert title == "&lt;script&gt;document.title='title ran'&lt;/script&gt;"
    assert not re.search(r"<(script|img|iframe)|javascript:", shown.replace(title, ""))

    index = browser.open(f"{blog.url}/index.html")
    assert f'<a href="posts/{page.name}"><bdi>&lt;script&gt;' in index
    assert "<title>OneShotBlog</title>" in index


@pytest.mark.skipif(shutil.which("chromium") is None, reason="the program chromium is missing")
def test_pages_fit_on_a_phone(blog, tmp_path):
    wide = "x" * 1000
    blog.say(ZED, "hello@oneshotblog.test", wide, html=f"<pre>{wide}</pre><p>{wide}</p><h2>{wide}</h2>")
    blog.confirm(ZED, 'a post called "hello"')
    page = blog.post_page()
    blog.say(ANN, f"comment-{page.stem}@oneshotblog.test", body=f"{wide} https://example.com/{wide}")
    blog.confirm(ANN, "a comment on the post")
    eventually(lambda: f"posts/{page.name}" in blog.index(), "the post in the index")
    browser = Browser(tmp_path)
    frame = "<!DOCTYPE html><title>x</title><iframe src='{}' width=390 style='border:0' onload='document.title ="
    frame += ' this.contentDocument.documentElement.scrollWidth + " pixels"\'></iframe>'
    (blog.folder / "app/data/wide.html").write_text("<!DOCTYPE html><title>x</title><p style='width: 500px'>x")
    for name, fits in (("index.html", True), (f"posts/{page.name}", True), ("wide.html", False)):
        outer = f"frame-{Path(name).name}"  # not twice the same: browsers keep pages
        (blog.folder / "app/data" / outer).write_text(frame.format(name))
        width = int(re.search(r"<title>(\d+) pixels</title>", browser.open(f"{blog.url}/{outer}"))[1])
        assert (width <= 390) is fits, f"{name} is {width} pixels wide"
