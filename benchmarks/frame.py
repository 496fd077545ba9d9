"""How every benchmark tells its results, so that `scripts/bench` can put them into one table.

    from frame import figure, missing, ratio

    ratio("1 KB, 1 session", 3120, "stock aiosmtpd", 750, ">= 3")
    figure("NOOP, 99th percentile", 12.4, "ms", "<= 50")
    missing("the whole way beside Salmon", "no interpreter with Salmon was named")

prints

    RESULT | 1 KB, 1 session | 3,120/s | stock aiosmtpd 750/s | 4.16 | >= 3 | met
    RESULT | NOOP, 99th percentile | 12.4 ms |  | 12.4 | <= 50 | met
    MISSING | the whole way beside Salmon | no interpreter with Salmon was named

This module needs nothing but Python, any that peers run on.
"""

import operator

WORDS = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


def ratio(what, ours, peer, theirs, wanted="", unit="/s"):
    """Tell a figure beside a peer's, or one of ours under other conditions. `wanted` is about ours / theirs."""
    _tell("RESULT", what, _number(ours, unit), f"{peer} {_number(theirs, unit)}", *_judged(ours / theirs, wanted))


def figure(what, value, unit="", wanted=""):
    """Tell a figure that stands alone; `wanted` is about itself."""
    _tell("RESULT", what, _number(value, unit), "", *_judged(value, wanted))


def missing(what, reason):
    """Say what was not measured, and why."""
    _tell("MISSING", what, reason)


def parse(line):
    """The columns of a line that this module has printed, the kind first; None for any other line."""
    columns = line.rstrip("\n").split(" | ")
    return columns if (columns[0], len(columns)) in (("RESULT", 7), ("MISSING", 3)) else None


def _tell(*columns):
    print(" | ".join(" ".join(str(column).replace("|", "/").split()) for column in columns), flush=True)


def _judged(value, wanted):
    """A value, what was wanted of it, and whether it is so."""
    if not wanted:
        return f"{value:.3g}", "", ""
    word, _, bound = wanted.partition(" ")
    return f"{value:.3g}", wanted, "met" if WORDS[word](value, float(bound)) else "not met"


def _number(value, unit):
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return text + unit if unit in ("", "/s", "%") else f"{text} {unit}"
