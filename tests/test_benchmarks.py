"""scripts/bench puts every benchmark into one table, and leaves none out in silence. Nothing is measured here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
FRAME = ("all", "frame", "load", "peers", "pipelining")  # the scripts that are no benchmarks


@pytest.fixture
def bench(tmp_path):
    """Run all.py with scripts replaced by code that is given. Returns exit code, output and what was written."""
    folder = shutil.copytree(HERE / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))

    def run(*names, longest=60, **code):
        for name, text in code.items():
            (folder / f"{name}.py").write_text(text)
        runner = folder / "all.py"
        text = runner.read_text()
        assert text.count("LONGEST = 1800") == text.count('needs=("smtp-sink",)') == 1
        runner.write_text(text.replace("LONGEST = 1800", f"LONGEST = {longest}").replace('needs=("smtp-sink",)', ""))
        done = subprocess.run(
            [sys.executable, runner, *names, "--write", tmp_path / "RESULTS.md"],
            env={**os.environ, "LAMSON_CORPORA": str(tmp_path / "nowhere")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, (tmp_path / "RESULTS.md").read_text()

    return run


def test_a_result_is_in_the_table_with_the_machine(bench):
    code, output, page = bench(
        "relay",
        relay="from frame import figure, ratio\n"
        "print('Hello from the script')\n"
        "print('It is in', __file__)\n"
        "ratio('one | two', 3000, 'a peer', 1000, '>= 3')\n"
        "ratio('slow', 100, 'a peer', 1000, '>= 3')\n"
        "figure('size', 12.34, 'MB', '<= 50')\n"
        "figure('no bar', 7)\n",
    )
    assert code == 0
    assert "| relay: one / two | 3,000/s | a peer 1,000/s | 3 | >= 3 | met |" in page
    assert "| relay: slow | 100/s | a peer 1,000/s | 0.1 | >= 3 | not met |" in page
    assert "| relay: size | 12.3 MB |  | 12.3 | <= 50 | met |" in page
    assert "| relay: no bar | 7 |  | 7 |  |  |" in page
    assert "It is in ./benchmarks/relay.py" in page and str(HERE) not in page
    assert "Hello from the script" in page and "Nothing was left out." in page
    assert re.search(r"Date: \d{4}-\d\d-\d\d .*UTC", page) and f"{len(os.sched_getaffinity(0))} cores of" in page
    assert "Not everything that was wanted was met." in output


def test_what_is_missing_is_named_with_the_reason(bench):
    code, output, page = bench(
        "relay", "spam", relay="from frame import missing\nmissing('beside Haraka', 'there is no node')\n"
    )
    assert code == 0
    for text in (output, page):
        assert "relay: beside Haraka: there is no node" in text
        assert "relay: all of it: it told no result" in text
        assert re.search(r"spam, all of it: there is no .*/nowhere/spamassassin", text)


def test_a_script_that_fails_leaves_its_results_and_a_reason(bench):
    code, output, page = bench(
        "relay", relay="from frame import ratio\nratio('first', 2, 'a peer', 1)\nraise ValueError('no more')\n"
    )
    assert code == 1 and "Not every benchmark ran to its end." in output
    assert "| relay: first |" in page
    assert re.search(r"relay: all of it or a part: it ended with code 1 after \d+ s: ValueError: no more", page)


def test_a_script_that_hangs_is_ended_with_all_that_it_has_started_and_written(bench, tmp_path):
    mark = tmp_path / "mark"
    code, _, page = bench(
        "relay",
        longest=2,
        relay="import subprocess, tempfile, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(mark)!r}, 'w').write(f'{{child.pid}} {{tempfile.mkdtemp()}}')\n"
        "time.sleep(600)\n",
    )
    assert code == 1 and "relay: all of it or a part: it ended with code -9" in page
    pid, folder = mark.read_text().split()
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert not Path(folder).exists()


def test_every_benchmark_is_run_by_the_script_and_explained():
    scripts = {path.stem for path in (HERE / "benchmarks").glob("*.py")} - set(FRAME)
    named = subprocess.run(
        [sys.executable, "-c", "import all; print(*(each.script for each in all.BENCHMARKS))"],
        cwd=HERE / "benchmarks",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert set(named) == scripts
    assert set(re.findall(r"^\| `(\w+)\.py` ", (HERE / "benchmarks/README.md").read_text(), re.MULTILINE)) == scripts
