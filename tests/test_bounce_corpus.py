"""The corpus of real bounces, where it is at hand: what is recognised, and that nothing else is."""

import csv
import tarfile
from pathlib import Path

import pytest

from lamson.mail import MailRequest

CORPORA = Path(__file__).parent.parent.parent / "shared/corpora"
BOUNCES = CORPORA / "bounces/sisimai"
TRUTH = CORPORA / "bounces/truth.csv"
HAM = CORPORA / "spamassassin-train.tar.xz"

# Delivery reports that somebody got and filed with the rest of the mail.
GENUINE = 2


def ask(data):
    request = MailRequest("", None, None, data)
    assert isinstance(request.bounce.error_for_humans(), str)
    return request


with_bounces = pytest.mark.skipif(not TRUTH.exists(), reason="the corpus of bounces is not in ../shared")


@pytest.fixture(scope="module")
def answers():
    """Everything in the corpus with its class, and what is said about it. Nothing may raise."""
    with TRUTH.open(newline="") as file:
        classes = {row["file"]: row["class"] for row in csv.DictReader(file)}
    return [(classes.get(path.name), ask(path.read_bytes())) for path in sorted(BOUNCES.iterdir())]


@pytest.fixture(scope="module")
def bounces(answers):
    return [(kind, request) for kind, request in answers if kind in ("4xx", "5xx")]


@with_bounces
class TestBounces:
    def test_they_are_recognised(self, bounces):
        found = [request for _, request in bounces if request.is_bounce()]
        assert len(found) >= 0.97 * len(bounces)

    def test_hard_and_soft_are_told_apart(self, bounces):
        right = [
            request
            for kind, request in bounces
            if (request.bounce.is_hard() if kind == "5xx" else request.bounce.is_soft())
        ]
        assert len(right) >= 0.95 * len(bounces)

    def test_the_address_that_failed_is_found(self, bounces):
        named = [request for _, request in bounces if request.bounce.recipients]
        assert len(named) >= 0.90 * len(bounces)

    def test_reports_of_success_and_complaints_are_no_bounces(self, answers):
        others = [request for kind, request in answers if kind not in ("4xx", "5xx", None)]
        assert others
        assert not [request for request in others if request.is_bounce()]


@pytest.mark.skipif(not HAM.exists(), reason="the corpus of ham is not in ../shared")
def test_of_ordinary_mail_only_the_genuine_reports_are_bounces():
    flagged = []
    with tarfile.open(HAM) as archive:
        for member in archive:
            if member.isfile() and "ham" in member.name.rpartition("/")[0]:
                file = archive.extractfile(member)
                request = ask(file.read())
                if request.is_bounce():
                    flagged.append(request)
    assert len(flagged) <= GENUINE
    assert all("mailer-daemon" in request["From"].lower() for request in flagged)
