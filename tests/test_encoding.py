"""lamson.encoding, and the modules it is made of: charsets, transfer encodings, headers, fields, addresses, source."""

import base64
import binascii
import email
import io
import string
from email.charset import Charset

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamson import addresses, charsets, encoding, headers, transfer
from lamson.encoding import EncodingError, HeaderError, MailBase, MIMEPart
from lamson.fields import Headers
from lamson.source import Source, blocks

# Text that UTF-8 can hold, on one line.
LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


class TestCharsets:
    @pytest.mark.parametrize(
        ("name", "codec"),
        [
            ("UTF-8", "utf-8"), ("utf8", "utf-8"), ('"iso-8859-1"', "iso8859-1"), ("Windows-1252", "cp1252"),
            ("ks_c_5601-1987", "cp949"), ("x-sjis", "cp932"), ("ansi_x3.110-1983", "iso8859-1"),
            ("iso-8859-8-i", "iso8859-8"), ("macintosh", "mac-roman"), ("unicode-1-1-utf-7", "utf-7"),
        ],
    )  # fmt: skip
    def test_charsets_in_all_their_spellings(self, name, codec):
        assert charsets.find_codec(name) == codec

    @pytest.mark.parametrize(
        "name",
        ["", "x-unknown", "default", "punycode", "idna", "base64", "zlib", "unicode_escape", "a\0b", "é", "a" * 999],
    )
    def test_what_is_no_charset(self, name):
        assert charsets.find_codec(name) is None

    @pytest.mark.parametrize(
        ("data", "charset", "text"),
        [
            (b"caf\xe9", "iso-8859-1", "café"),
            ("Grüße".encode(), "us-ascii", "Grüße"),
            ("\u2460x".encode("cp932"), "shift_jis", "\u2460x"),
            ("\ub620".encode("cp949"), "euc-kr", "\ub620"),
            ("Привет, как твои дела сегодня?".encode("koi8-r"), "x-unknown", "Привет, как твои дела сегодня?"),
        ],
    )
    def test_decode_finds_what_was_meant(self, data, charset, text):
        assert charsets.decode(data, charset)[0] == text

    @given(st.binary(), st.sampled_from([None, "", "utf-8", "us-ascii", "x", "utf-7", "utf-16", "iso-2022-jp", "hz"]))
    def test_decode_gives_text_for_anything(self, data, charset):
        text, complaint = charsets.decode(data, charset)
        text.encode("utf-8")
        assert complaint is None or complaint.isprintable()

    def test_latin_1_is_the_last_resort_and_loses_nothing(self):
        text, complaint = charsets.decode(bytes(range(256)), "x", detect=False)
        assert text.encode("latin-1") == bytes(range(256)) and complaint == "unknown charset 'x', read as latin-1"

    def test_attempt_decoding(self):
        assert encoding.attempt_decoding("ascii", "tëxt") == "tëxt"
        assert encoding.attempt_decoding("latin-1", b"\xe9") == "é"
        assert encoding.attempt_decoding("x-unknown", "Grüße".encode()) == "Grüße"
        with pytest.raises(EncodingError, match="'ascii'"):
            encoding.attempt_decoding("ascii", bytes(range(256)))

    def test_guess_encoding_and_decode(self):
        assert encoding.guess_encoding_and_decode("ascii", "Grüße".encode()) == "Grüße"
        with pytest.raises(EncodingError, match="'x'"):
            encoding.guess_encoding_and_decode("x", bytes(range(256)))


class TestTransfer:
    @given(st.binary())
    def test_files_survive(self, data):
        name, encoded = transfer.encode(data)
        assert all(len(line) <= 76 for line in bytes(encoded).split(b"\n"))
        assert transfer.decode(bytes(encoded), name) == (data, None)

    @given(st.text(st.sampled_from("ab é\r\n\t=.€\0 ")))
    def test_text_survives(self, text):
        data = text.encode()
        name, encoded = transfer.encode_text(data)
        decoded = bytes(transfer.decode(bytes(encoded), name)[0])
        assert decoded == data or decoded.replace(b"\n", b"\r\n") == data
        assert all(len(line) <= 998 for line in bytes(encoded).split(b"\n"))

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            (b"plain\n", "7bit"),
            (b"plain\r\n", "7bit"),
            (b"a" * 999, "quoted-printable"),
            ("mostly plain, but ü\n".encode(), "quoted-printable"),
            ("ничего\n".encode(), "base64"),
            (b"lone\rreturn\n", "base64"),
            (b"a nul \0 among letters", "quoted-printable"),
        ],
    )
    def test_text_takes_the_shorter_form(self, text, name):
        assert transfer.encode_text(text)[0] == name

    @pytest.mark.parametrize(
        ("data", "decoded"),
        [
            (b"Y2Fm", b"caf"),
            (b"Y2\r\nFm\r\n", b"caf"),
            (b"Y2F", b"ca"),
            (b"Y2Fmw", b"caf"),
            (b"Y2!Fm", b"caf"),
            (b"Yw==\nYWY=\n", b"caf"),
            (b"Yw==\n-- \nlist footer\n", b"c"),
            (b"", b""),
            (b"====", b""),
        ],
    )
    def test_broken_base64(self, data, decoded):
        assert transfer.decode_base64(data)[0] == decoded

    def test_a_broken_line_does_not_spoil_the_others(self):
        data = bytes(range(256)) * 4
        lines = base64.encodebytes(data).splitlines()
        lines[3] += b"xyz"
        salvaged, complaint = transfer.decode_base64(b"\n".join(lines))
        assert salvaged.startswith(data[: 4 * 57]) and salvaged.endswith(data[4 * 57 :]) and complaint

    def test_uuencoded(self):
        data = bytes(range(256))
        lines = [binascii.b2a_uu(data[start : start + 45]) for start in range(0, 256, 45)]
        whole = b"begin 644 x.bin\n" + b"".join(lines) + b"`\nend\n"
        assert transfer.decode(whole, "x-uuencode") == (data, None)
        assert transfer.decode(whole.replace(b"\n", b"\r\n"), "uuencode") == (data, None)
        assert transfer.decode(whole[:-5], "uuencode") == (data, "uuencoded text without an end line")
        assert transfer.decode(b"no", "x-uue") == (b"no", "uuencoded text without a begin line")

    def test_an_encoding_nobody_knows_leaves_it_alone(self):
        assert transfer.decode(b"a=3D", "spam") == (b"a=3D", "unknown transfer encoding 'spam'")
        assert transfer.decode(b"a=3D", None) == (b"a=3D", None)


class TestHeaderValues:
    @given(LINES)
    def test_words_survive(self, text):
        encoded = headers.encode_words(text)
        assert encoded.isascii() and all(len(word) <= 75 for word in encoded.split() if word.startswith("=?"))
        assert headers.decode_words(encoded) == text

    @given(LINES)
    def test_a_header_survives_on_short_lines(self, text):
        lines = headers.format_header("Subject", text)
        assert all(len(line) <= 998 for line in lines.split("\n")) and lines.endswith("\n")
        assert encoding.from_string(lines + "\n")["subject"] == text.strip(" \t")

    @given(st.text(string.ascii_letters + " ", min_size=100).filter(lambda text: max(map(len, text.split(" "))) < 70))
    def test_words_are_folded_at_78(self, text):
        assert all(len(line) <= 78 for line in headers.format_header("Subject", text).split("\n"))

    @given(LINES.filter(lambda text: text.strip(" \t")))
    def test_names_survive(self, name):
        quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        lines = headers.format_header("To", f"{quoted} <a@b.c>, d@e.f")
        assert lines.isascii()
        found = addresses.parse(encoding.from_string(lines + "\n")["to"])
        assert [address for _, address in found] == ["a@b.c", "d@e.f"]
        assert found[0][0] == " ".join(name.split()) or not name.isprintable()

    @given(st.dictionaries(st.sampled_from(["name", "filename", "x-a"]), LINES))
    def test_parameters_survive(self, parameters):
        lines = headers.format_parameters("Content-Type", "text/plain", parameters)
        assert lines.isascii() and all(len(line) <= 78 for line in lines.split("\n"))
        value = headers.unfold(lines.partition(":")[2])
        assert headers.parse_parameters(value) == ("text/plain", parameters)

    @given(LINES.filter(str.strip))
    def test_python_reads_our_file_names(self, name):
        lines = headers.format_parameters("Content-Disposition", "attachment", {"filename": name})
        read = email.message_from_string(lines + "\n").get_filename()
        assert read == name or "\\" in name or '"' in name or name != name.strip()

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("text/plain", ("text/plain", {})),
            ("TEXT/Plain; CHARSET=UTF-8", ("text/plain", {"charset": "UTF-8"})),
            ("text/plain charset=utf-8", ("text/plain", {"charset": "utf-8"})),
            ("filename=x", ("", {"filename": "x"})),
            ('a/b; x="a;b\\"c"; y=d', ("a/b", {"x": 'a;b"c', "y": "d"})),
            ('a/b; x="unfinished; y=1', ("a/b", {"x": "unfinished; y=1"})),
            ("a/b;;; ;x ; =y; z=1", ("a/b", {"z": "1"})),
            ("a/b; x=1; x=2", ("a/b", {"x": "1"})),
            ("a/b; x*1=b; x*0=a; x*2*=%20c", ("a/b", {"x": "ab c"})),
            ("a/b; x*=latin-1'fr'%E9; x=e", ("a/b", {"x": "é"})),
            ("a/b; x*=%zz'", ("a/b", {"x": "%zz'"})),
            ("", ("", {})),
        ],
    )
    def test_parameters_as_they_are_written(self, text, found):
        assert headers.parse_parameters(text) == found

    def test_line_breaks_and_bad_names_are_refused(self):
        for name, value in (("X", "a\nb"), ("X", "a\rb"), ("X Y", "a"), ("", "a"), ("É", "a")):
            with pytest.raises(HeaderError):
                headers.format_header(name, value)
        assert issubclass(HeaderError, ValueError) and issubclass(HeaderError, AssertionError)
        with pytest.raises(HeaderError, match="filename"):
            headers.format_parameters("Content-Type", "a/b", {"filename": "x\ny"})

    def test_long_lists_of_addresses_without_spaces_are_folded(self):
        everybody = ",".join(f"somebody{number}@example.com" for number in range(100))
        lines = headers.format_header("To", everybody)
        assert all(len(line) <= 78 for line in lines.split("\n"))
        assert len(addresses.parse(encoding.from_string(lines + "\n")["to"])) == 100


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("a@b.c", [("", "a@b.c")]),
            ("<A@b.c>", [("", "A@b.c")]),
            ("Joe Q. <a@b.c>", [("Joe Q.", "a@b.c")]),
            ('"Doe, \\"J\\"" <a@b.c>, d@e.f (Dee)', [('Doe, "J"', "a@b.c"), ("Dee", "d@e.f")]),
            ("friends: a@b.c, d@e.f;, g@h.i", [("", "a@b.c"), ("", "d@e.f"), ("", "g@h.i")]),
            ("undisclosed-recipients:;", []),
            ("<>", []),
            ("", []),
            ("nobody at all", []),
            ("postmaster", [("", "postmaster")]),
            ("(comment (in) it) c@d.e", [("comment in it", "c@d.e")]),
            ("<@r.s,@t.u:a@b.c>", [("", "a@b.c")]),
            ('"a b"@c.d', [("", '"a b"@c.d')]),
            ("a@[IPv6:::1], b@[1.2.3.4]", [("", "a@[IPv6:::1]"), ("", "b@[1.2.3.4]")]),
            ("a@b.c; d@e.f", [("", "a@b.c"), ("", "d@e.f")]),
            ("a @ b.c", [("", "a@b.c")]),
            ("Joe a@b.c", [("Joe", "a@b.c")]),
            ("ü@ä.example", [("", "ü@ä.example")]),
        ],
    )
    def test_lists_as_they_are_written(self, text, found):
        assert addresses.parse(text) == found

    @given(st.text(st.sampled_from('ab@.,;:<>()[]"\\ \té')))
    def test_nothing_raises(self, text):
        assert all(isinstance(address, str) and address for address in addresses.bare(text))


class TestHeaders:
    def test_it_is_a_dictionary(self):
        found = Headers([("X-One", "1"), ("x-two", "2"), ("X-ONE", "one")])
        assert dict(found) == found.copy() == {"X-One": "1", "X-Two": "2"}
        assert list(found.items()) == [("X-One", "1"), ("X-Two", "2")] and list(found.values()) == ["1", "2"]
        assert found.get_all("x-one") == ["1", "one"] and found.get("y", 0) == 0
        assert found.pop("x-two") == "2" and found.pop("x-two", None) is None
        assert found.setdefault("z", "3") == "3" and len(found) == 2
        found.update({"x-one": "uno"})
        assert found.get_all("X-One") == ["uno"]
        with pytest.raises(KeyError):
            found.pop("nothing")
        found.clear()
        assert not found and found.raw("\n") == ""

    def test_values_become_text(self):
        found = Headers()
        found["a"], found["b"], found["c"] = 3, "ü".encode(), ["x@y.z", "a@b.c"]
        assert (found["a"], found["b"], found["c"]) == ("3", "ü", "x@y.z, a@b.c")
        found["a"] = None
        assert "a" not in found


class TestSource:
    def test_boundaries_are_whole_lines(self):
        source = Source(b"\n--b\none\n--bc\n --b\nx--b\n--b \t\r\ntwo\r\n--b--\nepilogue")
        spans, complaint = source.split("b")
        assert [source.raw[start:end] for start, end in spans] == [
            b"one\n--bc\n --b\nx--b",
            b"two",
        ] and complaint is None

    def test_blocks(self):
        content = b"\n\na\nb\n\n \nc"
        assert [content[start:end] for start, end in blocks(content)] == [b"a\nb\n", b"c"]


class TestMessages:
    RAW = "Subject: =?utf-8?q?caf=C3=A9?=\nX-One: 1\nX-One: 2\nContent-Type: text/plain; charset=utf-8\n\ntëxt\n"

    def test_strings_files_and_messages(self):
        for mail in (
            encoding.from_string(self.RAW),
            encoding.from_string(self.RAW.encode()),
            encoding.from_file(io.StringIO(self.RAW)),
            encoding.from_file(io.BytesIO(self.RAW.encode())),
            encoding.from_message(email.message_from_bytes(self.RAW.encode())),
            encoding.from_message(email.message_from_string(self.RAW)),
        ):
            assert mail["subject"] == "café" and mail.get_all("x-one") == ["1", "2"] and mail.body == "tëxt\n"
            written = io.StringIO(), io.BytesIO()
            for file in written:
                encoding.to_file(mail, file)
            assert written[0].getvalue() == encoding.to_string(mail) == written[1].getvalue().decode()
            assert encoding.from_string(encoding.to_string(mail)).body == mail.body
            assert encoding.to_message(mail)["Subject"] == "=?utf-8?b?Y2Fmw6k=?="
        assert encoding.to_string(mail, envelope_header=True).startswith("From nobody\nSubject:")

    def test_parts_made_by_hand(self):
        multipart = MIMEPart("multipart/mixed")
        text = MIMEPart("text/plain", charset="utf-8")
        text.add_text("Grüße\n")
        image = MIMEPart("image/png", name="x.png")
        image.set_payload(base64.encodebytes(b"\x89PNG").decode())
        image["Content-Transfer-Encoding"] = "base64"
        for part in (text, image):
            multipart.attach(part)
        mail = encoding.from_message(multipart)
        assert mail.parts[0].body == "Grüße\n" and mail.parts[1].body == b"\x89PNG"
        assert mail.parts[1].content_encoding["Content-Type"] == ("image/png", {"name": "x.png"})
        again = MIMEPart("image/png")
        again.extract_payload(mail.parts[1])
        assert again.get_payload(decode=True) == b"\x89PNG" and again.get_filename() == "x.png"

    def test_a_mail_made_by_hand(self):
        mail = MailBase([("To", "a@b.c"), ("Subject", None)])
        mail.body = "first\n"
        mail.attach_text("zweitens ü", "text/html")
        mail.attach_file("x.bin", b"\0\1", "application/octet-stream", "inline")
        assert mail.keys() == ["To"] and [part.content_type for part in mail.walk()] == [
            "text/html", "application/octet-stream",
        ]  # fmt: skip
        again = encoding.from_string(mail.as_bytes())
        assert [part.body for part in again.walk()] == ["first\n", "zweitens ü", b"\0\1"]
        assert again.parts[2].content_encoding["Content-Disposition"] == ("inline", {"filename": "x.bin"})
        assert mail and not MailBase()

    def test_misuse_is_told(self):
        for arguments in (("", "x", "text/plain", None), ("x", "x", "text", None)):
            with pytest.raises(AssertionError):
                MailBase().attach_file(*arguments)

    def test_content_encoding(self):
        mail = encoding.from_string(
            b"Content-Type: MULTIPART/Mixed; boundary=b; x=y\nContent-Disposition: inline\nMime-version: 1.0 (me)\n\n"
        )
        assert mail.content_encoding == {
            "Content-Type": ("multipart/mixed", {"x": "y"}),
            "Content-Disposition": ("inline", {}),
            "Content-Transfer-Encoding": (None, {}),
            "Mime-Version": ("1.0 (me)", {}),
        }
        assert set(mail.content_encoding) == encoding.CONTENT_ENCODING_KEYS
        assert mail["content-type"] == "multipart/mixed; x=y" and "content-transfer-encoding" not in mail

    def test_the_content_type_can_be_changed(self):
        mail = encoding.from_string(b"Content-Type: text/plain; charset=latin-1\nX: y\n\ncaf\xe9\n")
        mail["Content-Type"] = "text/html; charset=utf-8"
        again = encoding.from_string(mail.as_bytes())
        assert again.content_type == "text/html" and again.body == "café\n" and again["x"] == "y"

    def test_large_bodies_are_not_kept(self):
        mail = encoding.from_string(b"\n" + b"a" * 2_000_000)
        assert mail.body == mail.body and mail.body is not mail.body


class TestLamsonsFunctions:
    def test_normalize_header(self):
        assert encoding.normalize_header("mEssage-ID") == "Message-Id"

    def test_header_from_mime_encoding(self):
        assert encoding.header_from_mime_encoding(None) is None
        assert encoding.header_from_mime_encoding("=?utf-8?q?caf=C3=A9?=\n x") == "café x"
        assert encoding.header_from_mime_encoding(["a", b"\xc3\xa9"]) == ["a", "é"]

    def test_header_to_mime_encoding(self):
        assert encoding.header_to_mime_encoding(None) == encoding.header_to_mime_encoding("") == ""
        assert encoding.header_to_mime_encoding("plain") == "plain"
        assert encoding.header_to_mime_encoding("Zoë <zoe@b.c>") == "=?utf-8?q?Zo=C3=AB?= <zoe@b.c>"
        assert encoding.header_to_mime_encoding("ë @ home", not_email=True) == "=?utf-8?b?w6s=?= @ home"
        assert encoding.header_to_mime_encoding(["a@b.c", "d@e.f"]) == "a@b.c, d@e.f"

    def test_properly_encode_and_decode(self):
        assert encoding.properly_encode_header("ü", Charset("iso-8859-1"), False) == "=?iso-8859-1?q?=FC?="
        assert encoding.properly_decode_header("=?iso-8859-1?q?=FC?=") == "ü"
        with pytest.raises(HeaderError):
            encoding.properly_encode_header("a\nb")

    def test_apply_charset_to_header(self):
        assert encoding.apply_charset_to_header("iso-8859-1", "Q", "caf=E9_x") == "café x"
        assert encoding.apply_charset_to_header("utf-8", "b", b"w6k=") == "é"
        with pytest.raises(EncodingError, match="'x'"):
            encoding.apply_charset_to_header("utf-8", "x", "abc")

    def test_parse_parameter_header(self):
        message = email.message_from_string("Content-Type: a/b; boundary=x;\n y=z\n\n")
        assert encoding.parse_parameter_header(message, "Content-Type") == ("a/b", {"y": "z"})
        assert encoding.parse_parameter_header(message, "Content-Disposition") == (None, {})
        assert encoding.CONTENT_ENCODING_REMOVED_PARAMS == ["boundary"]
        assert encoding.VALUE_IS_EMAIL_ADDRESS("a@b.c") and not encoding.VALUE_IS_EMAIL_ADDRESS("ab")


def test_a_message_in_a_message_with_odd_line_ends_in_its_headers_can_be_written_by_python():
    raw = (
        b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: message/rfc822\n\n"
        b"Received: from a\n \x1dReceame: inner\x0b\x0cx\nSubject: inner\n\ntext\n--b--\n"
    )
    message = encoding.to_message(encoding.from_string(raw))
    assert "Received: from a" in message.as_string() and "Subject: inner" in message.as_string()
