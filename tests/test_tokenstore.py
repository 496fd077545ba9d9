"""Tests for lamson.tokenstore: counts of tokens in a file that several processes share."""

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lamson import tokenstore
from lamson.tokenstore import TokenStore, TokenStoreError, unpack


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "spamdb"


@pytest.fixture
def store(path):
    store = TokenStore(path)
    yield store
    store.close()


def counts(store, *tokens):
    """(ham, spam) of each token."""
    store.fetch(tokens)
    return [unpack(each) for each in store.counts(tokens)]


def totals(store):
    store.fetch([])
    return store.nham, store.nspam


def train(store, number, tokens, spam):
    return store.train(str(number).encode(), tokens, spam)


# --- learning --------------------------------------------------------------------------------------------------------


def test_training_counts_messages_and_the_tokens_they_had(store):
    assert train(store, 1, ["tea", "cake", "tea"], spam=False)
    assert train(store, 2, ["tea", "viagra"], spam=True)
    assert counts(store, "tea", "cake", "viagra", "unheard of") == [(1, 1), (1, 0), (0, 1), (0, 0)]
    assert totals(store) == (1, 1)


def test_a_message_that_is_trained_twice_counts_once(store):
    assert train(store, 1, ["tea"], spam=False)
    assert not train(store, 1, ["tea"], spam=False)
    assert (counts(store, "tea"), totals(store)) == ([(1, 0)], (1, 0))


def test_a_message_that_is_trained_as_the_other_kind_changes_sides(store):
    train(store, 1, ["tea"], spam=False)
    assert train(store, 1, ["tea"], spam=True)
    assert (counts(store, "tea"), totals(store)) == ([(0, 1)], (0, 1))


def test_untraining_takes_back_what_was_trained(store):
    train(store, 1, ["tea"], spam=False)
    assert store.untrain(b"1", ["tea"], spam=False)
    assert (counts(store, "tea"), totals(store)) == ([(0, 0)], (0, 0))
    assert train(store, 1, ["tea"], spam=False), "it may be trained again"


def test_untraining_what_was_not_trained_so_changes_nothing(store):
    train(store, 1, ["tea"], spam=False)
    assert not store.untrain(b"1", ["tea"], spam=True)
    assert not store.untrain(b"2", ["tea"], spam=False)
    assert (counts(store, "tea"), totals(store)) == ([(1, 0)], (1, 0))


@pytest.mark.parametrize("token", ["naïve", "免费", "a'b\"c", "%", "\ud800", "nul\0nul", "two\nlines", ""])
def test_any_token_can_be_stored(store, token):
    assert train(store, 1, [token, "tea"], spam=True)
    assert counts(store, "tea", "naïve" if token == "naïve" else "tea") == [(0, 1), (0, 1)]
    store.fetch([token])


def test_both_counts_survive_being_kept_in_one_number():
    ham = tokenstore._HAM
    for pair in [(0, 0), (1, 0), (0, 1), (10**6, 10**6), (-1, 0), (0, -1), (-3, 2), (3, -2)]:
        assert unpack(pair[0] * ham + pair[1]) == pair


# --- the journal -----------------------------------------------------------------------------------------------------


@pytest.fixture
def short_journal(monkeypatch):
    monkeypatch.setattr(tokenstore, "FOLD_AFTER", 4)


def rows(path, table):
    with sqlite3.connect(path) as connection:
        return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


def test_the_journal_is_folded_into_the_table_and_nothing_changes(path, store, short_journal):
    other = TokenStore(path)
    for number in range(10):
        train(store, number, ["tea", f"word{number}"], spam=number % 2 == 0)
        for each in (store, other):
            assert totals(each) == ((number + 1) // 2, number // 2 + 1)
            assert counts(each, "tea") == [totals(each)]
            assert counts(each, "word0", f"word{number}", "cake") == [(0, 1), (number % 2, 1 - number % 2), (0, 0)]
    assert rows(path, "journal") == 2 and rows(path, "tokens") == 9
    other.close()


def test_tokens_nobody_has_any_more_leave_the_table(path, store, short_journal):
    for number in range(4):
        train(store, number, [f"word{number}"], spam=True)
    for number in range(4):
        store.untrain(str(number).encode(), [f"word{number}"], spam=True)
    assert rows(path, "tokens") == 0
    assert (counts(store, "word1"), totals(store)) == ([(0, 0)], (0, 0))


def test_counts_do_not_go_below_zero_when_a_message_is_read_in_another_way_than_it_was_trained(store, short_journal):
    train(store, 1, ["tea"], spam=True)
    store.untrain(b"1", ["tea", "cake"], spam=True)
    for number in range(2, 6):
        train(store, number, ["cake"], spam=True)
    assert counts(store, "tea", "cake") == [(0, 0), (0, 3)]


def test_memory_is_given_back_when_too_much_was_asked_for(store, short_journal, monkeypatch):
    monkeypatch.setattr(tokenstore, "MAX_CACHED", 10)
    for number in range(5):
        train(store, number, ["tea"], spam=True)
    counts(store, *(f"word{number}" for number in range(50)))
    assert counts(store, "tea") == [(0, 5)]
    assert len(store._cached) == 1


# --- the file --------------------------------------------------------------------------------------------------------


def test_what_was_learned_is_there_when_the_file_is_opened_again(path):
    store = TokenStore(path)
    train(store, 1, ["tea"], spam=False)
    store.close()
    again = TokenStore(path)
    assert (counts(again, "tea"), totals(again)) == ([(1, 0)], (1, 0))
    again.close()


def test_a_failed_transaction_leaves_everything_as_it_was(store):
    train(store, 1, ["tea"], spam=False)

    def tokens():
        yield "cake"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, 2, tokens(), spam=True)
    with pytest.raises(sqlite3.Error), store._transaction("IMMEDIATE") as connection:
        connection.execute("DELETE FROM journal")
        connection.execute("this is no SQL")
    assert (counts(store, "tea", "cake"), totals(store)) == ([(1, 0), (0, 0)], (1, 0))
    assert train(store, 2, ["cake"], spam=True)


@pytest.mark.parametrize("content", [b"\x80\x02}q\x01(U\x05tea" * 100, b"no database", b"SQLite format 3\x00" * 50])
def test_a_file_that_is_something_else_is_refused_and_not_touched(tmp_path, content):
    path = tmp_path / "hammie.db"
    path.write_bytes(content)
    with pytest.raises(TokenStoreError, match="no token database.*sb_dbexpimp"):
        TokenStore(path)
    assert path.read_bytes() == content


def test_an_sqlite_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "states.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE states (a)")
    connection.close()
    with pytest.raises(TokenStoreError, match="no token database of this version"):
        TokenStore(path)


def test_a_folder_that_cannot_be_written_raises_the_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        TokenStore(tmp_path / "file" / "spamdb")
    with pytest.raises(sqlite3.OperationalError):
        TokenStore(tmp_path)


# --- several at once -------------------------------------------------------------------------------------------------


def test_a_process_sees_at_once_what_another_one_trains(path, store):
    train(store, 1, ["tea"], spam=False)
    assert counts(store, "tea", "cake") == [(1, 0), (0, 0)]
    code = (
        "import sys; from lamson.tokenstore import TokenStore; "
        "TokenStore(sys.argv[1]).train(b'2', ['tea', 'cake'], True)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=True, cwd=os.path.dirname(os.path.dirname(__file__)))
    assert (counts(store, "tea", "cake"), totals(store)) == ([(1, 1), (0, 1)], (1, 1))


def _train_many(path, first, ready):
    ready.wait()
    store = TokenStore(path)
    for number in range(first, first + 60):
        store.train(str(number).encode(), ["tea", f"word{number % 7}"], number % 3 == 0)
    store.close()


def test_processes_that_train_at_once_lose_nothing(path, monkeypatch):
    monkeypatch.setattr(tokenstore, "FOLD_AFTER", 50)
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    # Two of them train the same messages.
    workers = [context.Process(target=_train_many, args=(path, first, ready)) for first in (0, 60, 60)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = TokenStore(path)
    assert totals(store) == (80, 40)
    assert counts(store, "tea") == [(80, 40)]
    assert sum(sum(pair) for pair in counts(store, *(f"word{number}" for number in range(7)))) == 120
    store.close()


def test_threads_may_share_a_store(store):
    errors = []

    def work(first):
        try:
            for number in range(first, first + 50):
                train(store, number, ["tea", f"word{number}"], spam=True)
                with store.lock:
                    store.fetch([f"word{number}"])
                    assert store.counts([f"word{number}"]) == [1]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 50, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert counts(store, "tea") == [(0, 150)]


def test_a_store_that_was_opened_before_a_fork_works_after_it(store):
    train(store, 1, ["tea"], spam=True)
    child = os.fork()
    if child == 0:
        try:
            train(store, 2, ["tea"], spam=True)
            os._exit(0 if counts(store, "tea") == [(0, 2)] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    train(store, 3, ["tea"], spam=True)
    assert counts(store, "tea") == [(0, 3)]


def test_a_child_holds_the_file_open_itself(store, path):
    train(store, 1, ["tea"], spam=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(store, 2, ["tea"], spam=True)
            here = f":{os.stat(path).st_ino}"
            locks = map(str.split, Path("/proc/locks").read_text().splitlines())  # proc_locks(5)
            os.write(writing, b"yes" if str(os.getpid()) in [it[4] for it in locks if it[5].endswith(here)] else b"no")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading) as said:
        assert said.read() == "yes"
    assert counts(store, "tea") == [(0, 2)]


# --- SpamBayes -------------------------------------------------------------------------------------------------------

EXPORT = b"\r\n".join(
    [
        b"10,20",
        b"viagra,0,12",
        b'"says ""hi,""",3,0',
        b"subject:Free,1,4",
        b"subject:FREE,0,5",
        b"header:Received:7,2,1",
        b"header:Received:9,1,1",
        b"email name:zed,4,0",
        b"gr\xfc\xdfe,1,0",
        b"na\xc3\xafve,1,0",
        b"",
    ]
)


def test_the_export_of_spambayes_is_added_to_what_is_there(tmp_path, store):
    train(store, 1, ["viagra", "tea"], spam=False)
    (tmp_path / "export.csv").write_bytes(EXPORT)
    assert store.import_spambayes(tmp_path / "export.csv") == (10, 20, 9)
    assert totals(store) == (11, 20)
    assert counts(store, "viagra", "tea", 'says "hi,"', "email name:zed") == [(1, 12), (1, 0), (3, 0), (4, 0)]


def test_tokens_of_spambayes_get_the_spelling_that_means_the_same_here(tmp_path, store):
    (tmp_path / "export.csv").write_bytes(EXPORT)
    store.import_spambayes(tmp_path / "export.csv")
    assert counts(store, "subject:free", "header:received", "grüße", "naïve") == [
        (1, 9),
        (3, 2),
        (1, 0),
        (1, 0),
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"viagra,1,2\n",
        b"1,2\nviagra,1\n",
        b"1,2\nviagra,one,2\n",
        b"1,2\nviagra,-1,2\n",
        b"\x80\x02}q",
        b'1,2\n"a',
        b"",
        b"1,2\n" + b"x" * 200_000,
    ],
)
def test_what_is_no_export_is_refused_with_its_line_and_nothing_is_imported(tmp_path, store, content):
    (tmp_path / "export.csv").write_bytes(content)
    with pytest.raises(TokenStoreError, match="no export of SpamBayes.*line"):
        store.import_spambayes(tmp_path / "export.csv")
    assert totals(store) == (0, 0)
