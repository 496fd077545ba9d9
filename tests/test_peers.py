"""aiosmtpd's own tests, which come with it, against our protocol classes: see peers.py for what we fail on purpose."""

import os
import re
import subprocess
import sys
from pathlib import Path

from peers import ON_PURPOSE

TESTS = 435  # fewer than these would be another suite


def test_our_protocol_passes_the_tests_of_aiosmtpd(tmp_path):
    # Without test_main.py: its tests are of aiosmtpd's command line, and want the port 8025.
    options = "-p peers -p no:cacheprovider -c /dev/null -q --tb=short --pyargs aiosmtpd.tests -k".split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), *options, "not test_main"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    counts = {what: int(number) for number, what in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert counts["passed"] > TESTS, done.stdout
    assert counts["xfailed"] >= sum(map(len, ON_PURPOSE.values()))
