"""Asks a corpus of bounces, whose verdicts are known, what `lamson.bounce` makes of them.

    python benchmarks/bounces.py FOLDER TRUTH.csv [--ham ARCHIVE-OR-FOLDER...] [--show] [--halves] [--flufl]

FOLDER holds one message a file. TRUTH.csv has a line for each that names it, ``file,class,...``, the class being
``5xx`` (hard), ``4xx`` (soft), or what the message is instead of a bounce, such as ``delivered`` or ``feedback``.
Of `--ham`, messages that are no bounces, those under a folder with ``ham`` in its name are asked in archives.

recognised    messages with class 4xx or 5xx that are taken for a bounce
right         those with class 5xx that are hard, and with class 4xx that are soft
address       those that name an address that failed
others        messages of another class that are taken for a bounce, which is wrong
exceptions    messages that detect() or a method of what it returns raised for
ham           messages that are taken for a bounce

`--halves` gives the figures of files with an even and with an odd number in their name as well: one half to write
rules by, the other to see whether they hold. `--show` names the files that went wrong, and `--flufl` does the same
with flufl.bounce, for comparison.
"""

import argparse
import csv
import email
import logging
import re
import tarfile
import time
import traceback
from pathlib import Path

from flufl.bounce import all_failures

from frame import figure, ratio
from lamson.mail import MailRequest

logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL)

# In percent of the messages; exceptions are counted.
WANTED = {"recognised": ">= 97", "right": ">= 95", "address": ">= 90", "exceptions": "<= 0"}
CLASSES = {"5xx": "hard", "4xx": "soft"}


def ask_lamson(data):
    """``(is it a bounce, "hard" or "soft" or "", [addresses])``"""
    request = MailRequest(None, None, None, data)
    analyzer = request.bounce
    analyzer.error_for_humans()
    kind = "hard" if analyzer.is_hard() else "soft" if analyzer.is_soft() else ""
    return request.is_bounce(), kind, [each.address for each in analyzer.recipients if each.address]


def ask_flufl(data):
    soft, hard = all_failures(email.message_from_bytes(data))
    addresses = [address.decode() for address in (*soft, *hard)]
    return bool(addresses), "hard" if hard else "soft" if soft else "", addresses


def safely(ask, data, exceptions, name):
    try:
        return ask(data)
    except Exception:
        traceback.print_exc()
        exceptions.append(name)
        return False, "", []


def measure(ask, files, truth):
    """``{figure: (good, of how many)}``, the files that went wrong by figure, and the seconds it took."""
    wrong = {name: [] for name in ("recognised", "right", "address", "others", "exceptions")}
    bounces = [path for path in files if truth.get(path.name) in CLASSES]
    others = [path for path in files if path.name in truth and truth[path.name] not in CLASSES]
    seconds = 0.0
    for path in files:
        data = path.read_bytes()
        begin = time.process_time()
        found, kind, addresses = safely(ask, data, wrong["exceptions"], path.name)
        seconds += time.process_time() - begin
        if path in bounces:
            expected = CLASSES[truth[path.name]]
            for name, good in (("recognised", found), ("right", kind == expected), ("address", addresses)):
                if not good:
                    wrong[name].append(path.name)
        elif path in others and found:
            wrong["others"].append(path.name)
    totals = {"others": others, "exceptions": files}
    figures = {name: (len(wrong[name]), len(totals.get(name, bounces))) for name in wrong}
    return figures, wrong, seconds


def line(label, figures, seconds, count):
    shown = []
    for name, (bad, total) in figures.items():
        if name in ("others", "exceptions"):
            shown.append(f"{name} {bad} of {total}")
        else:
            shown.append(f"{name} {total - bad} of {total} ({100 * (total - bad) / max(total, 1):.1f} %)")
    return f"{label:8} {'; '.join(shown)}; {count / max(seconds, 1e-9):.0f} messages/s"


def tell(found):
    """The figures that count: of Lamson alone, and beside flufl.bounce's when that was asked."""
    figures, rate = found["lamson"]
    for name, wanted in WANTED.items():
        bad, total = figures[name]
        share = 100 * (total - bad) / max(total, 1)
        if "flufl" in found and name != "exceptions":
            their_bad, their_total = found["flufl"][0][name]
            theirs = 100 * (their_total - their_bad) / max(their_total, 1)
            figure(f"{name}, of {total}; flufl.bounce {theirs:.1f}%", share, "%", wanted)
        else:
            figure(f"{name}, of {total}", bad if name == "exceptions" else share, "%" * (name != "exceptions"), wanted)
    if "flufl" in found:
        ratio("messages", rate, "flufl.bounce", found["flufl"][1])


def read_ham(path):
    """Name and bytes of each message."""
    if path.is_dir():
        for each in sorted(path.rglob("*")):
            if each.is_file():
                yield str(each.relative_to(path)), each.read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and "ham" in member.name.rpartition("/")[0]:
                yield member.name, archive.extractfile(member).read()


def number(path):
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--ham", type=Path, nargs="*", default=[])
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--halves", action="store_true")
    parser.add_argument("--flufl", action="store_true")
    options = parser.parse_args()
    files = sorted(path for path in options.folder.iterdir() if path.is_file())
    with options.truth.open(newline="") as file:
        truth = {row["file"]: row["class"] for row in csv.DictReader(file)}
    if truth.keys().isdisjoint(path.name for path in files):
        parser.error(f"{options.folder} has none of the files that {options.truth} is about")
    sets = {"all": files}
    if options.halves:
        sets["even"] = [path for path in files if number(path) % 2 == 0]
        sets["odd"] = [path for path in files if number(path) % 2 == 1]
    found = {}
    for name, ask in (("lamson", ask_lamson), *([("flufl", ask_flufl)] if options.flufl else [])):
        print(f"--- {name}")
        for label, chosen in sets.items():
            figures, wrong, seconds = measure(ask, chosen, truth)
            print(line(label, figures, seconds, len(chosen)))
            found.setdefault(name, (figures, len(chosen) / max(seconds, 1e-9)))
            if options.show and label == "all":
                for figure, names in wrong.items():
                    print(f"  {figure}: {' '.join(names) or 'none'}")
        for path in options.ham:
            count, flagged, exceptions = 0, [], []
            begin = time.process_time()
            for message, data in read_ham(path):
                count += 1
                if safely(ask, data, exceptions, message)[0]:
                    flagged.append(message)
            seconds = time.process_time() - begin
            wrong = f"{len(flagged)} of {count} taken for a bounce; exceptions {len(exceptions)}"
            print(f"ham      {wrong}; {count / seconds:.0f} messages/s")
            print("".join(f"  {message}\n" for message in flagged), end="")
    tell(found)


if __name__ == "__main__":
    main()
