"""Tests for lamson.hammierc: SpamBayes' options files."""

import logging

import pytest

from lamson import hammierc
from lamson.errors import LamsonError
from lamson.hammierc import Options, OptionsError, read_options


@pytest.fixture(autouse=True)
def system_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hammierc, "SYSTEM_FILE", str(tmp_path / "etc-hammierc"))
    return tmp_path / "etc-hammierc"


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / ".hammierc"
        path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
        return read_options(path)

    return read


def test_without_a_file_everything_is_as_spambayes_has_it(tmp_path):
    for options in (read_options(tmp_path / "missing"), read_options(None)):
        assert (options.ham_cutoff, options.spam_cutoff) == (0.2, 0.9)
        assert options.classification_header_name == "X-Spambayes-Classification"
        assert options.include_trained is True and options.include_evidence is False


def test_options_are_read_in_the_syntax_of_spambayes(read):
    options = read(
        "# a comment\n"
        "[Categorization]\n"
        "ham_cutoff: 0.1\n"
        "spam_cutoff = 0.95   ; and another\n"
        "[headers]\n"
        "Header_Spam_String:   very spam 100%\n"
        "include_trained: off\n"
        "header_score_digits: 4\n"
        "[Categorization]\n"
        "spam_cutoff: 0.8\n"
        "[Classifier]\n"
        "max_discriminators: 50\n"
        "[Storage]\n"
        "persistent_storage_file: ~/spamdb\n"
    )
    assert (options.ham_cutoff, options.spam_cutoff) == (0.1, 0.8)
    assert options.header_spam_string == "very spam 100%"
    assert (options.include_trained, options.header_score_digits, options.max_discriminators) == (False, 4, 50)
    assert options.persistent_storage_file.endswith("/spamdb") and "~" not in options.persistent_storage_file


def test_the_file_of_the_system_is_read_first(read, system_file):
    system_file.write_text("[Categorization]\nham_cutoff: 0.3\nspam_cutoff: 0.7\n")
    options = read("[Categorization]\nspam_cutoff: 0.8\n")
    assert (options.ham_cutoff, options.spam_cutoff) == (0.3, 0.8)
    assert read_options().spam_cutoff == 0.7


def test_options_that_mean_nothing_here_are_named_in_one_warning(read, caplog):
    with caplog.at_level(logging.WARNING):
        options = read(
            "[Storage]\npersistent_use_database: dbm\n[Headers]\nnotate_to: spam\nspam_cutoff: 0.1\n[x]\ny: 1\n"
        )
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "Lamson does nothing with [Storage] persistent_use_database, [Headers] notate_to, [Headers] spam_cutoff, [x] y"
    ]
    assert options.spam_cutoff == 0.9


def test_options_that_are_known_give_no_warning(read, caplog):
    with caplog.at_level(logging.WARNING):
        read("[Categorization]\nspam_cutoff: 0.8\n")
    assert caplog.records == []


@pytest.mark.parametrize(
    "text",
    [
        "spam_cutoff: 0.9\n",
        "[Categorization\nspam_cutoff: 0.9\n",
        "[Categorization]\nwhatever this is\n",
        b"\x80\x02}q\x01(U\x05token\n",
    ],
)
def test_a_file_that_does_not_parse_is_an_error_with_its_name(read, text):
    with pytest.raises(OptionsError, match=r"\.hammierc makes no sense"):
        read(text)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("[Categorization]\nspam_cutoff: high", "a number from 0 to 1"),
        ("[Categorization]\nspam_cutoff: 90", "a number from 0 to 1"),
        ("[Categorization]\nspam_cutoff: nan", "a number from 0 to 1"),
        ("[Headers]\ninclude_score: perhaps", "True or False"),
        ("[Headers]\nheader_score_digits: -1", "a whole number"),
        ("[Headers]\nclassification_header_name: X Spam", "the name of a header"),
        ("[Headers]\nheader_ham_string:", "one or more words"),
        ("[Headers]\nheader_ham_string: ham\n  X-Other: header", "one or more words"),
        ("[Classifier]\nunknown_word_strength: 0", "a number above 0"),
        ("[Classifier]\nunknown_word_prob: 1", "a number between 0 and 1"),
    ],
)
def test_a_value_that_makes_no_sense_is_an_error_that_says_what_would(read, line, wanted):
    with pytest.raises(OptionsError) as caught:
        read(line + "\n")
    assert ".hammierc" in str(caught.value) and wanted in str(caught.value)
    assert isinstance(caught.value, LamsonError)


def test_cutoffs_in_the_wrong_order_are_an_error(read):
    with pytest.raises(OptionsError, match="ham_cutoff is 0.95 and spam_cutoff 0.9"):
        read("[Categorization]\nham_cutoff: 0.95\n")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(OptionsError, match="cannot be read"):
        read_options(tmp_path)


def test_text_that_is_not_utf_8_is_no_error(read):
    assert read(b"\xef\xbb\xbf# gr\xfc\xdfe\n[Categorization]\nspam_cutoff: 0.8\n").spam_cutoff == 0.8


def test_every_option_has_a_default_of_its_own():
    assert set(hammierc._KNOWN) == {name for name in vars(Options) if not name.startswith("_")}
