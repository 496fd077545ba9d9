"""Reads corpora of mail and counts what did not survive, and how fast it went.

    python benchmarks/mail.py PATH... [--salmon PYTHON] [--rounds 3] [--show]

A PATH is a folder of messages, one a file, or a tar archive of such folders, each of which is then a corpus. With
``--salmon`` the same is done by the interpreter PYTHON with salmon-mail, Lamson's fork, side by side:

    python -m venv /tmp/salmon && /tmp/salmon/bin/pip install salmon-mail
    python benchmarks/mail.py corpora/spam.tar.xz --salmon /tmp/salmon/bin/python

What is measured, for each message of a corpus:

exceptions    from making a request, reading its headers, its body and its parts, and from str()
attachments   that are not the same, name and bytes, in the message and in what str() made of it
text          that is not the same, of that which can be decoded as it is declared
headers       values that are in the message and not in what str() made of it, content headers left out
not exact     messages that are not forwarded byte for byte (of salmon: str())
full, route   messages a second: parse, touch every header and body, str(); and parse, ask for sender and recipient

The messages are compared as Python's own parser reads them (`email`, policy compat32), so that nothing here takes
Lamson's word for what was in a message. `--show` names the messages that changed.
"""

import argparse
import collections
import contextlib
import email
import email.header
import email.policy
import json
import os
import subprocess
import sys
import tarfile
import time
import warnings

from frame import figure, missing, ratio

CONTENT = ("content-type", "content-transfer-encoding", "content-disposition", "mime-version")
WANTED = {"exceptions": "<= 0", "not exact": "<= 0"}
COLUMNS = ("messages", "exceptions", "attachments", "text", "headers", "not exact", "full/s", "route/s")


def read_corpora(paths):
    """``{name: [(file name, bytes), ...]}``"""
    corpora = collections.defaultdict(list)
    for path in paths:
        if os.path.isdir(path):
            for folder, _, names in sorted(os.walk(path)):
                for name in sorted(names):
                    with open(os.path.join(folder, name), "rb") as file:
                        corpora[os.path.relpath(folder, os.path.dirname(path))].append((name, file.read()))
        else:
            with tarfile.open(path) as archive:
                for member in archive:
                    if member.isfile():
                        folder, _, name = member.name.rpartition("/")
                        corpora[folder or os.path.basename(path)].append((name, archive.extractfile(member).read()))
    return corpora


# How Python reads a message


def decode_header(value):
    """A header as text, without spaces and quotes; None when it cannot be decoded as it is declared."""
    try:
        if any("\udc80" <= letter <= "\udcff" for letter in value):
            value = value.encode("ascii", "surrogateescape").decode("utf-8")
        if "=?" in value:
            value = str(email.header.make_header(email.header.decode_header(value)))
    except (UnicodeError, LookupError, ValueError):
        return None
    # Python puts spaces where encoded words begin and end, and leaves quotes around decoded names.
    return "".join(value.split()).replace('"', "").replace("\\", "")


def read(data):
    """What is in a message: its attachments, its texts, its headers."""
    message = email.message_from_bytes(data, policy=email.policy.compat32)
    attachments, texts = [], []
    for part in message.walk():
        if part.is_multipart():
            continue
        kind = part.get_content_maintype()
        payload = part.get_payload(decode=True) or b""
        if kind == "text" and not part.get_filename() and part.get_content_disposition() != "attachment":
            try:
                text = payload.decode(str(part.get_content_charset("ascii")))
                texts.append(text.replace("\r\n", "\n").rstrip("\n"))
            except (UnicodeError, LookupError, ValueError):
                texts.append(None)
        elif kind != "multipart":
            name = part.get_filename()
            name = decode_header(name) if name else name
            # Python writes this sign for what it cannot decode.
            attachments.append((None if name and "\ufffd" in name else name, payload))
    headers = collections.Counter()
    for name, value in message.raw_items():
        if name.lower() not in CONTENT:
            headers[name.lower(), decode_header(str(value))] += 1
    return attachments, texts, headers


def compare(before, after):
    """How many attachments, texts and header values of `before` are not in `after`."""
    left = collections.Counter(after[0])
    unnamed = collections.Counter(data for _, data in after[0])
    attachments = 0
    for name, data in before[0]:
        attachments += not (unnamed[data] if name is None else left[name, data])
        left[name, data] -= 1
        unnamed[data] -= 1
    texts = list(after[1])
    changed = 0
    for number, text in enumerate(before[1]):
        if text is not None and (number >= len(texts) or texts[number] != text):
            changed += 1
    lost = before[2] - after[2]
    return attachments, changed, sum(count for (_, value), count in lost.items() if value is not None)


# What is measured


class Lamson:
    def __init__(self):
        from lamson.mail import MailRequest

        self.request = lambda data: MailRequest("127.0.0.1", "from@example.com", "to@example.com", data)

    @staticmethod
    def forward(message):
        return message.as_bytes()

    @staticmethod
    def route(message):
        return message.route_from, message.route_to


class Salmon:
    def __init__(self):
        from salmon.mail import MailRequest

        self.request = lambda data: MailRequest("127.0.0.1", "from@example.com", "to@example.com", data)

    @staticmethod
    def forward(message):
        return str(message).encode()

    @staticmethod
    def route(message):
        return message.From, message.To


def touch(engine, data):
    """Everything a handler could read, and the canonical text."""
    message = engine.request(data)
    [message[name] for name in message.keys()]
    message.body()
    [part.body for part in message.walk()]
    return str(message)


def rate(action, messages, rounds):
    """Messages a second, the best of `rounds`; those that raise count too."""
    best = 0.0
    for _ in range(rounds):
        begin = time.perf_counter()
        for _, data in messages:
            with contextlib.suppress(Exception):
                action(data)
        best = max(best, len(messages) / (time.perf_counter() - begin))
    return round(best)


def measure(engine, messages, rounds, show):
    result = dict.fromkeys(COLUMNS, 0)
    result["messages"] = len(messages)
    for name, data in messages:
        try:
            text = touch(engine, data)
            message = engine.request(data)
            engine.forward(message)
        except Exception as error:
            result["exceptions"] += 1
            if show:
                print(f"{name}: {error!r}", file=sys.stderr)
            continue
        result["not exact"] += engine.forward(message) != data
        counts = compare(read(data), read(text.encode("utf-8", "surrogateescape")))
        for column, count in zip(("attachments", "text", "headers"), counts, strict=True):
            result[column] += count
        if show and any(counts):
            print(f"{name}: {counts[0]} attachments, {counts[1]} texts, {counts[2]} headers", file=sys.stderr)
    result["full/s"] = rate(lambda data: touch(engine, data), messages, rounds)
    result["route/s"] = rate(lambda data: engine.route(engine.request(data)), messages, rounds)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--salmon", metavar="PYTHON", help="an interpreter that has salmon-mail")
    parser.add_argument("--rounds", type=int, default=3, help="of each speed the best of so many (3)")
    parser.add_argument("--show", action="store_true", help="name the messages that changed")
    parser.add_argument("--engine", choices=("lamson", "salmon"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.engine:
        engine = Lamson() if options.engine == "lamson" else Salmon()
        corpora = read_corpora(options.paths)
        json.dump({name: measure(engine, corpora[name], options.rounds, options.show) for name in corpora}, sys.stdout)
        return
    engines = {"lamson": sys.executable} | ({"salmon": options.salmon} if options.salmon else {})
    results = {}
    for engine, python in engines.items():
        command = [python, __file__, *options.paths, "--engine", engine, "--rounds", str(options.rounds)]
        output = subprocess.run(command + ["--show"] * options.show, stdout=subprocess.PIPE, check=True).stdout
        results[engine] = json.loads(output)
    print(f"{'corpus':36}{'engine':8}" + "".join(f"{column:>12}" for column in COLUMNS))
    for name in results["lamson"]:
        for engine in engines:
            row = results[engine][name]
            print(f"{name[-35:]:36}{engine:8}" + "".join(f"{row[column]:>12,}" for column in COLUMNS))
    for name, ours in results["lamson"].items():
        theirs = results["salmon"][name] if options.salmon else None
        for column in ("exceptions", "attachments", "text", "headers", "not exact"):
            figure(f"{name}: {column}, of {ours['messages']} messages", ours[column], "", WANTED.get(column, ""))
        for column in ("full/s", "route/s"):
            if theirs is not None:
                ratio(f"{name}: {column[:-2]}", ours[column], "Salmon", theirs[column])
    if not options.salmon:
        missing("mail beside Salmon", "no interpreter with Salmon was named")


if __name__ == "__main__":
    main()
