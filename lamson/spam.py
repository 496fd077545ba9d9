"""A spam filter that learns, and `spam_filter`, which puts it before a handler.

    @route("(anything)@(host)", anything=".+", host=".+")
    @spam_filter("run/spamdb", "config/.hammierc", "run/spam", next_state=SPAMMING)
    def START(message, **kw):
        ...

Spam goes to the queue and its sender to the state SPAMMING; START does not run. The filter has to be trained with mail
of both kinds, ``lamson train -ham MAILDIR -spam MAILDIR -db run/spamdb``, or in Python:

    >>> with Filter("run/spamdb", "config/.hammierc") as spam:
    ...     spam.train_ham(wanted), spam.train_spam(unwanted)
    ...     spam.filter(message)["X-Spambayes-Classification"]
    (True, True)
    'unsure; 0.50'

It takes the place of SpamBayes, which runs on Python 2 only: what a token tells is worked out as SpamBayes does it,
by `sbclassifier`; its options and headers stay; and what it has learned can be imported.
"""

import functools
import hashlib
import itertools
import logging
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from email.message import Message
from typing import Any, NamedTuple

from lamson import encoding
from lamson.classifier import Classifier, Clue
from lamson.encoding import MailBase
from lamson.errors import MisuseError
from lamson.hammierc import OptionsError, read_options
from lamson.queue import Queue
from lamson.tokenizer import Tokens, tokenize
from lamson.tokenstore import TokenStore, TokenStoreError

__all__ = ["Clue", "Explanation", "Filter", "OptionsError", "TokenStoreError", "spam_filter"]

log = logging.getLogger(__name__)

# A MailRequest, MailResponse, MailBase, email.message.Message, str or bytes.
Mail = Any
Handler = Callable[..., Any]

# How many clues go into a header, when the options ask for them.
MAX_EVIDENCE = 50

# Bytes of the body that tell a message from others.
MAX_DIGESTED = 100_000


class Explanation(NamedTuple):
    """Why a message is what it is: its score; what each aspect of it says alone, as a probability of spam; and the
    tokens that told something, the strongest first."""

    score: float
    aspects: dict[str, float]
    clues: list[Clue]


class Filter:
    """Tells spam from ham by what it was trained with.

    `storage_file` is the database, which the first training makes; None or "" takes ``persistent_storage_file`` of the
    options. `config` is a SpamBayes options file, which may be missing (see `lamson.hammierc`). Raises `OptionsError`
    when it makes no sense.

    The database is opened when it is first needed and stays open. Processes and threads may share it. A file that is
    something else raises `TokenStoreError`, one that cannot be read or written `sqlite3.Error` or OSError.
    """

    def __init__(self, storage_file: str | os.PathLike[str] | None, config: str | os.PathLike[str] | None = None):
        self.options = read_options(config)
        storage_file = storage_file or self.options.persistent_storage_file
        if not storage_file:
            raise MisuseError("A Filter needs a database: give it a storage_file, such as 'run/spamdb'.")
        self.storage_file = os.fspath(storage_file)
        self._lock = threading.RLock()
        self._store: TokenStore | None = None
        self._classifier: Classifier | None = None
        self._identity: tuple[int, int] | None = None  # of the file that the store has open
        self._has_warned = False

    def open(self) -> None:
        """Open the database, and make it when it is not there. Everything below does so when it has to."""
        with self._lock:
            self._opened()

    def close(self) -> None:
        """Close the database. What was trained is in it already."""
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._store = self._classifier = self._identity = None

    def __enter__(self) -> "Filter":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # training

    def train_ham(self, msg: Mail) -> bool:
        """Learn that this is ham. Returns False when that was known. If it was trained as spam, that is undone."""
        return self._train(msg, False)

    def train_spam(self, msg: Mail) -> bool:
        """Learn that this is spam. Returns False when that was known. If it was trained as ham, that is undone."""
        return self._train(msg, True)

    def untrain_ham(self, msg: Mail) -> bool:
        """Take back `train_ham`. Returns False, and changes nothing, when it was not trained so."""
        return self._untrain(msg, False)

    def untrain_spam(self, msg: Mail) -> bool:
        """Take back `train_spam`. Returns False, and changes nothing, when it was not trained so."""
        return self._untrain(msg, True)

    def import_spambayes(self, path: str | os.PathLike[str]) -> tuple[int, int, int]:
        """Add what SpamBayes has learned, from its flat export: see `TokenStore.import_spambayes`."""
        with self._lock:
            return self._opened().import_spambayes(path)

    def _train(self, msg: Mail, spam: bool) -> bool:
        base = _as_base(msg)
        with self._lock:
            learned = self._opened().train(_digest(base), _all(tokenize(base)), spam)
        if self.options.include_trained and not isinstance(msg, str | bytes):
            word = self.options.header_spam_string if spam else self.options.header_ham_string
            _put(msg, self.options.trained_header_name, word)
        return learned

    def _untrain(self, msg: Mail, spam: bool) -> bool:
        base = _as_base(msg)
        with self._lock:
            forgotten = self._opened().untrain(_digest(base), _all(tokenize(base)), spam)
        if forgotten and self.options.include_trained and not isinstance(msg, str | bytes):
            del msg[self.options.trained_header_name]
        return forgotten

    # asking

    def filter(self, msg: Mail) -> Any:
        """Write into the message what it is: ``X-Spambayes-Classification: spam; 0.99``, or ``ham``, or ``unsure``.

        Returns the message, with all its other bytes as they were; for a str or bytes, a new one. A header of the same
        name that somebody else wrote is replaced. The options may ask for more headers than this one.
        """
        if isinstance(msg, str | bytes):
            written = self.filter(encoding.from_string(msg)).as_bytes()
            return written if isinstance(msg, bytes) else written.decode("utf-8", "surrogateescape")
        options = self.options
        explanation = self.explain(msg) if options.include_evidence else None
        score = self.score(msg) if explanation is None else explanation.score
        _put(msg, options.classification_header_name, f"{self.word_for(score)}; {self._digits(score)}")
        if options.include_score:
            _put(msg, options.score_header_name, str(score))
        if options.include_thermostat:
            _put(msg, options.thermostat_header_name, "*" * int(score * 10))
        if explanation is not None:
            _put(msg, options.evidence_header_name, self._evidence(explanation))
        return msg

    def score(self, msg: Mail) -> float:
        """The probability that the message is spam, 0.0 to 1.0. The message stays as it is.

        It is 0.5 for all until there was training with both ham and spam, which is logged once.
        """
        return self._asked(tokenize(_as_base(msg)), lambda classifier, tokens: classifier.score(tokens), 0.5)

    def explain(self, msg: Mail) -> Explanation:
        """The score, and why it is what it is."""

        def explain(classifier: Classifier, tokens: Tokens) -> Explanation:
            return Explanation(classifier.score(tokens), classifier.aspects(tokens), classifier.clues(tokens))

        return self._asked(tokenize(_as_base(msg)), explain, Explanation(0.5, {}, []))

    def word_for(self, score: float) -> str:
        """What a message with this score is called: ``spam``, ``ham`` or ``unsure``, or the words of the options."""
        if score < self.options.ham_cutoff:
            return self.options.header_ham_string
        if score < self.options.spam_cutoff:
            return self.options.header_unsure_string
        return self.options.header_spam_string

    def _asked(self, tokens: Tokens, question: Callable[[Classifier, Tokens], Any], untrained: Any) -> Any:
        with self._lock:
            store = self._existing()
            if store is not None and self._classifier is not None:
                with store.lock:
                    store.fetch(_all(tokens))
                    if store.nham and store.nspam:
                        return question(self._classifier, tokens)
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "%s has not been trained with both ham and spam: every message is unsure, and passes. "
                    "See: lamson help -for train",
                    self.storage_file,
                )
            return untrained

    def _digits(self, score: float) -> str:
        text = f"{score:.{self.options.header_score_digits}f}"
        # How many zeros or nines there are, as SpamBayes has it.
        rest = min(score, 1 - score)
        if self.options.header_score_logarithm and 0 < rest <= 0.005:
            text += f" ({int(-math.log10(rest))})"
        return text

    def _evidence(self, explanation: Explanation) -> str:
        """The clues on one line, in ASCII: ``'*subject*': 0.88; 'subject:tea': 0.01``."""
        cutoff = self.options.clue_mailheader_cutoff
        said = [(f"*{aspect}*", probability) for aspect, probability in explanation.aspects.items()]
        told = [
            (token, probability)
            for token, _, probability in explanation.clues
            if probability <= cutoff or probability >= 1 - cutoff
        ]
        return "; ".join(f"{token!a}: {probability:.2f}" for token, probability in said + told[:MAX_EVIDENCE])

    # the database

    def _existing(self) -> TokenStore | None:
        """The store; None when nobody has made it yet."""
        if _identity(self.storage_file) is None:
            self.close()
            return None
        return self._opened()

    def _opened(self) -> TokenStore:
        """The store of the file that is there now: somebody may have put another one in its place."""
        if self._store is None or self._identity != _identity(self.storage_file):
            self.close()
            self._store = TokenStore(self.storage_file)
            self._identity = _identity(self.storage_file)
            self._classifier = Classifier(self._store)
            for name in ("max_discriminators", "minimum_prob_strength", "unknown_word_prob", "unknown_word_strength"):
                value = getattr(self.options, name)
                if value is not None:
                    setattr(self._classifier, name, value)
        return self._store


class spam_filter:
    """Let spam go to a queue and its sender to a state, and the decorated function run for everything else.

    `storage` and `config` are those of a `Filter`, `spam_queue` is a Maildir. Goes under `@route`. What is unsure, and
    everything before there was training, goes on to the function. So does what comes while the database is broken,
    which is logged: mail is worth more than a filter.

    Every message gets the filter's header, in the queue and in the function. To judge by something else as well:

        class strict_filter(spam_filter):
            def spam(self, message):
                return super().spam(message) or "viagra" in message["subject"]
    """

    def __init__(
        self,
        storage: str | os.PathLike[str] | None,
        config: str | os.PathLike[str] | None,
        spam_queue: str | os.PathLike[str],
        next_state: Handler | None = None,
    ):
        if not callable(next_state):
            raise MisuseError(
                f"@spam_filter needs a function to go on with after spam: next_state=FUNCTION, not {next_state!r}."
            )
        self.filter = Filter(storage, config)
        self.spam_queue = spam_queue
        self.next_state = next_state

    def __call__(self, func: Handler) -> Handler:
        if getattr(func, "_lamson_settings", {}).get("routes"):
            raise MisuseError(
                f"On {func.__name__} @spam_filter stands above @route. Put @route on top, @spam_filter under it."
            )

        @functools.wraps(func)
        def keep_spam_away(message: Any, *args: Any, **captures: Any) -> Any:
            try:
                is_spam = self.spam(message)
            except (TokenStoreError, sqlite3.Error, OSError):
                log.exception("failed: the spam filter cannot use %s; the message passes", self.filter.storage_file)
                is_spam = False
            if not is_spam:
                return func(message, *args, **captures)
            self.enqueue_as_spam(message)
            return self.next_state

        return keep_spam_away

    def spam(self, message: Any) -> bool:
        """Whether the message is spam; also writes the filter's header into it. May be overridden."""
        options = self.filter.options
        self.filter.filter(message)
        return message[options.classification_header_name].startswith(options.header_spam_string)

    def enqueue_as_spam(self, message: Any) -> None:
        """Put a message into the spam queue."""
        key = Queue(self.spam_queue).push(message)
        log.info("spam: kept <%s> from <%s> as %s", message["Message-Id"], message.route_from, key)


# --- messages ----------------------------------------------------------------------------------------------------


def _as_base(msg: Mail) -> MailBase:
    """The message as it came, without what an envelope adds to it."""
    if isinstance(msg, str | bytes):
        return encoding.from_string(msg)
    if isinstance(msg, Message):
        return encoding.from_message(msg)
    if hasattr(msg, "as_bytes"):
        return encoding.from_string(msg.as_bytes())
    raise MisuseError(f"{msg!r} is no message, str or bytes.")


def _put(msg: Any, name: str, value: str) -> None:
    if isinstance(msg, Message):
        del msg[name]
    msg[name] = value


def _digest(base: MailBase) -> bytes:
    """What tells a message from all others, and stays the same on its way from server to server."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("Message-Id", "Date", "From", "Subject"):
        digest.update(f"{base[name]}\n".encode("utf-8", "surrogatepass"))
    body = base.source.body() if base.source is not None else b""
    digest.update(bytes(body[:MAX_DIGESTED]).replace(b"\r\n", b"\n").rstrip())
    return digest.digest()


def _all(tokens: Tokens) -> Iterable[str]:
    return itertools.chain.from_iterable(tokens.values())


def _identity(path: str) -> tuple[int, int] | None:
    """Tells files apart that had the same name one after the other; None when there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
