"""What a spam filter has learned, in one SQLite file that several processes may use at the same time.

    >>> store = TokenStore("run/spamdb")
    >>> store.train(b"digest", ["viagra", "cheap"], spam=True)  # on disk when it returns
    True
    >>> store.fetch(["cheap", "tea"])
    >>> [unpack(counts) for counts in store.counts(["cheap", "tea"])]   # messages that had it: ham, spam
    [(0, 1), (0, 0)]
    >>> store.nham, store.nspam
    (0, 1)

**The file.** The table `tokens` has the counts, and `totals` the numbers of messages. The tokens of one message are all
over the first table, so training does not touch it, and appends one row to `journal`. When that has `FOLD_AFTER` rows,
they are folded into the table in one go. `messages` has a digest of each trained message, so that one that is trained
again does not count twice, and one that was trained wrongly changes sides.

**Several processes.** Training is one transaction (SQLite's write-ahead log lets everybody read meanwhile). Whoever
fetches looks for new rows in the journal first, so that what others train counts from the next message on.
"""

import contextlib
import csv
import json
import os
import sqlite3
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator

from lamson.errors import LamsonError
from lamson.sqlitelog import use_log

# Messages in the journal before it is folded into the table. Until then everybody has their tokens in memory, which are
# some 20 MB. Of the table, everybody has so many: all tokens when there are no more, or else those that were asked for.
FOLD_AFTER = 2000
MAX_CACHED = 200_000

# Seconds to wait for another process that is writing.
PATIENCE = 30

_FORMAT = 1
_APPLICATION = 0x4C616D73  # "Lams", which tells file(1) and us whose SQLite file this is

_SCHEMA = (
    "CREATE TABLE tokens (token TEXT PRIMARY KEY, ham INTEGER NOT NULL, spam INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE totals (ham INTEGER NOT NULL, spam INTEGER NOT NULL, edition INTEGER NOT NULL)",
    # `learned` is 1 for a message that was trained, -1 for one that was and no longer is.
    "CREATE TABLE journal (id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " spam INTEGER NOT NULL, learned INTEGER NOT NULL, tokens TEXT NOT NULL)",
    "CREATE TABLE messages (digest BLOB PRIMARY KEY, spam INTEGER NOT NULL) WITHOUT ROWID",
    "INSERT INTO totals VALUES (0, 0, 0)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_FORMAT}",
)


class TokenStoreError(LamsonError):
    """The file of a token store cannot be used, or something to import is no export of SpamBayes."""


_stores: weakref.WeakSet["TokenStore"] = weakref.WeakSet()


class TokenStore:
    """The tokens in the file `path`, which is made when it is not there, with its folder. Raises `TokenStoreError`
    for a file that is something else, `sqlite3.Error` when it cannot be read or written.

    `nham` and `nspam` are the numbers of messages. Threads may share a store: hold its `lock` from `fetch` until
    everything was asked that was fetched.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        self.lock = threading.RLock()
        self.nham = self.nspam = 0
        self._cached: dict[str, int] = {}  # counts from the table
        self._added: dict[str, int] = {}  # what the journal adds to them, of all tokens in it
        self._seen = 0  # the last row of the journal that is in `_added`
        self._edition = -1  # of the table that `_cached` is from
        self._all_is_cached = False
        folder = os.path.dirname(self.path)
        if folder:
            os.makedirs(folder, exist_ok=True)
        self._connection, self._process = self._connect(), os.getpid()
        self._inherited: list[sqlite3.Connection] = []
        _stores.add(self)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _leave(self) -> None:
        """Close the file before a fork, until somebody uses it again, here or in the child.

        Beside a connection that it inherited SQLite takes no locks, and without these another program takes the log of
        the file away while the child still writes to it.
        """
        if self.lock.acquire(blocking=False):  # or else a thread is at work, and the child has to do without
            try:
                self._connection.close()
                self._process = 0
            finally:
                self.lock.release()

    def close(self) -> None:
        """Close the file. Everything that was trained is in it already."""
        with self.lock:
            self._connection.close()

    # reading

    def fetch(self, tokens: Iterable[str]) -> None:
        """Make what is known of these tokens, `nham` and `nspam`, what they are in the file now."""
        with self.lock, self._transaction("DEFERRED"):
            self._catch_up()
            if not self._all_is_cached:
                self._cache([token for token in tokens if token not in self._cached])

    def counts(self, tokens: Iterable[str]) -> list[int]:
        """How many messages had each of these tokens, which have been fetched; `unpack` tells ham from spam."""
        cached, added = self._cached.get, self._added.get
        return [cached(token, 0) + added(token, 0) for token in tokens]

    # training

    def train(self, digest: bytes, tokens: Iterable[str], spam: bool) -> bool:
        """Count a message with these tokens as spam or ham. Returns False when that was done already.

        `digest` tells messages apart. One that was trained as the other kind before no longer counts as that.
        """
        text = _line_by_line(tokens)
        with self.lock, self._transaction("IMMEDIATE") as connection:
            before = self._trained(digest)
            if before == spam:
                return False
            if before is not None:
                connection.execute(_NOTE, (not spam, -1, text))
            connection.execute("REPLACE INTO messages VALUES (?, ?)", (digest, spam))
            connection.execute(_NOTE, (spam, 1, text))
            self._fold_when_long()
        return True

    def untrain(self, digest: bytes, tokens: Iterable[str], spam: bool) -> bool:
        """Take back `train`. Returns False when the message was not trained so."""
        with self.lock, self._transaction("IMMEDIATE") as connection:
            if self._trained(digest) != spam:
                return False
            connection.execute("DELETE FROM messages WHERE digest = ?", (digest,))
            connection.execute(_NOTE, (spam, -1, _line_by_line(tokens)))
            self._fold_when_long()
        return True

    def import_spambayes(self, path: str | os.PathLike[str]) -> tuple[int, int, int]:
        """Add what SpamBayes has learned to what is here: its flat export, which ``sb_dbexpimp -e`` writes.

        Returns the numbers of ham, of spam and of tokens in it. Raises `TokenStoreError`, and imports nothing, when
        the file is something else; OSError when it cannot be read.
        """
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            ham, spam, rows = _read_export(file, os.fspath(path))
        with self.lock, self._transaction("IMMEDIATE") as connection:
            connection.executemany(_ADD_COUNTS, rows)
            connection.execute(_ADD_TOTALS, (ham, spam))
        return ham, spam, len(rows)

    # the file

    @contextlib.contextmanager
    def _transaction(self, kind: str) -> Iterator[sqlite3.Connection]:
        if self._process != os.getpid():
            # SQLite's connections do not survive a fork. The parent's is kept, since closing it would close it there.
            if self._process:
                self._inherited.append(self._connection)
            self._connection, self._process = self._connect(), os.getpid()
            self._forget()
        connection = self._connection
        connection.execute(f"BEGIN {kind}")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            # What was counted in memory may not be what is in the file.
            self._forget()
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _trained(self, digest: bytes) -> bool | None:
        """Whether the message was trained as spam; None when it was not trained."""
        found = self._connection.execute("SELECT spam FROM messages WHERE digest = ?", (digest,)).fetchone()
        return None if found is None else bool(found[0])

    def _catch_up(self) -> None:
        """Learn what was trained, by whomever, since the last look."""
        ham, spam, edition = self._connection.execute("SELECT * FROM totals").fetchone()
        if edition != self._edition or len(self._cached) > MAX_CACHED:
            self._forget()
            self.nham, self.nspam, self._edition = ham, spam, edition
            self._all_is_cached = self._connection.execute("SELECT COUNT(*) FROM tokens").fetchone()[0] <= MAX_CACHED
            if self._all_is_cached:
                rows = self._connection.execute("SELECT token, ham, spam FROM tokens")
                self._cached.update([(token, ham * _HAM + spam) for token, ham, spam in rows])
        added, get = self._added, self._added.get
        for number, spam, learned, text in self._connection.execute(_JOURNAL, (self._seen,)):
            one = learned if spam else learned * _HAM
            for token in text.split("\n"):
                added[token] = get(token, 0) + one
            self.nham += 0 if spam else learned
            self.nspam += learned if spam else 0
            self._seen = number

    def _cache(self, missing: list[str]) -> None:
        self._cached.update(dict.fromkeys(missing, 0))
        for token, ham, spam in self._connection.execute(_LOOK_UP, (json.dumps(missing),)):
            self._cached[token] = ham * _HAM + spam

    def _forget(self) -> None:
        self._cached.clear()
        self._added.clear()
        self._seen = 0
        self._edition = -1

    def _fold_when_long(self) -> None:
        """Add what is in the journal to the table, when it has `FOLD_AFTER` rows. Everybody looks it up again then."""
        first, last = self._connection.execute(_JOURNAL_ENDS).fetchone()
        if last - first + 1 < FOLD_AFTER:
            return
        ham, spam = added = Counter[str](), Counter[str]()
        totals = [0, 0]
        for _, is_spam, learned, text in self._connection.execute(_JOURNAL, (0,)):
            counter = added[is_spam]
            (counter.update if learned > 0 else counter.subtract)(text.split("\n"))
            totals[is_spam] += learned
        # In the order of the table, whose pages are written once each then.
        tokens = sorted(ham.keys() | spam.keys())
        rows = ((token, ham.get(token, 0), spam.get(token, 0)) for token in tokens)
        self._connection.executemany(_ADD_COUNTS, rows)
        self._connection.execute("DELETE FROM tokens WHERE ham <= 0 AND spam <= 0")
        self._connection.execute(_ADD_TOTALS, totals)
        self._connection.execute("DELETE FROM journal")


_NOTE = "INSERT INTO journal (spam, learned, tokens) VALUES (?, ?, ?)"
_JOURNAL = "SELECT id, spam, learned, tokens FROM journal WHERE id > ? ORDER BY id"
# Two queries, since SQLite reads all rows for one that asks for both ends.
_JOURNAL_ENDS = "SELECT (SELECT MIN(id) FROM journal), (SELECT MAX(id) FROM journal)"
_LOOK_UP = "SELECT token, ham, spam FROM tokens WHERE token IN (SELECT value FROM json_each(?))"
_ADD_COUNTS = (
    "INSERT INTO tokens VALUES (?, ?, ?) ON CONFLICT (token) DO UPDATE SET"
    " ham = max(0, ham + excluded.ham), spam = max(0, spam + excluded.spam)"
)
_ADD_TOTALS = "UPDATE totals SET ham = ham + ?, spam = spam + ?, edition = edition + 1"


# Both counts of a token are kept in one number, which takes half the memory and time of a pair. The spam part may be
# below zero in what the journal adds.
_HAM = 1 << 32


def unpack(counts: int) -> tuple[int, int]:
    """The numbers of ham and of spam in what `TokenStore.counts` gives for a token."""
    ham = (counts + _HAM // 2) // _HAM
    return ham, counts - ham * _HAM


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    """Make the tables in a file that is empty; raise TokenStoreError for one that is something else."""
    try:
        use_log(connection.cursor(), PATIENCE)
        # A power cut may take the last training with it, but never breaks the file.
        connection.execute("PRAGMA synchronous = NORMAL")
        if _is_empty(connection):
            connection.execute("BEGIN IMMEDIATE")
            if _is_empty(connection):  # nobody else has been faster
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.OperationalError:
        raise  # it cannot be opened or written, whatever is in it
    except sqlite3.DatabaseError as error:
        raise TokenStoreError(
            f"{path} is no token database of Lamson. If SpamBayes made it, export it there with sb_dbexpimp -e and "
            f"import that into a new one: lamson train -spambayes FILE -db NAME"
        ) from error
    if (application, version) != (_APPLICATION, _FORMAT):
        raise TokenStoreError(f"{path} is an SQLite file, but no token database of this version of Lamson.")


def _is_empty(connection: sqlite3.Connection) -> bool:
    return not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]


def _line_by_line(tokens: Iterable[str]) -> str:
    """Tokens as they stand in the journal: each once, and none with what SQLite cannot keep."""
    return "\n".join(set(tokens)).encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def _read_export(file: Iterable[str], path: str) -> tuple[int, int, list[tuple[str, int, int]]]:
    """The numbers of ham and spam in SpamBayes' flat export, and its rows as ``(token, ham, spam)``."""
    totals: tuple[int, int] | None = None
    rows: list[tuple[str, int, int]] = []
    reader = csv.reader(file)
    try:
        for row in reader:
            *token, ham, spam = row
            counts = int(ham), int(spam)
            if min(counts) < 0 or max(counts) >= _HAM // 2 or len(token) != (totals is not None):
                raise ValueError(row)
            if totals is None:
                totals = counts
            else:
                rows.append((_our_spelling(token[0]), *counts))
        if totals is None:
            raise ValueError("nothing in it")
    except (ValueError, csv.Error) as error:
        raise TokenStoreError(
            f"{path} is no export of SpamBayes' sb_dbexpimp: line {reader.line_num} has not the form TOKEN,HAM,SPAM."
        ) from error
    return *totals, rows


def _our_spelling(token: str) -> str:
    """The token that means the same to Lamson. SpamBayes keeps the case of subjects, and counts headers of a name."""
    try:
        token.encode("utf-8")
    except UnicodeEncodeError:  # from a message that did not say its charset
        token = token.encode("utf-8", "surrogateescape").decode("latin-1")
    kind, _, rest = token.partition(":")
    if kind == "subject":
        return token.lower()
    if kind == "header":
        return f"header:{rest.partition(':')[0].lower()}"
    return token


def _leave_before_fork() -> None:
    for store in list(_stores):
        store._leave()


os.register_at_fork(before=_leave_before_fork)
