"""How well and how fast the spam filter tells spam from ham, beside SpamBayes if there is one.

    python benchmarks/spam.py MAIL [--spambayes PYTHON2 [--path DIR]] [--folds 5] [--few 50] [--rounds 3]

MAIL is a folder, or a tar archive, with folders of mail, a message in each file: those in a folder with "spam" in its
name are spam, all others ham. SpamBayes runs on Python 2.7 only, in a process of its own:

    python2.7 -m pip install --target /tmp/spambayes spambayes
    python benchmarks/spam.py corpora/spam.tar.xz --spambayes python2.7 --path /tmp/spambayes

First half of the mail is learned and the other half asked about: of each folder, sorted by name, the even files and
the odd ones. Then everything is learned but one fold of `--folds`, which is asked about, for each fold; what a message
falls in is drawn by lot, the same for both filters. The cutoffs are 0.20 and 0.90.

Then what a filter meets in life. "few" learns `--few` of each kind and is asked about the rest, five times by lot.
"apart" is asked about a folder of ham and half of the spam, having learned the other folders of ham and the other half.

fp, caught, missed, unsure   ham called spam; spam called spam, ham, and neither
ham?                         ham called neither
learn, ask, both             messages a second of processor time, the best of `--rounds`; of Lamson's with the database
                             on disk and every message a transaction, of SpamBayes' with everything in memory
MB                           the most memory that was in use, the messages themselves included
"""

import argparse
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import PurePath

from frame import missing, ratio

COLUMNS = ("fp", "caught", "missed", "unsure", "ham?", "learn", "ask", "both", "MB")
# Unit, and what is wanted of the ratio to SpamBayes' figure.
TOLD = [("", wanted) for wanted in ("<= 1", ">= 1", "<= 1", "<= 1", "")] + [("/s", ">= 1")] * 3 + [("MB", "")]


def read_mail(path):
    """``[(folder, name, is spam, bytes), ...]``, sorted."""
    found = []
    if os.path.isdir(path):
        for folder, _, names in os.walk(path):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    found.append((os.path.basename(folder), name, file.read()))
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    where = PurePath(member.name)
                    found.append((where.parent.name, where.name, archive.extractfile(member).read()))
    return [(folder, name, "spam" in folder, data) for folder, name, data in sorted(found)]


def halves(mail):
    """Which fold each message is in when the even files of each folder are learned: fold 0."""
    seen = {}
    folds = []
    for folder, _, _, _ in mail:
        folds.append(seen.get(folder, 0) % 2)
        seen[folder] = seen.get(folder, 0) + 1
    return folds


def lots(mail, count):
    """Which of `count` folds each message is in, drawn by lot within its folder."""
    lottery = random.Random(20020826)
    folds = [0] * len(mail)
    for wanted in sorted({folder for folder, *_ in mail}):
        members = [number for number, (folder, *_) in enumerate(mail) if folder == wanted]
        lottery.shuffle(members)
        for place, number in enumerate(members):
            folds[number] = place % count
    return folds


def few(mail, count, seed):
    """Learn `count` hams and as many spams, fold 0; ask about the rest, fold 1."""
    lottery = random.Random(seed)
    folds = [1] * len(mail)
    for kind in (True, False):
        for number in lottery.sample([number for number, each in enumerate(mail) if each[2] is kind], count):
            folds[number] = 0
    return folds


def apart(mail, folder):
    """Ask about the ham in `folder`, and half of the spam: fold 1."""
    return [fold if each[2] else int(each[0] == folder) for each, fold in zip(mail, halves(mail), strict=True)]


# --- Lamson ------------------------------------------------------------------------------------------------------


def measure_lamson(mail, folds, asked):
    """Learn what is in no fold of `asked`, ask about the rest."""
    from lamson.spam import Filter

    with tempfile.TemporaryDirectory() as folder, Filter(os.path.join(folder, "spamdb")) as known:
        begin = time.process_time()
        for (_, _, spam, data), fold in zip(mail, folds, strict=True):
            if fold != asked:
                (known.train_spam if spam else known.train_ham)(data)
        middle = time.process_time()
        scores = [known.score(data) for (*_, data), fold in zip(mail, folds, strict=True) if fold == asked]
        end = time.process_time()
    return scores, middle - begin, end - middle


def run_lamson(path, jobs):
    with open(path, "rb") as file:
        mail = pickle.load(file)
    results = [measure_lamson(mail, folds, asked) for folds, asked in jobs]
    return {"results": results, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# --- SpamBayes ---------------------------------------------------------------------------------------------------

# What Python 2.7 is given to run.
SPAMBAYES = r"""
import json, pickle, resource, sys, time
from spambayes import classifier, hammie, tokenizer
mail = pickle.load(open(sys.argv[1], "rb"))
mail = [(spam, data if isinstance(data, str) else data.encode("latin-1")) for _, _, spam, data in mail]
results = []
for folds, asked in json.load(sys.stdin):
    bayes = classifier.Bayes()
    known = hammie.Hammie(bayes, "r")
    begin = time.clock()
    for (spam, data), fold in zip(mail, folds):
        if fold != asked:
            bayes.learn(tokenizer.tokenize(data), spam)
    middle = time.clock()
    scores = [known.score(data) for (spam, data), fold in zip(mail, folds) if fold == asked]
    end = time.clock()
    results.append((scores, middle - begin, end - middle))
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
json.dump({"results": results, "memory": memory}, sys.stdout)
"""


def run_spambayes(python, where, path, jobs):
    environment = {**os.environ, "PYTHONPATH": where} if where else None
    command = [python, "-c", SPAMBAYES, path]
    done = subprocess.run(command, input=json.dumps(jobs).encode(), stdout=subprocess.PIPE, env=environment, check=True)
    return json.loads(done.stdout)


# --- the table ---------------------------------------------------------------------------------------------------


def count(mail, folds, asked, scores):
    """fp, caught, missed, unsure, ham?"""
    truth = [spam for (_, _, spam, _), fold in zip(mail, folds, strict=True) if fold == asked]
    pairs = list(zip(truth, scores, strict=True))
    return [
        sum(not spam and score >= 0.9 for spam, score in pairs),
        sum(spam and score >= 0.9 for spam, score in pairs),
        sum(spam and score < 0.2 for spam, score in pairs),
        sum(spam and 0.2 <= score < 0.9 for spam, score in pairs),
        sum(not spam and 0.2 <= score < 0.9 for spam, score in pairs),
    ]


def row(mail, jobs, rounds):
    """The columns of one filter: what it said in the first round, its best speed of all."""
    counts = [
        count(mail, folds, asked, result[0]) for (folds, asked), result in zip(jobs, rounds[0]["results"], strict=True)
    ]
    asked = sum(len(result[0]) for result in rounds[0]["results"])
    learned = len(mail) * len(jobs) - asked
    learning = min(sum(result[1] for result in each["results"]) for each in rounds)
    asking = min(sum(result[2] for result in each["results"]) for each in rounds)
    speeds = [learned / learning, asked / asking, (learned + asked) / (learning + asking)]
    return [*map(sum, zip(*counts, strict=True)), *map(round, speeds), round(max(each["memory"] for each in rounds))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mail", metavar="MAIL")
    parser.add_argument("--spambayes", metavar="PYTHON2", help="an interpreter that runs SpamBayes")
    parser.add_argument("--path", metavar="DIR", help="where it finds SpamBayes")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation (5; 0 leaves it out)")
    parser.add_argument(
        "--few", type=int, default=50, help="of each kind, to be learned for that (50; 0 leaves it out)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each speed the best of so many (3)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        json.dump(run_lamson(options.mail, json.load(sys.stdin)), sys.stdout)
        return
    mail = read_mail(options.mail)
    spam = sum(is_spam for _, _, is_spam, _ in mail)
    print(f"{len(mail) - spam} ham, {spam} spam")
    tasks = {"half and half": [(halves(mail), 1)]}
    if options.folds:
        tasks[f"{options.folds} folds"] = [(lots(mail, options.folds), fold) for fold in range(options.folds)]
    if options.few:
        tasks[f"few: {options.few}"] = [(few(mail, options.few, seed), 1) for seed in range(5)]
    folders = sorted({folder for folder, _, is_spam, _ in mail if not is_spam})
    if len(folders) > 1:
        tasks.update({f"apart: {folder}": [(apart(mail, folder), 1)] for folder in folders})
    with tempfile.NamedTemporaryFile() as file:
        # Protocol 2 is the last one that Python 2 can read; it takes bytes for text in Latin-1.
        pickle.dump(mail, file, protocol=2)
        file.flush()
        print(f"{'':18}{'':12}" + "".join(f"{column:>8}" for column in COLUMNS))
        table = {}
        for name, jobs in tasks.items():
            rounds = {"Lamson": [], "SpamBayes": []}
            for _ in range(options.rounds):
                command = [sys.executable, __file__, file.name, "--worker"]
                done = subprocess.run(command, input=json.dumps(jobs).encode(), stdout=subprocess.PIPE, check=True)
                rounds["Lamson"].append(json.loads(done.stdout))
                if options.spambayes:
                    rounds["SpamBayes"].append(run_spambayes(options.spambayes, options.path, file.name, jobs))
            for engine, done in rounds.items():
                if done:
                    table[name, engine] = row(mail, jobs, done)
                    shown = "".join(f"{value:>8,}" for value in table[name, engine])
                    print(f"{name:18}{engine:12}{shown}", flush=True)
    for name in tasks:
        if not options.spambayes:
            missing(f"{name}: beside SpamBayes", "no Python 2.7 with SpamBayes was named")
            continue
        for number, (column, (unit, wanted)) in enumerate(zip(COLUMNS, TOLD, strict=True)):
            ours, theirs = (table[name, engine][number] for engine in ("Lamson", "SpamBayes"))
            if theirs:
                # What nothing like it was learned of is a question of taste: one filter guesses, another is unsure.
                wanted = "" if name.startswith("apart") else wanted
                ratio(f"{name}: {column}", ours, "SpamBayes", theirs, wanted, unit)
            else:
                missing(f"{name}: {column} beside SpamBayes", f"it has none to compare with; ours is {ours}")


if __name__ == "__main__":
    main()
