"""Notices as a hundred kinds of mail servers write them, in two dozen languages, and mail that only looks like one.

They are in `bounces/`, written for these tests; none was sent. `expected.csv` says for each what `message.bounce` has
to make of it: its kind, the verdict on the whole, and the addresses that failed, with a space between two of them.
"""

import csv
from pathlib import Path

import pytest

from lamson.mail import MailRequest

FOLDER = Path(__file__).parent / "bounces"

with (FOLDER / "expected.csv").open(encoding="utf-8", newline="") as file:
    EXPECTED = {row["name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_read_as_it_is_meant(name):
    request = MailRequest("", None, None, (FOLDER / f"{name}.eml").read_bytes())
    bounce = request.bounce
    verdict = "hard" if bounce.is_hard() else "soft" if bounce.is_soft() else ""
    # The space in a quoted address is a line there.
    addresses = " ".join(sorted(each.address.replace(" ", "_") for each in bounce.recipients))
    expected = EXPECTED[name]
    assert (bounce.kind, verdict, addresses) == (expected["kind"], expected["verdict"], expected["addresses"])
    assert request.is_bounce() is (expected["kind"] == "bounce")
    assert bounce.error_for_humans()


def test_every_file_is_expected_to_be_something():
    assert {path.stem for path in FOLDER.glob("*.eml")} == set(EXPECTED)
    kinds = [row["kind"] for row in EXPECTED.values()]
    assert kinds.count("bounce") > 230 and kinds.count("") > 40, "enough of both"
