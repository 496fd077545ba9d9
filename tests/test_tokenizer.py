"""Tests for lamson.tokenizer: what a spam filter sees of a message."""

import doctest
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamson import tokenizer
from lamson.encoding import MailBase, from_string
from lamson.mail import MailResponse
from lamson.tokenizer import ASPECTS, MAX_PARTS, MAX_TEXT, tokenize


def tokens(data, aspect=None):
    """The tokens of a message in one aspect, or in all."""
    found = tokenize(from_string(data))
    assert tuple(found) == ASPECTS
    return found[aspect] if aspect else set().union(*found.values())


def text_tokens(text, kind="text/plain", aspect="words"):
    return tokens(f"Content-Type: {kind}; charset=utf-8\n\n{text}\n", aspect)


def test_the_example_in_the_module():
    assert doctest.testmod(tokenizer).failed == 0


# --- headers ---------------------------------------------------------------------------------------------------------


def test_a_subject_gives_words_pairs_and_punctuation():
    found = tokens("Subject: MAKE money fast!!!  now\n\n", "subject")
    assert {"subject:make", "subject:money", "subject:fast", "subject:now"} <= found
    assert {"subject:^ make", "subject:make money", "subject:now $"} <= found
    assert {"subject:!!!", "subject:  "} <= found


def test_an_encoded_subject_is_decoded_before_it_is_read():
    assert "subject:geld" in tokens("Subject: =?utf-8?b?R2VsZCBm/HI=?=\n\n")
    assert "subject:größe" in tokens("Subject: =?iso-8859-1?q?Gr=F6=DFe?=\n\n")


def test_addresses_give_their_parts_and_the_domains_above():
    found = tokens('From: "Joe Doe" <JOE@mail.Example.com>\nTo: a@x.org, b@x.org\n\n', "address")
    assert {"from:addr:joe", "from:addr:mail.example.com", "from:addr:example.com", "from:addr:com"} <= found
    assert {"to:addr:a", "to:addr:b", "to:addr:x.org", "to:no real name", "cc:none", "reply-to:none"} <= found
    assert "to:2**2" in found
    assert "to:name:doe" in tokens('To: "Joe Doe" <joe@x.org>\n\n', "address")


def test_received_headers_give_hosts_networks_and_remarks():
    found = tokens(
        "Received: from mx.spam.example (unknown [200.1.2.3]) (may be forged)\n by mail.x.org with SMTP; 1 Jan 2024\n"
        "Received: from localhost ([192.168.0.1]) by mx.spam.example with ESMTP id 1.2.3\n\n",
        "route",
    )
    assert {"received:mx.spam.example", "received:spam.example", "received:example"} <= found
    assert {"received:200.1.2", "received:200.1", "received:200", "received:private"} <= found
    assert {"received:(may be forged)", "received:with smtp", "received:with esmtp"} <= found
    assert not any("200.1.2.3" in token or "192" in token for token in found)


def test_message_id_and_date_give_what_they_look_like():
    found = tokens("Message-ID: <20020826.F21B@pobox.com>\nDate: Mon, 26 Aug 2002 22:10:00 -0700 (PDT)\n\n", "stamp")
    assert {"message-id:9.A9A", "message-id:@pobox.com", "date:zone:-0700 PDT", "date:hour:22"} <= found
    assert "date:Aa, 9 Aa 9 9:9:9 -9 (A)" in found


def test_the_names_of_headers_and_what_programs_write_are_tokens():
    found = tokens("X-Mailer: The Bat! (v1.52f)\nX-Priority: 3\nList-Id: x\nMIME-Version: 1.0\n\n", "headers")
    assert {"header:list-id", "header:x-mailer", "x-mailer:bat", "x-mailer:the bat! (v1.52f)"} <= found
    assert {"x-priority:3", "mime-version:1.0"} <= found
    assert "mime-version:none" in tokens("Subject: x\n\n")


@pytest.mark.parametrize("name", ["X-Spam-Status", "X-Spambayes-Trained", "Status", "Delivered-To", "ARC-Seal"])
def test_headers_that_were_added_after_sending_are_not_learned_from(name):
    assert tokens(f"Subject: x\n{name}: spam\n\nHi.\n") == tokens("Subject: x\n\nHi.\n")


# --- parts -----------------------------------------------------------------------------------------------------------

MIXED = """\
Subject: x
Content-Type: multipart/mixed; boundary="----=_NextPart_000_0001"

------=_NextPart_000_0001
Content-Type: text/plain; charset="Windows-1252"; format=flowed
Content-Transfer-Encoding: quoted-printable

Price: =80 99,00
------=_NextPart_000_0001
Content-Type: application/zip; name="Your Document.PIF"
Content-Disposition: attachment; filename="Your Document.PIF"
Content-Transfer-Encoding: base64

UEsDBAo=
------=_NextPart_000_0001--
"""


def test_parts_give_types_charsets_parameters_and_boundaries():
    found = tokens(MIXED, "form")
    assert {"content-type:multipart/mixed", "content-type:text/plain", "content-type:application/zip"} <= found
    assert {"charset:windows-1252", "content-type:format=flowed", "content-disposition:attachment"} <= found
    assert "boundary:----=_AaAa_9_9" in found
    assert "parts:multipart/mixed text/plain application/zip" in found


def test_attachments_give_their_names_types_and_rough_size():
    found = tokens(MIXED, "form")
    assert {"filename:your document.pif", "fname piece:document", "fname type:pif", "size:application/zip 4"} <= found


def test_text_is_decoded_before_it_is_read():
    assert "money:€ 99,99" in tokens(MIXED, "form")


def test_the_charset_is_not_guessed_when_it_is_wrong(monkeypatch):
    monkeypatch.setattr("lamson.charsets.detect_charset", lambda data: pytest.fail("takes too long"))
    assert "grün" in tokens("Content-Type: text/plain; charset=us-ascii\n\ngrün\n".encode(), "words")
    assert "grün" in tokens("Content-Type: text/plain; charset=us-ascii\n\ngrün\n".encode("latin-1"), "words")


# --- text ------------------------------------------------------------------------------------------------------------


def test_words_are_in_lower_case_and_their_spelling_is_a_token_of_its_own():
    assert text_tokens("Get it NOW, get it free") == {"get", "now,", "free"}
    assert {"case:Get", "case:NOW,"} <= text_tokens("Get it NOW, get it free", aspect="form")


def test_of_long_words_the_length_counts_and_long_addresses_are_taken_apart():
    assert "skip:x 30" in text_tokens("x" * 34, aspect="form")
    assert text_tokens("x" * 34) == set()
    assert text_tokens("<someone.there@mail.example.com>,") == {
        "email name:someone.there",
        "email addr:mail.example.com",
    }
    assert text_tokens("a@b.org") == {"a@b.org"}


def test_text_without_spaces_is_cut_into_pairs_of_characters():
    assert {"免费", "费发", "发票"} <= text_tokens("免费发票" * 8)


def test_the_form_of_the_text_counts_letters_shouts_and_money():
    found = text_tokens("ONLY $29.95 FOR ALL OF YOU FROM TODAY!!!", aspect="form")
    assert {"money:$99.99", "capitals:100%", "shouts:7"} <= found
    assert "8bit%:3" in text_tokens("Прив et, you", aspect="form")


def test_links_give_their_pieces_hosts_and_what_is_odd_about_them():
    found = text_tokens(
        "see HTTP://user@Shop.Example.com:8080/a%20b/buy.php?id=7, www.tea.example and mailto:off@x.org or "
        "https://10.1.2.3/x",
        aspect="form",
    )
    assert {"proto:http", "proto:https", "proto:mailto", "url:shop", "url:example", "url:buy", "url:php"} <= found
    assert {"url:shop.example.com", "url:example.com", "url:has user", "url:port 8080", "url:ip addr"} <= found
    assert {"url:%1", "url:type php", "url:tea", "url:off"} <= found


def test_html_is_read_as_it_is_shown():
    found = text_tokens(
        "<html><style>p {color: red}</style><p>Buy V<b></b>iag<!-- hidden -->ra</p>cheap&nbsp;pills<br>today &euro;5"
        "<script>evil()</script></html>",
        "text/html",
    )
    assert found == {"buy", "viagra", "cheap", "pills", "today"}


def test_the_tags_of_html_are_tokens_too():
    found = text_tokens("<HTML><a href='http://x.example/'>x</a><IMG SRC=cid:1>", "text/html", "form")
    assert {"tag:html", "tag:a", "tag:/a", "tag:img", "url:x.example"} <= found


def test_html_that_is_sent_as_plain_text_is_read_as_html():
    assert "tag:table" in text_tokens("<TABLE><tr><td>Buy</td></tr></TABLE>", aspect="form")
    assert text_tokens("if a<b and b<c then a<d") == {"a<b", "and", "b<c", "then", "a<d"}


def test_a_comment_without_an_end_hides_nothing():
    assert "viagra" in text_tokens("<p>x<!-- viagra <style> ", "text/html")


# --- whatever comes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\x00\xff\xfe",
        b"Subject: \x00\n\n\x00 a\x00b\n",
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\n--b--\n",
        b'Content-Type: text/html\n\n&#xD800;&#x110000;&#0; <a href="http://[::1]:x/%">\n',
        b"From: =?utf-8?q?=ED=A0=80?= <@>\nTo: ,;:<>\nDate: \nMessage-ID: @\nReceived: ;\n\n",
        b"Content-Type: text/plain; charset=utf-7\n\n+2AA-\n",
        b"Content-Type: message/rfc822\n\nContent-Type: message/rfc822\n\nSubject: x\n\nHi\n",
    ],
)
def test_anything_has_tokens_that_can_be_written_as_utf_8(data):
    assert "\n".join(tokens(data)).encode("utf-8")


@given(st.binary(max_size=2000))
def test_random_bytes_do_not_raise(data):
    tokens(data)


@given(
    st.lists(st.tuples(st.sampled_from("Subject From To Received Date Message-ID X-Mailer".split()), st.text())),
    st.sampled_from(["text/plain", "text/html", "multipart/mixed; boundary=b", "image/png", "x"]),
    st.text(),
)
def test_random_text_anywhere_does_not_raise(headers, kind, body):
    head = "".join(f"{name}: {value}\n" for name, value in headers)
    data = f"{head}Content-Type: {kind}\n\n{body}".encode("utf-8", "surrogatepass")
    assert all(isinstance(token, str) for token in tokens(data))


@pytest.mark.parametrize(
    "piece",
    ["<", "<!--", "<style", "<a ", "&#", "://", "mailto:", "www.", "a@", "(a a", "$", "é", "a.", "%", "a ", "=?"],
)
def test_no_text_takes_long(piece):
    for kind in ("text/plain", "text/html"):
        began = time.process_time()
        tokens(f"Subject: {piece * 2000}\nReceived: {piece * 2000}\nContent-Type: {kind}\n\n{piece * 300_000}".encode())
        assert time.process_time() - began < 2


def test_of_very_long_messages_the_beginning_counts():
    assert len(text_tokens(" ".join(str(number) for number in range(100_000)))) < MAX_TEXT // 4
    parts = "".join(f"--b\n\nword{number}\n" for number in range(300))
    found = tokens(f"Content-Type: multipart/mixed; boundary=b\n\n{parts}--b--\n", "words")
    assert "word1" in found and f"word{MAX_PARTS}" not in found
    assert len(found) == MAX_PARTS - 1


def test_a_message_made_here_has_tokens_too():
    response = MailResponse(To="a@x.org", From="b@x.org", Subject="Tea", Body="Come and drink tea.\n")
    response.attach("menu.txt", data="Tea\n")
    assert {"subject:tea", "drink", "fname type:txt"} <= set().union(
        *tokenize(from_string(response.as_bytes())).values()
    )
    part = MailBase()
    part.body = b"\x00\x01"
    assert "size:application/octet-stream 2" in tokenize(part)["form"]
