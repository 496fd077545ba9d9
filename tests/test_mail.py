"""lamson.mail: requests that survive anything, responses that are clean."""

import base64
import copy
import doctest
import email
import email.policy
import json
import pathlib
import pickle
import random
import re
import subprocess
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lamson import encoding, mail
from lamson.errors import MisuseError
from lamson.mail import MailRequest, MailResponse

MESSAGES = sorted((pathlib.Path(__file__).parent / "messages").glob("*.eml"))


def request_of(data, From=None, To=None):
    return MailRequest("127.0.0.1", From, To, data)


def read(request):
    """What the files beside the messages hold."""
    body = request.body()
    found = {
        "from": request.route_from,
        "to": sorted(request.route_to),
        "headers": [list(item) for item in request.items()],
        "body": {"base64": base64.b64encode(body).decode()} if isinstance(body, bytes) else body,
        "text": request.text(),
        "html": request.html(),
        "attachments": [[each.name, each.type, base64.b64encode(each.data).decode()] for each in request.attachments()],
        "parts": [part.content_type for part in request.walk()],
    }
    str(request)
    found["defects"] = sorted(str(defect) for defect in request.base.defects)
    return {key: value for key, value in found.items() if value not in (None, [], "")}


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
class TestEveryMessage:
    def test_reads_as_written_beside_it(self, path):
        assert read(request_of(path.read_bytes())) == json.loads(path.with_suffix(".json").read_text("utf-8"))

    def test_is_forwarded_byte_for_byte(self, path):
        request = request_of(path.read_bytes())
        read(request)
        assert request.as_bytes() == path.read_bytes()

    def test_says_the_same_after_str(self, path):
        request = request_of(path.read_bytes())
        before, after = read(request), read(request_of(str(request)))
        for each in (before, after):
            each.pop("defects", None)
            if "message-inside" in path.stem:
                each.pop("attachments")
        assert after == before

    def test_str_is_canonical(self, path):
        text = str(request_of(path.read_bytes()))
        assert all(len(line) <= 998 for line in text.split("\n"))
        assert text.isascii() or "smtputf8" in path.stem
        assert str(request_of(text)) == text

    def test_becomes_an_email_message(self, path):
        request = request_of(path.read_bytes())
        message = request.to_message()
        kinds = [part.get_content_type() for part in message.walk()]
        assert kinds == [request.base.content_type, *(part.content_type for part in request.walk())]
        again = request_of(message.as_string())
        assert [each.name for each in again.attachments()] == [each.name for each in request.attachments()]

    def test_can_be_answered(self, path):
        reply = request_of(path.read_bytes()).reply(Body="Thanks.")
        assert request_of(str(reply)).body() == "Thanks."

    def test_a_changed_header_changes_one_line(self, path):
        data = path.read_bytes()
        request = request_of(data)
        read(request)
        request["X-Lamson"] = "here"
        changed = request.as_bytes()
        eol = b"\r" if b"\n" not in data and b"\r" in data else request.base.source.eol.encode()
        # The header section of a message that had none, or did not end it, has to be ended with an empty line.
        assert changed.replace(b"X-Lamson: here" + eol, b"", 1).replace(eol, b"") == data.replace(eol, b"")
        assert request_of(changed)["x-lamson"] == "here"


RAW = (
    b"Received: from a\r\n\tby b\r\nDKIM-Signature: v=1;  a=x\r\nSUBJECT:   =?iso-8859-1?q?caf=E9?=  \r\n"
    b"From: Zoe <Zoe@Example.com>\r\nTo: list@example.org\r\nReceived: from b\r\n\r\nHi.\r\n"
)


class TestRequest:
    def test_constructing_parses_nothing(self):
        request = request_of(RAW, "a@b.c", ["D@E.F"])
        assert request.route_from == "a@b.c" and request.route_to == {"d@e.f"}
        assert request._base is None

    def test_headers_are_found_in_any_case(self):
        request = request_of(RAW)
        assert request["subject"] == request["SUBJECT"] == "café"
        assert "sUBJECT" in request and "x-none" not in request
        assert request["x-none"] is None and request.get("x-none", 3) == 3
        assert request.keys() == ["Dkim-Signature", "From", "Received", "Subject", "To"]

    def test_repeated_headers_are_all_there_in_order(self):
        request = request_of(RAW)
        assert request.get_all("received") == ["from a\tby b", "from b"]
        assert request["received"] == "from a\tby b"
        assert [name for name, _ in request.items()].count("Received") == 2

    def test_a_changed_header_changes_its_line_only(self):
        request = request_of(RAW)
        request["subject"] = "tea"
        assert request.as_bytes() == RAW.replace(b"   =?iso-8859-1?q?caf=E9?=  ", b" tea")

    def test_a_deleted_header_takes_its_lines_along(self):
        request = request_of(RAW)
        del request["Received"]
        del request["X-Never-There"]
        assert request.as_bytes() == RAW.replace(b"Received: from a\r\n\tby b\r\n", b"").replace(
            b"Received: from b\r\n", b""
        )

    def test_an_added_header_comes_last(self):
        request = request_of(RAW)
        request.add_header("Received", "from c")
        request["X-List"] = "é"
        assert request.as_bytes() == RAW.replace(
            b"\r\n\r\n", b"\r\nReceived: from c\r\nX-List: =?utf-8?b?w6k=?=\r\n\r\n", 1
        )

    def test_a_repeated_header_that_is_set_is_one_again(self):
        request = request_of(RAW)
        request["Received"] = "x"
        assert request.as_bytes() == RAW.replace(b"from a\r\n\tby b", b"x").replace(b"Received: from b\r\n", b"")

    def test_the_envelope_fills_in_for_missing_headers(self):
        request = request_of(b"Subject: x\n\nHi.\n", "me@example.com", ["a@example.org", "b@example.org"])
        assert request["from"] == "me@example.com" and request["to"] == "a@example.org, b@example.org"
        assert request.as_bytes() == b"Subject: x\n\nHi.\n"
        assert "From: me@example.com\nTo: a@example.org, b@example.org\n" in str(request)

    def test_the_headers_fill_in_for_a_missing_envelope(self, monkeypatch):
        request = request_of(b"From: A <A@b.c>\nTo: d@e.f\nDelivered-To: x@y.z\nDelivered-To: w@y.z\n\n")
        assert request.From == "A <A@b.c>" and request.route_from == "a@b.c"
        assert request.To == "d@e.f" and request.route_to == {"d@e.f"}
        monkeypatch.setattr(mail, "ROUTABLE_TO_HEADER", "Delivered-To")
        assert request.route_to == {"x@y.z", "w@y.z"}

    def test_the_envelope_stays_as_given(self):
        request = request_of(RAW, "", ["<A@b.c>", "postmaster"])
        assert request.From == "" and request.route_from is None
        assert request.To == ["<A@b.c>", "postmaster"] and request.route_to == {"a@b.c", "postmaster"}

    @pytest.mark.parametrize("data", [RAW.decode("ascii"), RAW, bytearray(RAW)])
    def test_data_stays_the_original(self, data):
        request = request_of(data)
        assert request.original is data and request.as_bytes() == RAW and request["subject"] == "café"

    def test_a_changed_body_is_written_anew_and_the_headers_stay(self):
        request = request_of(RAW)
        request.base.body = "Grüße\n"
        changed = request.as_bytes()
        assert changed.startswith(RAW[: RAW.index(b"\r\n\r\n")])
        assert request_of(changed).body() == "Grüße\n"

    def test_a_changed_part_leaves_the_others_alone(self):
        data = (
            b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b\n"
            b"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: 8bit\n"
            b"X-Odd:   kept\n\ncaf\xe9\n--b--\n"
        )
        request = request_of(data)
        request.all_parts()[0].body = "two"
        changed = request.as_bytes()
        assert b"X-Odd:   kept\n\ncaf\xe9\n" in changed
        assert [part.body for part in request_of(changed).walk()] == ["two", "café"]

    def test_a_removed_part_is_gone(self):
        request = request_of(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b\n\ntwo\n--b--\n")
        del request.base.parts[0]
        assert [part.body for part in request_of(request.as_bytes()).walk()] == ["two"]

    def test_body_is_the_first_text_that_is_no_file(self):
        data = (
            b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: image/png\n\nx\n--b\n"
            b"Content-Type: text/plain\nContent-Disposition: attachment\n\nfile\n--b\n\nthe body\n--b--\n"
        )
        assert request_of(data).body() == "the body"

    def test_msg_is_the_old_name_of_base(self):
        request = request_of(RAW)
        with pytest.warns(DeprecationWarning):
            assert request.msg is request.base

    def test_headers_can_be_dumped_as_json(self):
        assert json.loads(json.dumps(request_of(RAW).base.headers))["Subject"] == "café"

    def test_requests_can_be_copied_and_pickled(self):
        request = request_of(RAW)
        request["X-One"] = "1"
        for twin in (copy.deepcopy(request), pickle.loads(pickle.dumps(request))):
            assert twin.as_bytes() == request.as_bytes() and twin["received"] == request["received"]
            twin["X-One"] = "2"
            assert request["X-One"] == "1"

    def test_five_hundred_levels_are_bounded_and_kept(self):
        data = (
            b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(500))
            + b"\nHi.\n"
        )
        request = request_of(data)
        assert len(list(request.walk())) == 64
        assert any("deep" in defect.what for defect in request.base.defects)
        assert "Hi." in str(request) and request.as_bytes() == data
        request.to_message().as_string()

    @pytest.mark.parametrize(
        "inside",
        [
            (b"--a\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n" * 4000 + b"--b--\n") * 4,
            b"--a\nContent-Type: multipart/mixed; boundary=a\n\n" * 12_000,
            b"--a\nContent-Type: message/delivery-status\n\n" + b"A: b\n\n" * 12_000,
        ],
        ids=["parts in parts", "the same boundary again and again", "blocks of a report"],
    )
    def test_no_more_than_ten_thousand_parts_are_taken_apart_however_they_are_nested(self, inside):
        data = b"Content-Type: multipart/mixed; boundary=a\n\n" + inside + b"--a--\n"
        request = MailRequest("", None, None, data)
        assert sum(1 for _ in request.walk()) in (10_000, 10_001)
        assert request.as_bytes() == data
        assert not request.to_message().is_multipart(), "Python's email would take all of them apart"
        assert isinstance(str(request), str)

    def test_a_message_in_a_message_in_a_message_is_bounded(self):
        request = request_of(b"Content-Type: message/rfc822\n\n" * 5000 + b"Subject: x\n\n\xe9")
        assert len(list(request.walk())) == 64
        str(request)
        request.to_message().as_string()

    def test_a_megabyte_of_headers(self):
        for data in (
            b"X-A: b\n" * 150_000 + b"\n",
            b"Subject: " + b"a" * 1_000_000 + b"\n\n",
            b"Subject: " + b"=?utf-8?q?" * 100_000 + b"\n\n",
            b"To: " + b"(" * 1_000_000 + b"\n\n",
            b'Content-Type: text/plain; a="' + b'\\"' * 500_000 + b"\n\n",
        ):
            text = str(request_of(data))
            assert all(len(line) <= 998 for line in text.split("\n"))

    def test_a_large_message_costs_at_most_three_times_its_size(self):
        lines = base64.encodebytes(random.Random(0).randbytes(7_500_000)).replace(b"\n", b"\r\n")
        data = (
            b"From: a@b.c\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nHi.\r\n--b\r\n"
            b"Content-Type: application/octet-stream; name=x\r\nContent-Transfer-Encoding: base64\r\n\r\n"
            + lines
            + b"--b--\r\n"
        )
        tracemalloc.start()
        request = request_of(data, "a@b.c", "d@e.f")
        assert request.route_to and request["from"] and request.body() == "Hi." and request.as_bytes()
        assert len(request.attachments()[0].data) > 7_000_000
        str(request)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The message itself was there before.
        assert peak <= 2.1 * len(data)


# What messages are made of, for hypothesis to make bad ones of.
PIECES = [
    *rb"""Content-Type: |multipart/mixed|message/rfc822|text/html|; boundary=b|--b|--b--|Subject: |To: |=?utf-8?q?
|=?x?b?|=C3=A9|?=|"|<|>|a@b.c|,|(|Content-Transfer-Encoding: base64|QUJD|=|; charset=|utf-7| |+2AA-""".split(b"|"),
    *(b"\n", b"\r\n", b"\n\n", b"\r", b"\0", b"\xe9"),
]


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary() | st.lists(st.sampled_from(PIECES)).map(b"".join))
def test_nothing_a_stranger_sends_raises(data):
    request = request_of(data)
    read(request)
    request.is_auto_reply()
    assert request.as_bytes() == data
    str(request).encode("utf-8")
    request.to_message().as_string()
    str(request.reply(Body="x"))


class TestReplyHelpers:
    def test_text_prefers_what_was_written_as_text(self):
        data = (
            b"Content-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/html\n\n<p>html</p>\n--b\n"
            b"Content-Type: text/plain\n\nplain\n--b--\n"
        )
        assert request_of(data).text() == "plain" and request_of(data).html() == "<p>html</p>"

    @pytest.mark.parametrize(
        "character",
        ["\x01", "\x0b", "\0", "\ufffe", "&#1;", "&#1", "&#x0B;", "&#1a", "&#xd800;", "&#xfffe;", "&&#1;#1;",
         "&#00000000000000000000001;", "&#99999999;", "&#99999999999999999999;"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        "place", ["<p><style></style>a{}b", "<b>a{0}<script></script>{0}b</b>", "<!-- {0} -->a{0} b"]
    )
    def test_no_character_in_html_makes_the_text_unreadable(self, place, character):
        html = place.format(character)
        text = request_of(f"Content-Type: text/html; charset=utf-8\n\n{html}".encode()).text()
        assert text.startswith("a") and text.endswith("b")
        assert not any(ord(each) < 32 for each in text)

    def test_html_is_made_text(self):
        data = "Content-Type: text/html; charset=utf-8\n\n<style>p{}</style><p>Grüße &lt;<b>x</b></p><p>Zwei</p>"
        assert request_of(data).text() == "Grüße < x\n\nZwei"

    def test_a_reply_stays_in_the_thread(self):
        request = request_of(
            b"From: Zoe <zoe@example.com>\nTo: Other <o@x.y>, List <list@example.org>\nSubject: Tea\n"
            b"Message-ID: <3@x>\nReferences: <1@x>\n <2@x>\nIn-Reply-To: <2@x>\n\n",
            "bounce@example.com",
            ["list@example.org"],
        )
        reply = request.reply(Body="Yes.")
        assert reply["To"] == "Zoe <zoe@example.com>" and reply["From"] == "list@example.org"
        assert reply["Subject"] == "Re: Tea"
        assert reply["In-Reply-To"] == "<3@x>" and reply["References"] == "<1@x> <2@x> <3@x>"

    @pytest.mark.parametrize("subject", ["Re: Tea", "RE:Tea", "re[2]: Tea", "AW: Tea"])
    def test_a_reply_to_a_reply_has_one_prefix(self, subject):
        assert request_of(f"From: a@b.c\nSubject: {subject}\n\n").reply()["Subject"] == subject

    def test_a_reply_goes_where_it_is_wanted(self):
        request = request_of("From: a@b.c\nReply-To: Me <me@b.c>\n\n")
        assert request.reply()["To"] == "Me <me@b.c>"
        assert request.reply(From="me@x.y")["From"] == "me@x.y"

    def test_nobody_to_answer_is_no_error(self):
        assert "To" not in request_of(b"From: <>\n\n").reply(Body="x")

    def test_endless_threads_do_not_make_endless_headers(self):
        ids = " ".join(f"<{number}@x>" for number in range(1000))
        references = request_of(f"From: a@b.c\nMessage-ID: <z@x>\nReferences: {ids}\n\n").reply()["References"].split()
        assert len(references) == mail.MAX_REFERENCES
        assert references[0] == "<0@x>" and references[-2:] == ["<999@x>", "<z@x>"]

    @pytest.mark.parametrize(
        "header",
        [
            "Auto-Submitted: auto-replied",
            "Auto-Submitted: auto-generated; x=y",
            "Precedence: bulk",
            "Precedence: auto_reply",
            "X-Autoreply: yes",
            "X-Auto-Response-Suppress: DR, OOF, AutoReply",
            "Return-Path: <>",
            "Content-Type: multipart/report; boundary=b",
        ],
    )
    def test_robots_are_known(self, header):
        assert request_of(f"From: a@b.c\n{header}\n\n").is_auto_reply()

    @pytest.mark.parametrize(
        "header", ["Auto-Submitted: no", "Precedence: list", "Return-Path: <a@b.c>", "List-Id: <x>"]
    )
    def test_people_are_not_robots(self, header):
        assert not request_of(f"From: a@b.c\n{header}\n\n").is_auto_reply()

    def test_the_sender_of_bounces_is_a_robot(self):
        assert request_of(b"From: a@b.c\n\n", "").is_auto_reply()
        assert request_of(b"From: a@b.c\n\n", "<>").is_auto_reply()
        assert request_of(b"From: Mailer <MAILER-DAEMON@b.c>\n\n").is_auto_reply()


class TestResponse:
    def test_plain(self):
        response = MailResponse(To="a@b.c", From="Me <me@x.y>", Subject="Hi", Body="Hello.\n")
        message = response.to_message()
        assert message.get_content_type() == "text/plain" and message.get_payload() == "Hello.\n"
        assert message["To"] == "a@b.c" and message["MIME-Version"] == "1.0"

    def test_html(self):
        message = MailResponse(Html="<p>ü</p>").to_message()
        assert message.get_content_type() == "text/html"
        assert message.get_payload(decode=True).decode(message.get_content_charset()) == "<p>ü</p>"

    def test_both_are_an_alternative(self):
        message = MailResponse(Body="a", Html="<p>a</p>").to_message()
        assert [part.get_content_type() for part in message.walk()] == [
            "multipart/alternative", "text/plain", "text/html",
        ]  # fmt: skip

    def test_attachments_make_it_mixed(self):
        response = MailResponse(Body="a", Html="<p>a</p>")
        response.attach("x.png", data=b"\x89PNG")
        kinds = [part.get_content_type() for part in response.to_message().walk()]
        assert kinds == ["multipart/mixed", "multipart/alternative", "text/plain", "text/html", "image/png"]

    def test_a_first_attachment_after_it_was_written_makes_it_mixed_and_without_it_it_is_as_before(self):
        response = MailResponse(Body="a", Html="<p>a</p>")
        before = response.as_bytes()
        response.attach("x.png", data=b"\x89PNG")
        kinds = [part.get_content_type() for part in response.to_message().walk()]
        assert kinds == ["multipart/mixed", "multipart/alternative", "text/plain", "text/html", "image/png"]
        response.clear()
        assert response.as_bytes() == before
        response.Body = None
        assert response.to_message().get_content_type() == "text/html"

    def test_the_kind_of_multipart_that_was_taken_over_stays_after_it_was_written(self):
        response = MailResponse(Body="a", Html="<p>a</p>")
        str(response)
        response.Body = response.Html = None
        raw = b"Content-Type: multipart/alternative; boundary=b\n\n--b\n\none\n--b\n\ntwo\n--b--\n"
        response.attach_all_parts(MailRequest("", None, None, raw))
        for _ in range(2):
            kinds = [part.get_content_type() for part in response.to_message().walk()]
            assert kinds == ["multipart/alternative", "text/plain", "text/plain"]

    def test_writing_is_repeatable(self):
        response = MailResponse(To="a@b.c", From="me@x.y", Body="ü", Html="<p>ü</p>")
        response.attach("x.png", data=b"\x89PNG")
        assert str(response) == str(response) == response.to_message().as_string()
        assert response.as_bytes() == str(response).replace("\n", "\r\n").encode("ascii")
        response.clear()
        assert not response.attachments
        response.Html = None
        assert response.to_message().get_content_type() == "text/plain"

    def test_date_and_message_id_are_added_once(self):
        response = MailResponse(From="me@example.com", Body="x")
        first = response.to_message()
        assert first["Message-ID"].endswith("@example.com>") and email.utils.parsedate_to_datetime(first["Date"])
        assert response.to_message()["Message-ID"] == first["Message-ID"] == response["message-id"]
        kept = MailResponse(Body="x")
        kept["Message-ID"], kept["Date"] = "<1@x>", "Sat, 3 Jan 1996 01:05:34 +0000"
        assert kept.to_message()["Message-ID"] == "<1@x>" and "1996" in kept.to_message()["Date"]

    def test_none_leaves_a_header_out(self):
        response = MailResponse(To="a@b.c", Body="x")
        assert "Subject" not in response and "Subject" not in str(response)
        response["To"] = None
        assert "To" not in response.to_message()

    def test_a_list_of_recipients(self):
        assert MailResponse(To=["a@b.c", "d@e.f"])["To"] == "a@b.c, d@e.f"

    @pytest.mark.parametrize("value", ["a\nBcc: x@y.z", "a\rb", "a\r\n b", "\n"])
    def test_line_breaks_in_headers_are_refused(self, value):
        response = MailResponse(Body="x")
        for name in ("Subject", "To", "X-Any", "Content-Type", "Message-ID"):
            with pytest.raises(encoding.HeaderError, match=name):
                response[name] = value
            with pytest.raises((ValueError, AssertionError), match=name):
                response.update({name: value})
        for argument in ("To", "From", "Subject"):
            with pytest.raises(encoding.HeaderError, match=argument):
                MailResponse(**{argument: value})
        with pytest.raises(encoding.HeaderError, match="file's name"):
            response.attach(f"x{value}.txt", data=b"x", content_type="text/plain")
        with pytest.raises(encoding.HeaderError, match="To"):
            response["To"] = ["a@b.c", value]

    def test_line_breaks_put_in_later_are_refused_when_written(self):
        response = MailResponse(Body="x")
        response.attach("a.txt", data="x")
        response.attachments[0].content_encoding["Content-Disposition"][1]["filename"] = "a\nb"
        with pytest.raises(encoding.HeaderError, match="filename"):
            str(response)

    @pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "a\nb"])
    def test_names_that_are_none_are_refused(self, name):
        with pytest.raises(encoding.HeaderError):
            MailResponse()[name] = "x"

    def test_a_missing_file_is_an_error_at_once(self, tmp_path):
        with pytest.raises(MisuseError, match="not-there.txt"):
            MailResponse().attach(str(tmp_path / "not-there.txt"))
        with pytest.raises(AssertionError):
            MailResponse().attach()
        with pytest.raises(AssertionError, match="content_type"):
            MailResponse().attach("README", data="x")

    def test_files_are_attached_from_the_disk(self, tmp_path):
        path = tmp_path / "täst file.bin"
        path.write_bytes(bytes(range(256)))
        response = MailResponse(Body="x")
        response.attach(path, content_type="application/octet-stream")
        path.unlink()
        assert request_of(str(response)).attachments() == [
            ("täst file.bin", "application/octet-stream", bytes(range(256)))
        ]

    def test_text_without_a_name(self):
        response = MailResponse(Body="x")
        response.attach(data="zwölf\n", content_type="text/plain", disposition="inline")
        assert [part.body for part in request_of(str(response)).walk()] == ["x", "zwölf\n"]

    def test_a_message_is_attached_whole(self):
        response = MailResponse(Body="x")
        response.attach("it.eml", content_type="message/rfc822", data=RAW)
        name, kind, data = request_of(response.as_bytes()).attachments()[0]
        assert (name, kind, data) == ("it.eml", "message/rfc822", RAW)

    def test_parts_of_a_request_are_passed_on(self):
        path = next(path for path in MESSAGES if path.stem.endswith("alternative"))
        request = request_of(path.read_bytes())
        response = MailResponse(To="a@b.c", From="me@x.y", Subject="Fwd")
        response.attach_all_parts(request)
        assert len(response.attachments) == len(request.all_parts()) == len(response.all_parts())
        passed_on = request_of(str(response))
        assert passed_on.text() == request.text() and passed_on.attachments() == request.attachments()
        response.Body = "See below."
        assert request_of(str(response)).body() == "See below."

    def test_headers_of_another_message_are_taken_over(self):
        response = MailResponse(Body="x")
        response.update(request_of(RAW))
        assert response["Subject"] == "café"
        response.update(email.message_from_bytes(RAW))
        assert response["Received"] == "from a\tby b"

    def test_old_name_of_base(self):
        response = MailResponse()
        with pytest.warns(DeprecationWarning):
            assert response.msg is response.base

    @given(st.text(), st.text(), st.binary(), st.text(min_size=1))
    def test_what_goes_in_comes_out(self, subject, body, data, name):
        subject = subject.replace("\r", "").replace("\n", "").encode("utf-8", "replace").decode().strip(" \t")
        body = body.encode("utf-8", "replace").decode().replace("\r\n", "\n")
        name = name.replace("\r", "").replace("\n", "").replace("/", "").encode("utf-8", "replace").decode() or "x"
        response = MailResponse(To="a@b.c", From="d@e.f", Subject=subject, Body=body)
        response.attach(name, content_type="application/octet-stream", data=data)
        for written in (str(response), response.as_bytes()):
            request = request_of(written)
            assert request["subject"] == subject
            assert request.all_parts()[0].body == body
            assert request.attachments() == [(name, "application/octet-stream", data)]
            assert not request.base.defects
        python = email.message_from_bytes(response.as_bytes(), policy=email.policy.default)
        assert next(iter(python.iter_attachments())).get_payload(decode=True) == data


class TestSignatures:
    """Whatever is signed is still signed after we wrote it."""

    @pytest.fixture
    def smime(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("smime")
        run = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=t", "-days", "2"]
        try:
            subprocess.run([*run, "-keyout", "key", "-out", "cert"], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl is not installed")
        (folder / "text").write_bytes(b"Content-Type: text/plain; charset=iso-8859-1\n\nna=EFve  \n-- \nme\n")
        sign = ["openssl", "smime", "-sign", "-in", "text", "-signer", "cert", "-inkey", "key", "-out", "signed"]
        subprocess.run([*sign, "-from", "a@b.c", "-subject", "Hi"], cwd=folder, check=True, capture_output=True)
        return folder

    def verify(self, folder, data):
        (folder / "out").write_bytes(data)
        command = ["openssl", "smime", "-verify", "-in", "out", "-CAfile", "cert", "-out", "/dev/null"]
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0

    def test_smime_survives_everything_we_do(self, smime):
        signed = (smime / "signed").read_bytes()
        assert self.verify(smime, signed)
        request = request_of(signed)
        read(request)
        request["Subject"] = "[list] Hi"
        assert self.verify(smime, request.as_bytes())
        assert self.verify(smime, str(request).encode())
        response = MailResponse(From="list@b.c", To="x@y.z", Subject="Fwd")
        response.attach_all_parts(request)
        assert self.verify(smime, response.as_bytes())

    def test_a_changed_text_is_noticed(self, smime):
        assert not self.verify(smime, (smime / "signed").read_bytes().replace(b"na=EFve", b"na=EFVe"))


@pytest.mark.parametrize("name", ["mail.md", "encoding.md"])
def test_the_examples_of_the_documents_are_true(name):
    path = pathlib.Path(__file__).parent.parent / "docs" / name
    blocks = re.findall(r"^```pycon\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    example = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, str(path), 0)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
