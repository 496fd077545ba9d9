"""A short run of tests/fuzz/fuzz_wire.py, whose conversations are the same each time."""

import importlib.util
from pathlib import Path

HERE = Path(__file__).parent


def test_random_conversations_leave_nothing_behind():
    spec = importlib.util.spec_from_file_location("fuzz_wire", HERE / "fuzz/fuzz_wire.py")
    fuzz_wire = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz_wire)
    counts = fuzz_wire.fuzz(seconds=60, seed=1, connections=80)
    assert counts["messages to any"] > 10 and counts["messages to fail"] > 5, "garbled, but not so that nothing is left"
    assert counts["replies 500 "] > 100
