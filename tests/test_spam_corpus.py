"""How good the spam filter is: half of an archive of real mail is learned, the other half asked about.

The archive is not part of the project; without it the tests are skipped. `benchmarks/spam.py` measures more.
"""

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from lamson.mail import MailRequest
from lamson.spam import Filter

ARCHIVE = Path(__file__).parent.parent.parent / "shared/corpora/spamassassin-train.tar.xz"

pytestmark = pytest.mark.skipif(not ARCHIVE.exists(), reason=f"{ARCHIVE} is not there")


@pytest.fixture(scope="module")
def folders():
    """The mail of each folder, sorted by name."""
    found = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if member.isfile():
                found.setdefault(Path(member.name).parent.name, {})[member.name] = archive.extractfile(member).read()
    return {folder: [mails[name] for name in sorted(mails)] for folder, mails in found.items()}


def learn(known, folder, mails):
    for mail in mails:
        (known.train_spam if folder == "spam" else known.train_ham)(mail)


def ask(known, mails):
    """How many of `mails` are spam, ham and unsure: word -> number."""
    headers = [known.filter(MailRequest("corpus", None, None, mail))["X-Spambayes-Classification"] for mail in mails]
    return Counter(header.partition(";")[0] for header in headers)


@pytest.fixture(scope="module")
def verdicts(folders, tmp_path_factory):
    """What the filter says of every second mail in each folder, having learned the others: folder -> word -> number."""
    with Filter(tmp_path_factory.mktemp("corpus") / "spamdb") as known:
        for folder, mails in folders.items():
            learn(known, folder, mails[::2])
        return {folder: ask(known, mails[1::2]) for folder, mails in folders.items()}


def test_hardly_any_ham_is_called_spam(verdicts):
    assert verdicts["easy_ham"]["spam"] == 0
    assert verdicts["hard_ham"]["spam"] < 4, "SpamBayes has 4"
    assert verdicts["easy_ham"]["unsure"] + verdicts["hard_ham"]["unsure"] < 8, "SpamBayes has 8"


def test_spam_is_caught(verdicts):
    assert verdicts["spam"]["spam"] > 440, "SpamBayes has 427"
    assert verdicts["spam"]["ham"] < 3, "SpamBayes has 8"
    assert verdicts["spam"]["unsure"] < 32, "SpamBayes has 39"


def test_ham_of_another_kind_than_what_was_learned_is_seldom_called_spam(folders, tmp_path):
    with Filter(tmp_path / "spamdb") as known:
        learn(known, "easy_ham", folders["easy_ham"])
        learn(known, "spam", folders["spam"][::2])
        newsletters = ask(known, folders["hard_ham"])
        assert newsletters["spam"] < 40, "of 125; all of them look like advertisements"
        assert ask(known, folders["spam"][1::2])["spam"] > 445, "SpamBayes has 445"


def test_after_little_training_little_ham_is_called_spam(folders, tmp_path):
    with Filter(tmp_path / "spamdb") as known:
        ham = folders["easy_ham"] + folders["hard_ham"]
        learn(known, "ham", ham[::42])  # 50 of each
        learn(known, "spam", folders["spam"][::19])
        assert ask(known, ham[1::4])["spam"] < 12, "of 519"
        assert ask(known, folders["spam"][1::4])["spam"] > 190, "of 237"
