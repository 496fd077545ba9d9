"""The commands for the spam filter: train and classify. See `lamson.commands`."""

import os
import sys
from collections.abc import Iterable

from lamson.mailboxes import contents_in
from lamson.terminal import misused, refuse, with_progress


def train_command(
    ham: str | None = None,
    spam: str | None = None,
    db: str = "run/spamdb",
    untrain: bool = False,
    spambayes: str | None = None,
) -> None:
    """Trains the spam filter with mails of which you know what they are.

    It needs some of both kinds, the more the better, and about as many of one as of the other. A mail that was trained
    before does not count twice, so a folder may be given again when there is more in it; one that was trained as the
    other kind changes sides. Servers that use the database need not be restarted.

    Options:
        -ham PATH: mails that are none: a Maildir, a file in mbox format, a folder of files, or one mail
        -spam PATH: mails that are spam, likewise
        -db FILE: the database of the spam filter, which is made when it is not there
        -untrain: take back what was trained with these mails
        -spambayes FILE: add what SpamBayes has learned, from the file that its sb_dbexpimp -e has written
    """
    from sqlite3 import Error

    from lamson.errors import LamsonError
    from lamson.spam import Filter

    if not (ham or spam or spambayes):
        misused("train", "say what to learn from: -ham, -spam or -spambayes")
    if untrain and (spambayes or not os.path.exists(db)):
        refuse("what came from SpamBayes cannot be taken back" if spambayes else f"there is no {db}")
    given = [(kind, contents_in(path)) for kind, path in (("ham", ham), ("spam", spam)) if path]
    try:
        with Filter(db) as trained:
            for kind, (mails, total) in given:
                learn = getattr(trained, f"untrain_{kind}" if untrain else f"train_{kind}")
                new = sum(learn(content) for _, content in with_progress(mails, total))
                if untrain:
                    print(f"Took back {new} {kind}; {total - new} had not been trained as {kind}.")
                else:
                    print(f"Learned {new} {kind}; {total - new} had been learned before.")
            if spambayes:
                hams, spams, tokens = trained.import_spambayes(spambayes)
                print(f"Added what SpamBayes learned from {hams} ham and {spams} spam: {tokens} tokens.")
    except (LamsonError, Error, OSError) as error:
        refuse(f"cannot train {db}: {error}")


def classify_command(
    db: str = "run/spamdb", config: str | None = None, input: str | None = None, clues: int = 10
) -> None:
    """Tells whether mails are spam, and the clues that decided.

    First comes what each aspect of the mail says by itself, then the strongest clues: tokens of the mail, each with
    the probability that a mail with it is spam. `lamson train` trains the spam filter. The mails stay as they are.

    Options:
        -db FILE: the database of the spam filter
        -config FILE: a SpamBayes options file (.hammierc), for its cutoffs and words
        -input PATH: a Maildir, a file in mbox format, a folder of files or one mail; otherwise standard input
        -clues NUMBER: how many clues to show for each mail; 0 shows what it is and nothing else
    """
    from collections import Counter
    from sqlite3 import Error

    from lamson.errors import LamsonError
    from lamson.spam import Filter

    if not os.path.exists(db):
        refuse(f"there is no {db}. Train it: lamson help -for train")
    mails: Iterable[tuple[str, bytes]] = contents_in(input)[0] if input else [("-", sys.stdin.buffer.read())]
    found: Counter[str] = Counter()
    try:
        with Filter(db, config) as spam:
            for name, content in mails:
                explanation = spam.explain(content)
                word = spam.word_for(explanation.score)
                found[word] += 1
                print(f"{word}; {explanation.score:.2f}  {name}")
                if clues > 0:
                    print("   ", ", ".join(f"{name} {each:.2f}" for name, each in explanation.aspects.items()))
                for clue in explanation.clues[: max(clues, 0)]:
                    print(f"    {clue.probability:.3f}  {clue.aspect:9}  {_printable(clue.token)}")
    except (LamsonError, Error, OSError) as error:
        refuse(f"cannot classify with {db}: {error}")
    if found.total() != 1:
        counted = ", ".join(f"{number} {word}" for word, number in sorted(found.items()))
        print(f"{found.total()} mails: {counted or 'none'}.")


def _printable(text: str) -> str:
    """Return a stranger's text as it may be written to a terminal."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    encoding = sys.stdout.encoding or "ascii"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
