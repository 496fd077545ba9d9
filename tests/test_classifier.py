"""Tests for lamson.classifier: how tokens and aspects make a verdict."""

import math

import pytest
import sbclassifier

from lamson.classifier import DOUBT, LIMIT, PRIOR, WEIGHT, Classifier, Clue
from lamson.tokenstore import TokenStore

# The score of a message of which nothing is known.
UNKNOWN = pytest.approx(1 / (1 + math.exp(-PRIOR)))


@pytest.fixture
def store(tmp_path):
    store = TokenStore(tmp_path / "spamdb")
    yield store
    store.close()


def train(store, ham=(), spam=()):
    """Train messages, each a list of tokens."""
    for number, tokens in enumerate([*ham, *spam]):
        store.train(str(number).encode(), tokens, number >= len(ham))


@pytest.fixture
def classifier(store):
    """A classifier that has had 20 messages of each kind."""
    ham = [["meeting", "tea", "the", f"ham{number}"] for number in range(20)]
    spam = [["viagra", "casino", "the", f"spam{number}"] for number in range(20)]
    train(store, ham, spam)
    return Classifier(store)


def ask(classifier, **tokens):
    classifier.store.fetch(token for each in tokens.values() for token in each)
    return classifier.score(tokens)


def odds(probability):
    return math.log(probability / (1 - probability))


def told(classifier, **tokens):
    """The log-odds that these tokens add to those of a message of which nothing is known."""
    return odds(ask(classifier, **tokens)) - PRIOR


def test_nothing_known_is_unsure_and_rather_ham_than_spam(classifier):
    assert ask(classifier, words=["unheard", "of"], subject=[]) == UNKNOWN
    assert 0.3 < UNKNOWN.expected < 0.5


def test_tokens_of_spam_make_spam_and_tokens_of_ham_make_ham(classifier):
    assert ask(classifier, words=["viagra", "casino"]) > 0.7
    assert ask(classifier, words=["meeting", "tea"]) < 0.3
    assert ask(classifier, words=["the"]) == UNKNOWN


def test_a_token_tells_what_sbclassifier_says_it_does(classifier, store):
    record = sbclassifier.classifier.WordInfo()
    record.spamcount = 1
    probability = classifier.probability(record)
    assert probability == pytest.approx((0.1 * 0.5 + 1) / (0.1 + 1))
    said = WEIGHT * odds(probability) / (1 + DOUBT)
    assert told(classifier, words=["spam7"]) == pytest.approx(LIMIT * math.tanh(said / LIMIT))


def test_how_much_there_was_of_each_kind_is_no_evidence(store):
    train(store, [["tea", "the"]] * 100, [["casino", "the", "once"], *[["casino", "the"]] * 4])
    classifier = Classifier(store)
    assert ask(classifier, words=["the"]) == UNKNOWN
    assert told(classifier, words=["tea"]) == pytest.approx(-told(classifier, words=["casino"]))


def test_a_token_that_came_once_in_much_mail_says_little(store):
    train(
        store, [["tea", f"ham{number}"] for number in range(100)], [["casino", f"spam{number}"] for number in range(5)]
    )
    classifier = Classifier(store)
    assert told(classifier, words=["ham7"]) == pytest.approx(0)
    assert told(classifier, words=["spam3"]) > 0.1


def test_the_score_is_made_of_the_means_of_the_aspects(classifier):
    one, other = told(classifier, words=["viagra", "casino"]), told(classifier, subject=["spam1"])
    both = told(classifier, words=["viagra", "casino"], subject=["spam1"])
    assert both == pytest.approx(one + other)


def test_saying_one_thing_a_hundred_times_does_not_make_it_a_hundred_times_truer(store):
    many = [f"offer{number}" for number in range(100)]
    train(store, [["tea", f"ham{number}"] for number in range(20)], [[*many, f"{number}"] for number in range(20)])
    classifier = Classifier(store)
    assert 0.8 < ask(classifier, words=many) < 0.9, "one aspect makes no spam"
    assert ask(classifier, words=many, subject=many, form=many) > 0.99
    assert ask(classifier, words=many, route=["tea"]) < 0.8, "and another one contradicts it"


def test_the_clues_are_the_tokens_that_told_something_the_strongest_first(classifier):
    tokens = {"words": ["viagra", "the", "tea", "new"], "subject": ["spam1"]}
    classifier.store.fetch(token for each in tokens.values() for token in each)
    clues = classifier.clues(tokens)
    assert [(clue.token, clue.aspect) for clue in clues] == [
        ("tea", "words"),
        ("viagra", "words"),
        ("spam1", "subject"),
    ]
    assert isinstance(clues[0], Clue) and clues[0].probability < 0.01 and clues[1].probability > 0.99


def test_the_aspects_say_what_each_of_them_thinks_alone(classifier):
    tokens = {"words": ["viagra"], "subject": ["tea"], "route": []}
    classifier.store.fetch(token for each in tokens.values() for token in each)
    said = classifier.aspects(tokens)
    assert list(said) == list(tokens)
    assert said["words"] > 0.85 and said["subject"] < 0.15 and said["route"] == 0.5


def test_new_training_counts_at_once(classifier, store):
    before = ask(classifier, words=["casino"])
    store.train(b"a new one", ["casino"], False)
    assert ask(classifier, words=["casino"]) < before


@pytest.mark.parametrize(("option", "value"), [("minimum_prob_strength", 0.499), ("unknown_word_strength", 100.0)])
def test_options_change_what_tells_something(classifier, store, option, value):
    assert told(classifier, words=["spam1"]) > 0.1
    other = Classifier(store)
    setattr(other, option, value)
    assert ask(other, words=["spam1"]) == UNKNOWN


def test_of_an_aspect_the_strongest_tokens_count(classifier):
    everything = ask(classifier, words=["viagra", "spam1", "spam2", "tea"])
    classifier.max_discriminators = 2
    assert ask(classifier, words=["viagra", "spam1", "spam2", "tea"]) == pytest.approx(
        ask(classifier, words=["viagra", "tea"])
    )
    assert everything > 0.5


def test_counts_that_cannot_be_are_no_error(classifier, store, tmp_path):
    (tmp_path / "export.csv").write_text("0,0\nviagra,500,9000\nnothing,0,0\n")
    store.import_spambayes(tmp_path / "export.csv")
    assert 0 < ask(classifier, words=["viagra", "nothing"]) < 1


def test_no_training_at_all_is_no_error(store):
    classifier = Classifier(store)
    assert ask(classifier, words=["viagra"]) == UNKNOWN
    store.train(b"1", ["viagra"], True)
    assert told(classifier, words=["viagra"]) > 0.1
