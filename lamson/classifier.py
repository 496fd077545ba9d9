"""How likely it is that a message is spam, going by what was learned about its tokens.

What one token tells is SpamBayes' arithmetic, as `sbclassifier` has it. When 30 of 100 spams and 1 of 100 hams had it,
a message with it is spam with a probability of 0.97; for a token that was rarely seen this moves towards 0.5 (Gary
Robinson's formula). Of the kind of which more mail was learned, a message counts for less than one here: a single spam
among 500 is no evidence when there were only 100 hams that could have had the token, too.

How tokens are put together is ours. SpamBayes' chi-squared test takes tokens for independent witnesses, which they
are not: the hundred words of an advertisement say one thing a hundred times. Here each aspect of a message
(`lamson.tokenizer.ASPECTS`) is one witness. What it says is the mean of its tokens' log-odds, and that is added up:

    aspect = sum(log-odds of tokens that tell something) / (DOUBT + their number)
    score  = 1 / (1 + exp(-PRIOR - sum(WEIGHT * aspect, of each at most LIMIT)))

So a message is spam when most aspects of it say so, and one whose aspects contradict each other is unsure.
"""

import heapq
import math
from collections.abc import Iterable
from typing import NamedTuple

import sbclassifier
from sbclassifier.classifier import WordInfo

from lamson.tokenizer import Tokens
from lamson.tokenstore import TokenStore, unpack

# What one aspect counts for; 1 would be right for aspects that are wholly independent.
WEIGHT = 0.6
# What it counts for at most: not so much that it makes a message spam alone, with a cutoff of 0.90.
LIMIT = 2.5
# Tokens that tell nothing, which each aspect has besides its own: a single token is a weaker word than many.
DOUBT = 2
# The log-odds of a message of which nothing is known: 3 to 2 for ham. To lose a message that is wanted is worse than to
# get one that is not.
PRIOR = -0.4


class Clue(NamedTuple):
    """A token, the aspect it belongs to, and the probability that a message with it is spam."""

    token: str
    aspect: str
    probability: float


class Classifier(sbclassifier.Classifier):
    """Scores messages by what is in a token store, which has to have fetched their tokens.

    These attributes, SpamBayes' options of the same names, may be set before the first score:

    * `unknown_word_prob`: the probability of spam of a message with a token that was never seen;
    * `unknown_word_strength`: how many messages that counts for. It is small, since a token that one spam had and no
      ham says a lot in a mailbox where thousands of tokens come up once;
    * `minimum_prob_strength`: how far from 0.5 a probability has to be to tell something. It is large, so that only
      tokens count that are ten times likelier in one kind of mail;
    * `max_discriminators`: how many tokens of an aspect count, the strongest first.
    """

    unknown_word_prob = 0.5
    unknown_word_strength = 0.1
    minimum_prob_strength = 0.4
    max_discriminators = 150

    def __init__(self, store: TokenStore):
        super().__init__(_Balance(store))
        self.store = store
        self._odds = _Odds(self)
        self._odds_for = (0, 0)

    def score(self, tokens: Tokens) -> float:
        """The probability that a message with these tokens is spam: 0.0 to 1.0."""
        return _probability(PRIOR + sum([_limited(WEIGHT * _mean(self._said(each))) for each in tokens.values()]))

    def aspects(self, tokens: Tokens) -> dict[str, float]:
        """What each aspect says alone, as a probability. 0.5 is nothing."""
        return {aspect: _probability(_mean(self._said(each))) for aspect, each in tokens.items()}

    def clues(self, tokens: Tokens) -> list[Clue]:
        """The tokens that tell something, the strongest first."""
        told = [
            (odds, token, aspect)
            for aspect, each in tokens.items()
            for token, odds in zip(each, self._log_odds(each), strict=True)
            if odds
        ]
        told.sort(key=lambda clue: (-abs(clue[0]), clue[1]))
        return [Clue(token, aspect, _probability(odds)) for odds, token, aspect in told]

    def _said(self, tokens: Iterable[str]) -> list[float]:
        """The log-odds of those tokens of an aspect that tell something."""
        said = [odds for odds in self._log_odds(tokens) if odds]
        if len(said) > self.max_discriminators:
            said = heapq.nlargest(self.max_discriminators, said, key=abs)
        return said

    def _log_odds(self, tokens: Iterable[str]) -> list[float]:
        """What each token tells: 0.0 for nothing."""
        totals = self.store.nham, self.store.nspam
        if totals != self._odds_for:
            self._odds_for = totals
            self._odds.clear()
            self.probcache.clear()
        odds = self._odds
        return [odds[counts] for counts in self.store.counts(tokens)]


class _Balance:
    """The numbers of messages that `sbclassifier` is told: as many hams as spams, since it takes what was seen in one
    message for the same evidence in either."""

    def __init__(self, store: TokenStore):
        self.store = store

    @property
    def nham(self) -> int:
        return min(self.store.nham, self.store.nspam or self.store.nham)

    @property
    def nspam(self) -> int:
        return min(self.store.nspam, self.store.nham or self.store.nspam)

    def share(self, ham: int, spam: int) -> tuple[float, float]:
        """Of so many hams and spams, those that are told. Counts that were imported may be of more messages than there
        were, which `sbclassifier` takes for a bug."""
        return (
            max(0, min(ham, self.store.nham)) / max(self.store.nham, 1) * self.nham,
            max(0, min(spam, self.store.nspam)) / max(self.store.nspam, 1) * self.nspam,
        )


class _Odds(dict[int, float]):
    """Log-odds by a token's counts, worked out when they are asked for: most tokens share theirs with thousands."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.classifier = classifier

    def __missing__(self, counts: int) -> float:
        classifier = self.classifier
        record = WordInfo()
        record.hamcount, record.spamcount = classifier.db.share(*unpack(counts))
        odds = 0.0
        if record.hamcount or record.spamcount:
            probability = classifier.probability(record)
            if abs(probability - 0.5) >= classifier.minimum_prob_strength:
                odds = math.log(probability / (1 - probability))
        self[counts] = odds
        return odds


def _mean(odds: list[float]) -> float:
    return sum(odds) / (len(odds) + DOUBT)


def _limited(odds: float) -> float:
    # In a curve, so that what is small stays what it is.
    return LIMIT * math.tanh(odds / LIMIT)


def _probability(odds: float) -> float:
    return 1 / (1 + math.exp(-odds))
