"""SpamBayes' options file, ``.hammierc``: what a filter calls spam, and what it writes into a message.

    # What is left out keeps its default.
    [Categorization]
    spam_cutoff: 0.95

    [Headers]
    include_evidence: True

`read_options` reads ``/etc/hammierc`` and then the file it is given; either may be missing. Options that mean nothing
to Lamson are named in one warning for each file. A file that cannot be read, and a value that makes no sense, raise
`OptionsError`, which says where: nobody wants a filter with half of its options.
"""

import configparser
import logging
import math
import os
from collections.abc import Callable
from typing import Any

from lamson.errors import MisuseError
from lamson.headers import check_name

log = logging.getLogger(__name__)

SYSTEM_FILE = "/etc/hammierc"


class OptionsError(MisuseError):
    """An options file cannot be read, or something in it makes no sense. The text names the file."""


class Options:
    """The options that Lamson knows, by the names they have in the file. None: Lamson's own way is best."""

    ham_cutoff: float = 0.20
    spam_cutoff: float = 0.90

    classification_header_name: str = "X-Spambayes-Classification"
    header_spam_string: str = "spam"
    header_ham_string: str = "ham"
    header_unsure_string: str = "unsure"
    header_score_digits: int = 2
    header_score_logarithm: bool = False
    include_score: bool = False
    score_header_name: str = "X-Spambayes-Spam-Probability"
    include_thermostat: bool = False
    thermostat_header_name: str = "X-Spambayes-Level"
    include_evidence: bool = False
    evidence_header_name: str = "X-Spambayes-Evidence"
    clue_mailheader_cutoff: float = 0.5
    include_trained: bool = True
    trained_header_name: str = "X-Spambayes-Trained"

    max_discriminators: int | None = None
    minimum_prob_strength: float | None = None
    unknown_word_prob: float | None = None
    unknown_word_strength: float | None = None

    persistent_storage_file: str | None = None


def read_options(path: str | os.PathLike[str] | None = None) -> Options:
    """The options in `SYSTEM_FILE` and in `path`, where both say something those in `path`. Raises `OptionsError`."""
    options = Options()
    for file in (SYSTEM_FILE, path):
        if file is not None:
            _merge(options, os.fspath(file))
    return options


# --- reading a file ----------------------------------------------------------------------------------------------


def _merge(options: Options, path: str) -> None:
    # A section may come twice, and a percent sign is one.
    parser = configparser.RawConfigParser(strict=False, inline_comment_prefixes=(";",))
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            parser.read_file(file, path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OptionsError(f"The options file {path} cannot be read: {error.strerror}.") from error
    except configparser.Error as error:
        raise OptionsError(f"The options file {path} makes no sense: {' '.join(str(error).split())}") from error
    unknown = []
    for section in parser.sections():
        for name, text in parser.items(section):
            if _KNOWN.get(name, ("",))[0] == section.lower():
                setattr(options, name, _value(path, section, name, text))
            else:
                unknown.append(f"[{section}] {name}")
    if unknown:
        log.warning("%s: Lamson does nothing with %s", path, ", ".join(unknown))
    if options.ham_cutoff > options.spam_cutoff:
        raise OptionsError(
            f"With the options file {path}, ham_cutoff is {options.ham_cutoff} and spam_cutoff {options.spam_cutoff}. "
            "What is below the first is ham, and what is not below the second is spam: make the first the smaller one."
        )


def _value(path: str, section: str, name: str, text: str) -> Any:
    _, read, wanted = _KNOWN[name]
    try:
        return read(text)
    except (ValueError, KeyError) as error:
        raise OptionsError(
            f"In the options file {path}, [{section}] {name} is {text!r}. It has to be {wanted}."
        ) from error


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError(text)
    return number


def _between(text: str) -> float:
    number = _share(text)
    if number in (0, 1):
        raise ValueError(text)
    return number


def _strength(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def _number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _truth(text: str) -> bool:
    return configparser.RawConfigParser.BOOLEAN_STATES[text.lower()]


def _word(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(text)
    return text


_SHARE = (_share, "a number from 0 to 1")
_NUMBER = (_number, "a whole number")
_TRUTH = (_truth, "True or False")
_HEADER = (check_name, "the name of a header, such as X-Spam")
_WORD = (_word, "one or more words")

# For each option its section, and how its value is read.
_KNOWN: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "ham_cutoff": ("categorization", *_SHARE),
    "spam_cutoff": ("categorization", *_SHARE),
    "classification_header_name": ("headers", *_HEADER),
    "header_spam_string": ("headers", *_WORD),
    "header_ham_string": ("headers", *_WORD),
    "header_unsure_string": ("headers", *_WORD),
    "header_score_digits": ("headers", *_NUMBER),
    "header_score_logarithm": ("headers", *_TRUTH),
    "include_score": ("headers", *_TRUTH),
    "score_header_name": ("headers", *_HEADER),
    "include_thermostat": ("headers", *_TRUTH),
    "thermostat_header_name": ("headers", *_HEADER),
    "include_evidence": ("headers", *_TRUTH),
    "evidence_header_name": ("headers", *_HEADER),
    "clue_mailheader_cutoff": ("headers", *_SHARE),
    "include_trained": ("headers", *_TRUTH),
    "trained_header_name": ("headers", *_HEADER),
    "max_discriminators": ("classifier", *_NUMBER),
    "minimum_prob_strength": ("classifier", *_SHARE),
    "unknown_word_prob": ("classifier", _between, "a number between 0 and 1"),
    "unknown_word_strength": ("classifier", _strength, "a number above 0"),
    "persistent_storage_file": ("storage", os.path.expanduser, "a file"),
}
