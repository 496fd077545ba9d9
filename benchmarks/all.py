"""Runs every benchmark, and puts what they tell into one table.

    scripts/bench                   # all of them, in about half an hour; writes benchmarks/RESULTS.md
    scripts/bench --quick           # fewer messages and one round of each, some minutes; writes nothing
    scripts/bench relay wire        # these only; writes nothing
    scripts/bench --write FILE      # writes the table there, whatever was run

The exit code is 1 when a script failed; what is slower than wanted is no failure, only told.

Peers are installed when they are needed (see peers.py). Corpora of mail are looked for in the folder that
LAMSON_CORPORA names, or in ../shared/corpora. What is not there is named in the table, with the reason.
"""

import argparse
import datetime
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import frame
import peers

HERE = Path(__file__).resolve().parent
CORPORA = Path(os.environ.get("LAMSON_CORPORA") or HERE.parent.parent / "shared/corpora")
RESULTS = HERE / "RESULTS.md"
LONGEST = 1800  # seconds for one benchmark
FAILED = "all of it or a part"


class Benchmark(NamedTuple):
    """One script: its arguments, those of a quick run, and which of its options name a peer.

    Arguments may have a {peer} or {corpora} in them. What a script cannot do without is in `needs`.
    """

    script: str
    arguments: str = ""
    quick: str = ""
    options: dict[str, str] = {}  # peer: the arguments that it is given by, left out when it is missing
    needs: tuple[str, ...] = ()  # peers, or files in CORPORA


SALMON = {"salmon": "--salmon {salmon}"}

BENCHMARKS = [
    Benchmark("wire", "--rounds 3", "--rounds 1 --scale 0.1", SALMON, needs=("smtp-source",)),
    Benchmark(
        "whole",
        "",
        "--rounds 2 --scale 0.5",
        {**SALMON, "haraka": "--haraka"},
        needs=("smtp-source",),
    ),
    Benchmark("stalls", "", "--rounds 1 --scale 0.2", needs=("smtp-source",)),
    Benchmark("stages", "", "--scale 0.3", needs=("smtp-source",)),
    Benchmark("stores", "", "--seconds 0.5"),
    Benchmark("machines", "", "--rounds 1 --scale 0.2", needs=("smtp-source",)),
    Benchmark("routes", "", "--rounds 2 --messages 1000"),
    Benchmark("states", "--postgresql", "--senders 50000 --rounds 1 --messages 5000"),
    Benchmark("queues", "", "--depth 2000 --messages 500", SALMON),
    Benchmark("relay", "", "--messages 300 --rounds 3", needs=("smtp-sink",)),
    Benchmark(
        "mail",
        "{corpora}/mime/ruby-mail {corpora}/mime/cpython",
        "{corpora}/mime/ruby-mail --rounds 1",
        SALMON,
        needs=("mime/ruby-mail", "mime/cpython"),
    ),
    Benchmark(
        "spam",
        "{corpora}/spamassassin-train.tar.xz",
        "{corpora}/spamassassin-train.tar.xz --rounds 1 --folds 0",
        {"spambayes": "--spambayes {python2} --path {spambayes}"},
        needs=("spamassassin-train.tar.xz",),
    ),
    Benchmark(
        "bounces",
        "{corpora}/bounces/sisimai {corpora}/bounces/truth.csv --flufl --ham {corpora}/spamassassin-train.tar.xz",
        "{corpora}/bounces/sisimai {corpora}/bounces/truth.csv --flufl",
        needs=("bounces/sisimai", "bounces/truth.csv", "spamassassin-train.tar.xz"),
    ),
]


def command(benchmark, quick):
    """The command line of a benchmark, and the rows for what has to be left out of it. Raises peers.Missing."""
    for name in benchmark.needs:
        if name in peers.PEERS:
            peers.PEERS[name]()
        elif not (CORPORA / name).exists():
            raise peers.Missing(f"there is no {CORPORA / name} (name another folder in LAMSON_CORPORA)")
    words, rows = (benchmark.quick if quick else benchmark.arguments).split(), []
    for name, option in benchmark.options.items():
        try:
            found = {name: peers.PEERS[name]()}
            if name == "spambayes":
                found["python2"] = peers.python2()
        except peers.Missing as error:
            rows.append(["MISSING", f"{benchmark.script} beside {name}", str(error)])
        else:
            words += [word.format(**found) if "{" in word else word for word in option.split()]
    words = [word.replace("{corpora}", str(CORPORA)) for word in words]
    return [sys.executable, str(HERE / f"{benchmark.script}.py"), *words], rows


def run(benchmark, quick):
    """Run one and show what it says. Returns the rows for the table, and all that it said."""
    try:
        words, rows = command(benchmark, quick)
    except peers.Missing as error:
        print(f"left out: {error}", flush=True)
        return [["MISSING", f"{benchmark.script}, all of it", str(error)]], ""
    said, begin = [], time.monotonic()
    # A session and a folder of its own, so that nothing of it stays when it has to be ended.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        os.chmod(folder, 0o755)  # PostgreSQL and others that do not run as root go through it
        path = os.environ.get("PATH", os.defpath) + peers.SYSTEM
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": path, "TMPDIR": folder},
            start_new_session=True,
        )
        with process:
            too_long = threading.Timer(LONGEST, os.killpg, (process.pid, signal.SIGKILL))
            too_long.start()
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    said.append(line)
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                too_long.cancel()
    found = [columns for line in said if (columns := frame.parse(line)) is not None]
    if process.returncode:
        reason = f"it ended with code {process.returncode} after {time.monotonic() - begin:.0f} s"
        found.append(["MISSING", FAILED, f"{reason}: {said[-1].strip() if said else 'it said nothing'}"])
    elif not any(columns[0] == "RESULT" for columns in found):
        found.append(["MISSING", "all of it", "it told no result"])
    output = "".join(line for line in said if frame.parse(line) is None)
    return [[kind, f"{benchmark.script}: {what}", *rest] for kind, what, *rest in found] + rows, output


def machine():
    """Date and machine, a line for each."""
    model = platform.processor() or platform.machine()
    memory = ""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    if Path("/proc/meminfo").exists():
        memory = f", {int(Path('/proc/meminfo').read_text().split()[1]) / 1024**2:.1f} GB of memory"
    return [
        f"Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"Processor: {len(os.sched_getaffinity(0))} cores of {model}{memory}",
        f"System: {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"Load when it began: {os.getloadavg()[0]:.2f}",
        f"Peers: {peers.SALMON}, {peers.SPAMBAYES}, {peers.HARAKA}, aiosmtpd {_version('aiosmtpd')},"
        f" Postfix {_postfix()}",
    ]


def _version(package):
    from importlib import metadata

    return metadata.version(package)


def _postfix():
    try:
        asked = subprocess.run([peers.program("postconf"), "-d", "mail_version"], capture_output=True, text=True)
    except peers.Missing:
        return "is not there"
    return asked.stdout.partition("=")[2].strip() or "of an unknown version"


def page(rows, outputs, about):
    """What is written: machine, table, what is missing, and everything the scripts said."""
    lines = ["# Measured", "", "Written by `scripts/bench`; see [README.md](README.md) for what each line means.", ""]
    lines += [f"- {line}" for line in about]
    lines += ["", "| what | Lamson | beside | ratio | wanted | |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(columns[1:])} |" for columns in rows if columns[0] == "RESULT"]
    left = [columns for columns in rows if columns[0] == "MISSING"]
    lines += ["", "## Not measured", ""]
    lines += [f"- {what}: {reason}" for _, what, reason in left] or ["Nothing was left out."]
    lines += ["", "## What the scripts said", ""]
    for name, said in outputs.items():
        if said.strip():
            lines += [f"### {name}", "", "```", said.strip("\n"), "```", ""]
    text = "\n".join(lines).rstrip() + "\n"
    # Where it was run is nobody's business.
    for path, name in ((HERE.parent, "."), (HERE.parent.parent, ".."), (peers.CACHE, "CACHE"), (Path.home(), "~")):
        if path != Path("/"):
            text = text.replace(f"{path}/", f"{name}/")
    return text


def table(rows):
    """The rows as lines of text, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="of a benchmark: " + ", ".join(b[0] for b in BENCHMARKS)
    )
    parser.add_argument("--quick", action="store_true", help="fewer messages, and nothing is written")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the table goes")
    options = parser.parse_args()
    unknown = set(options.names) - {each.script for each in BENCHMARKS}
    if unknown:
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    chosen = [each for each in BENCHMARKS if not options.names or each.script in options.names]
    about = machine()
    begin = time.monotonic()
    rows, outputs = [], {}
    for benchmark in chosen:
        print(f"\n--- {benchmark.script}", flush=True)
        found, outputs[benchmark.script] = run(benchmark, options.quick)
        rows += found
    about.append(f"Load when it ended: {os.getloadavg()[0]:.2f}, after {(time.monotonic() - begin) / 60:.0f} minutes")
    target = options.write or (None if options.quick or options.names else RESULTS)
    print("\n" + "\n".join(about) + "\n")
    print(
        table([["what", "Lamson", "beside", "ratio", "wanted", ""], *(row[1:] for row in rows if row[0] == "RESULT")])
    )
    for kind, what, reason, *_ in rows:
        if kind == "MISSING":
            print(f"not measured: {what}: {reason}")
    if target is not None:
        target.write_text(page(rows, outputs, about), encoding="utf-8")
        print(f"\nwritten: {target}")
    if any(columns[-1] == "not met" for columns in rows):
        print("\nNot everything that was wanted was met.")
    if any(kind == "MISSING" and what.endswith(FAILED) for kind, what, *_ in rows):
        sys.exit("\nNot every benchmark ran to its end.")


if __name__ == "__main__":
    main()
