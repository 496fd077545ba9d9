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
def verdicts(tmp_path_factory):
    """What the filter says of every second mail in each folder, having learned the others: (folder, word) -> number."""
    folders = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if member.isfile():
                folders.setdefault(Path(member.name).parent.name, {})[member.name] = archive.extractfile(member).read()
    found = Counter()
    with Filter(tmp_path_factory.mktemp("corpus") / "spamdb") as known:
        for folder, mails in folders.items():
            for name in sorted(mails)[::2]:
                (known.train_spam if folder == "spam" else known.train_ham)(mails[name])
        for folder, mails in folders.items():
            for name in sorted(mails)[1::2]:
                message = known.filter(MailRequest("corpus", None, None, mails[name]))
                found[folder, message["X-Spambayes-Classification"].partition(";")[0]] += 1
    return found


def test_hardly_any_ham_is_called_spam(verdicts):
    assert verdicts["easy_ham", "ham"] + verdicts["hard_ham", "ham"] > 1010
    assert verdicts["easy_ham", "spam"] == 0
    assert verdicts["hard_ham", "spam"] < 4, "SpamBayes has 4"


def test_spam_is_caught(verdicts):
    assert verdicts["spam", "spam"] > 448, "SpamBayes has 427"
    assert verdicts["spam", "ham"] < 3, "SpamBayes has 8"
    assert verdicts["spam", "unsure"] < 25, "SpamBayes has 39"
