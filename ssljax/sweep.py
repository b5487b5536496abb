"""`ssljax sweep`: all combinations of some settings, one run after the other, and the comparison at the end.

    ssljax sweep --config simclr:digits --config.seed=0,1,2 --config.optim.learning_rate=0.1,0.3 \\
        --workdir runs/rates [--evaluate] [--protocols knn,linear] [--baselines raw_pixels] [--log wandb]

A setting with several values between commas is varied, `--config simclr:digits,moco:digits` too; all others
are the same in every run. A comma within brackets or quotes separates nothing. So of settings that are lists,
`--config.evaluate.label_counts='(1,2),(5,10)'` has two values, and
`--config.evaluate.protocols='(knn,linear)'` has one.

Every run is `ssljax train` in a process and a folder of its own, e.g. runs/rates/seed=0,learning_rate=0.1;
what it prints is in its train.log. After an interruption the same command goes on. A run that fails is named,
and the others go on; then the exit code is 1.

`--evaluate` judges each run by its preset's protocols, `--protocols` and `--baselines` by those named here.
All measurements are in runs/rates/results.jsonl, so that `ssljax report runs/rates` shows them, and the
tables of `ssljax compare` come last. `--slurm` runs nothing, and prints a script for `sbatch` with one task
per run.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ssljax import cli
from ssljax.series import Asked, Interrupted, Steps, sweep

SETTING = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)
LONGEST = 40  # characters of a value in the name of a folder
PAIRS = {"(": ")", "[": "]", "{": "}"}


def values(text: str) -> list[str]:
    """The parts of a text between commas, but for commas within brackets or quotes.

    Raises:
        ValueError: a bracket or a quote is not closed.
    """
    parts, closing, quote = [""], "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in PAIRS:
            closing = PAIRS[letter] + closing
        elif closing and letter == closing[0]:
            closing = closing[1:]
        elif letter == "," and not closing:
            parts.append("")
            continue
        parts[-1] += letter
    if closing or quote:
        raise ValueError(f"{text}: the {quote or closing[0]} that ends it is missing")
    return [part.strip() for part in parts]


def plain(value: str) -> str:
    """A value as `ssljax train` reads it: without the quotes or the brackets that only kept it together."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    if value[:1] in ("(", "[") and value[1:-1].strip():
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value[1:-1]  # of words without quotes
    return value


def combinations(config: str, words: Sequence[str]) -> list[Asked]:
    """All combinations of the values that settings have; the last setting varies fastest.

    Args:
        config: what `--config` names, several between commas.
        words: the overrides of the command line.

    Raises:
        ValueError: a word is no override, or no setting has several values.
    """
    choices: dict[str, list[str]] = {"config": values(config)}
    switches = []
    left = list(words)
    while left:
        word = left.pop(0)
        found = SETTING.fullmatch(word)
        if found is None and not re.fullmatch(r"--?noconfig\.[\w.]+", word):
            raise ValueError(f"{word} is no flag; overrides look like --config.seed=0,1,2")
        if found is None or (found[2] is None and (not left or left[0].startswith("--"))):
            switches.append(word)  # of a setting that is True or False
            continue
        choices[found[1]] = values(left.pop(0) if found[2] is None else found[2])
    varied = [key for key, several in choices.items() if len(several) > 1]
    if not varied:
        raise ValueError("no setting has several values: write e.g. --config.seed=0,1,2")
    last = [key.rpartition(".")[2] for key in varied]
    short = {key: word if last.count(word) == 1 else key for key, word in zip(varied, last, strict=True)}

    found_runs = []
    for picked in itertools.product(*choices.values()):
        chosen = dict(zip(choices, picked, strict=True))
        name = ",".join(f"{short[key]}={_as_name(chosen[key])}" for key in varied)
        settings = [f"--config.{key}={plain(value)}" for key, value in chosen.items() if key != "config"]
        found_runs.append(Asked(name, ["--config", chosen["config"], *settings, *switches]))
    names = [run.name for run in found_runs]
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise ValueError(f"{twice} is asked for twice: name each value once")
    return found_runs


def _as_name(value: str) -> str:
    """A value in the name of a folder; one that had to be changed or cut has the first digits of its hash."""
    value = plain(value)
    name = re.sub(r"[^\w.+()-]+", "_", value)[:LONGEST]
    return name if name == value else f"{name}-{hashlib.sha256(value.encode()).hexdigest()[:4]}"


def slurm(steps: Steps, runs: Sequence[Asked]) -> str:
    """A script for sbatch with one task per run. Each has a results.jsonl of its own, in its folder."""
    name = Path(steps.workdir).name
    out = [
        "#!/bin/bash",
        f"#SBATCH --job-name={name}",
        f"#SBATCH --array=0-{len(runs) - 1}",
        "#SBATCH --output=%x-%a.log",
        "#SBATCH --open-mode=append",
        "# Add what your cluster asks for: --partition, --gres, --time. A task started again goes on.",
        'case "$SLURM_ARRAY_TASK_ID" in',
    ]
    for i, run in enumerate(runs):
        commands = [steps.train(run), *([steps.judge(run)] if steps.evaluate else [])]
        out.append(f"{i}) " + " && ".join(shlex.join(["ssljax", *command]) for command in commands) + " ;;")
    folders = shlex.join(steps.folder(run) for run in runs)
    out += ["esac", f"# When all are done: ssljax compare {folders} --out {shlex.quote(steps.workdir)}"]
    return "\n".join(out)


def main(argv: list[str] | None = None) -> None:
    """`ssljax sweep`."""
    parser = argparse.ArgumentParser(prog="ssljax sweep", allow_abbrev=False)
    parser.add_argument("--config", required=True, help="FILE:preset, or several between commas")
    parser.add_argument("--workdir", required=True, help="the folder of all runs, e.g. runs/rates")
    parser.add_argument("--evaluate", action="store_true", help="by the preset's protocols")
    parser.add_argument("--protocols", default="", help="evaluate by these")
    parser.add_argument("--baselines", default="", help="evaluate these as well")
    parser.add_argument("--log", default="", help="of `ssljax train`")
    parser.add_argument("--slurm", action="store_true", help="print a script for sbatch, and run nothing")
    flags, words = parser.parse_known_args(argv)
    judged = [
        f"--{name}={getattr(flags, name)}" for name in ("protocols", "baselines") if getattr(flags, name)
    ]
    logged = [f"--log={flags.log}"] if flags.log else []
    steps = Steps(flags.workdir, flags.evaluate or bool(judged), judged, logged)
    with cli.answered("sweep"):
        runs = combinations(flags.config, words)
    for run in runs:
        cli.load("sweep", run.words)  # a wrong setting is answered before the first run
    if flags.slurm:
        print(slurm(steps, runs))
        return

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        failed = sweep(steps, runs)
    except (KeyboardInterrupt, Interrupted):
        print("\nssljax sweep: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    done = [steps.folder(run) for run in runs if run.name not in failed]
    results = os.path.join(flags.workdir, "results.jsonl")
    known = [f"--results={results}"] if os.path.exists(results) else []
    if done:
        print(flush=True)
        compared = ["compare", *done, *known, f"--out={flags.workdir}"]
        subprocess.run([sys.executable, "-m", "ssljax", *compared], check=False)
    if failed:
        raise SystemExit(f"ssljax sweep: {len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")


if __name__ == "__main__":
    cli.run(main)
