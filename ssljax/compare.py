"""Runs side by side: the settings that differ, the learning curves, and what the protocols measured.

    ssljax compare runs/a runs/b ... [--results FILE] [--stage NAME] [--out comparison]

Each folder is one of `ssljax train`, or of `ssljax sweep`, and then means all runs in it. Measurements are
read from the results.jsonl in these folders, and from FILE if the runs were evaluated into another one. Runs
that differ in the seed only count as one, with mean and standard deviation over the seeds. Of a run with
stages the last one is compared, or `--stage NAME`.

Writes comparison.md, comparison.csv (one line per number) and comparison.png into the folder of `--out`, and
prints the tables. Nothing is trained or evaluated.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from etils import epath

from ssljax import cli, origin, results
from ssljax.config import FACTS, flat, stages
from ssljax.config.stored import of_run
from ssljax.pictures import compared, figures, tables
from ssljax.pictures.page import Block, markdown
from ssljax.run import files

# Settings that change no number, so that runs which differ in them may still count as one.
FREE = ("seed", "log_every", "eval_every_epochs", "checkpoint", "sharding", "data.data_dir")


class Run(NamedTuple):
    """A run of `ssljax train`.

    Attributes:
        folder: its folder, as typed.
        name: of its config and preset, e.g. "simclr:digits".
        method: what its features are called in the results.
        seed: of the stage that is compared.
        epochs: of that stage.
        settings: dotted key -> value, of all stages.
        metrics: the lines of its metrics.jsonl.
        rows: its measurements.
    """

    folder: str
    name: str
    method: str
    seed: int
    epochs: int
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    rows: list[results.Row]


def opened(folder: str, stage: str, shared: Sequence[results.Row]) -> Run:
    """Reads a run.

    Args:
        folder: of the run, local or on a bucket.
        stage: of a run with stages; "" for the last.
        shared: measurements of any runs, of which those of this run are taken.

    Raises:
        ValueError: there is no such stage, or a file of the run is damaged.
    """
    path = epath.Path(folder)
    whole = of_run(files.read_config(path / "config.json"))
    parts = stages(whole)
    if stage and stage not in parts:
        raise ValueError(f"--stage={stage}: {folder} has {', '.join(filter(None, parts)) or 'no stages'}")
    wanted = stage or list(parts)[-1]
    config = parts[wanted]
    own = path / wanted if wanted else path

    log = own / "metrics.jsonl"
    judged = own / "results.jsonl"
    rows = results.read(judged) if judged.exists() else []
    earlier = wanted if wanted and wanted != list(parts)[-1] else ""
    rows = [*rows, *(row for row in shared if _is_of(row, whole, wanted, earlier) and row not in rows)]
    leaves = flat(whole)
    unsaid = [f"{part}.{key}".lstrip(".") for part in parts for key in (*FACTS, "name", "preset")]
    return Run(
        folder=folder,
        name=f"{config.name}:{config.preset}",
        method=config.method,
        seed=config.seed,
        epochs=config.epochs,
        settings={key: leaves[key] for key in leaves if key not in unsaid},
        metrics=files.read_lines(log) if log.exists() else [],
        rows=rows,
    )


def expanded(folder: str) -> list[str]:
    """The runs that a folder names: itself, or all runs in it, as of a sweep.

    Raises:
        FileNotFoundError: there is no run.
    """
    path = epath.Path(folder)
    if (path / "config.json").exists():
        return [folder]
    inside = [child for child in path.iterdir() if (child / "config.json").exists()] if path.is_dir() else []
    if not inside:
        raise FileNotFoundError(
            f"{folder} holds no run (no config.json): name the --workdir of `ssljax train`, e.g. runs/digits"
        )
    return sorted(str(child) for child in inside)


def _is_of(row: results.Row, whole: Any, stage: str, earlier: str) -> bool:
    """Whether a measurement is of this run: its preset, stage and seed, and the same settings.

    The data and the settings of the evaluation may be others than in training, and change the hash; then what
    was changed in the preset tells.
    """
    config = stages(whole)[stage]
    asked = (config.name, config.preset, earlier, config.seed, config.epochs)
    if (row["experiment"], row["preset"], row["stage"], row["seed"], row["epochs"]) != asked:
        return False
    names = [name for name in stages(whole) if name]
    overrides = cli.against_preset(whole)
    if row["config_hash"] == origin.config_hash(config, overrides, names, earlier):
        return True

    def trained(changed: Mapping[str, Any]) -> dict[str, Any]:
        return {key: changed[key] for key in changed if key.split(".")[0] not in ("data", "evaluate")}

    # With folders, as older rows name them: the preset of a run does not say which of its runs it was.
    own = results.changed(overrides, names)
    return bool(row["changed"]) and trained(row["changed"]) == trained(own)


class Group(NamedTuple):
    """Runs that differ in the seed only.

    Attributes:
        name: what tells it from the others.
        runs: sorted by seed.
    """

    name: str
    runs: list[Run]

    @property
    def seeds(self) -> str:
        """The seeds of its runs."""
        return ", ".join(str(run.seed) for run in self.runs)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs, those that differ in the seed only together, in the order in which they were named.

    Runs that do not even differ in the seed stay apart.
    """
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        fixed = {key: value for key, value in run.settings.items() if not _free(key)}
        found[json.dumps([run.name, fixed], sort_keys=True)].append(run)
    parts: list[list[Run]] = []
    for alike in found.values():
        unique = len({run.seed for run in alike}) == len(alike)
        parts += [sorted(alike, key=lambda run: run.seed)] if unique else [[run] for run in alike]
    return [Group(name, part) for name, part in zip(_names(parts), parts, strict=True)]


def _free(key: str) -> bool:
    """Whether a setting, of any stage, changes no number."""
    return any(f".{name}." in f".{key}." for name in FREE)


def _names(parts: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each group: its preset if these differ, and the settings in which those of a preset differ.

    Where these are many, or none, it has the name of its folder.
    """
    several = len({part[0].name for part in parts}) > 1
    folders = _short([part[0].folder for part in parts])
    names = []
    for (first, *_), folder in zip(parts, folders, strict=True):
        alike = [other[0] for other in parts if other[0].name == first.name]
        differ = [key for key in differences(alike) if not _free(key)]
        last = [key.rpartition(".")[2] for key in differ]
        said = [
            f"{word if last.count(word) == 1 else key}={shown(first.settings.get(key, '–'))}"
            for key, word in zip(differ, last, strict=True)
        ]
        words = [first.name] if several or len(alike) == 1 else []
        if len(alike) > 1 and not 0 < len(said) <= 3:
            said = [folder]
        names.append(", ".join([*words, *said]))
    return [
        name if names.count(name) == 1 else f"{name} ({folder})"
        for name, folder in zip(names, folders, strict=True)
    ]


def _short(folders: Sequence[str]) -> list[str]:
    """The last parts of some paths, as many as tell them apart."""
    parts = [folder.rstrip("/").split("/") for folder in folders]
    for n in range(1, max(map(len, parts))):
        last = ["/".join(words[-n:]) for words in parts]
        if len(set(last)) == len(last):
            return last
    return list(folders)


def differences(runs: Sequence[Run]) -> list[str]:
    """The settings that differ, in the order of the first run; the seeds, which differ by design, last."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    differ = [key for key in keys if len({json.dumps(run.settings.get(key)) for run in runs}) > 1]
    return sorted(differ, key=lambda key: key.rpartition(".")[2] == "seed")


def shown(value: Any) -> str:
    """A setting's value as a cell shows it."""
    return str(tuple(value)) if isinstance(value, list) else str(value)


def settings_tables(groups: Sequence[Group]) -> list[list[list[str]]]:
    """The settings in which the runs differ, one column per group: those that all read, then the others."""
    runs = [run for group in groups for run in group.runs]
    differ = differences(runs)
    for_all = [key for key in differ if all(key in run.settings for run in runs)]
    found = []
    for keys in (for_all, [key for key in differ if key not in for_all]):
        body = []
        for key in keys:
            cells = []
            for group in groups:
                values = dict.fromkeys(shown(run.settings.get(key, "–")) for run in group.runs)
                cells.append(", ".join(values))
            body.append([key, *cells])
        found.append([["", *(group.name for group in groups)], *body] if body else [])
    return found


def last_values(run: Run) -> dict[str, float]:
    """The last value of each curve that a run has logged."""
    found = {}
    for row in run.metrics:
        found.update({name: row[name] for name in figures.CURVES if row.get(name) is not None})
    return found


def results_table(groups: Sequence[Group]) -> list[list[str]]:
    """One line per group, and per baseline that was measured with it; one column per number."""
    judged = [row for group in groups for run in group.runs for row in run.rows]
    columns = tables.columns(judged)
    logged = [
        name for name in figures.CURVES if any(name in last_values(run) for g in groups for run in g.runs)
    ]
    head = ["", "seeds", "epochs", *(text for text, _ in columns), *(f"last {LAST[name]}" for name in logged)]
    body = []
    baselines: dict[tuple[str, ...], str] = {}
    for group in groups:
        curves = [
            spread([last_values(run)[name] for run in group.runs if name in last_values(run)])
            for name in logged
        ]
        measured = tables.groups([row for run in group.runs for row in run.rows])
        method = group.runs[0].method
        own_parts: Sequence[tables.Group | None] = [*measured] or [None]
        for part in own_parts:
            rows = part.rows if part else []
            name = group.name if part is None or len(measured) == 1 else f"{group.name}: {part.title}"
            cells = [tables.cell(tables.pick(rows, features=method, **want)) for _, want in columns]
            body.append([name, group.seeds, trained(group), *cells, *curves])
            for kind in tables.kinds(rows):
                own = [tables.cell(tables.pick(rows, features=kind, **want)) for _, want in columns]
                if kind != method:
                    baselines.setdefault((tables.name(kind), *own), name)
    kinds = [cells[0] for cells in baselines]
    for (kind, *cells), of in baselines.items():
        said = kind if kinds.count(kind) == 1 else f"{kind} ({of})"
        body.append([said, "", "", *cells, *["" for _ in logged]])
    return [head, *body]


LAST = {"loss": "loss", "knn": "kNN in training", "nmi_labels": "NMI", "nmi_previous": "NMI with previous"}


def spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation of several values; a dash for none."""
    if not values:
        return "–"
    mean = f"{fmean(values):.4g}"
    return f"{mean} ± {stdev(values):.2g}" if len(values) > 1 else mean


def trained(group: Group) -> str:
    """How many epochs the runs have logged, of how many."""
    # Older versions counted whole batches, and ended at 42.6 of 40.
    done = dict.fromkeys(
        f"{min(compared.epochs(run.metrics), run.epochs):.3g} of {run.epochs}" for run in group.runs
    )
    return ", ".join(done)


def notes(groups: Sequence[Group]) -> list[str]:
    """What a reader of the tables has to know."""
    runs = [run for group in groups for run in group.runs]
    said = []
    if any(len(group.runs) > 1 for group in groups):
        said.append("Mean ± standard deviation over the seeds.")
    if any(row["protocol"] == "label_fraction" for run in runs for row in run.rows):
        said.append("With few labels the deviation is over their draws too.")
    unjudged = [run.folder for run in runs if not run.rows]
    if unjudged:
        said.append(
            f"Not evaluated: {', '.join(unjudged)}. `ssljax evaluate --workdir {unjudged[0]}` does it; "
            "`--results FILE` reads the measurements of another file."
        )
    if len({row["data_checksum"] for run in runs for row in run.rows}) > 1:
        said.append("**The measurements are not all on the same images.**")
    if len({run.method for run in runs}) > 1:
        said.append("Losses of different methods are different quantities.")
    return said


def csv_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row per number: the run, its settings that differ, and the number."""
    runs = [run for group in groups for run in group.runs]
    differ = [key for key in differences(runs) if key != "seed"]
    fields = ("features", "protocol", "metric", "labels_per_class", "draw", "value", "n")
    found = []
    for group in groups:
        for run in group.runs:
            own = {key: shown(run.settings.get(key, "")) for key in differ}
            first = {"run": run.folder, "name": group.name, "seed": run.seed, **own}
            for metric, value in last_values(run).items():
                training = {"protocol": "training", "metric": metric, "value": value}
                found.append({**first, "features": run.method, **training})
            kept, _ = results.latest(run.rows)
            for row in kept:
                values: Mapping[str, Any] = row
                found.append({**first, **{field: values[field] for field in fields}})
    return found


def compare(folders: Sequence[str], out: Path, *, file: str = "", stage: str = "") -> str:
    """Compares runs, and writes comparison.md, comparison.csv and comparison.png.

    Args:
        folders: of runs, or of several runs each.
        out: the folder to write to.
        file: a results.jsonl with measurements of some of them; "" for none.
        stage: of runs with stages; "" for the last.

    Returns:
        the tables as Markdown.

    Raises:
        FileNotFoundError: a folder holds no run, or there is no such file.
        ValueError: a file is damaged, or a run has no such stage.
    """
    beside = [epath.Path(folder) / "results.jsonl" for folder in folders if expanded(folder) != [folder]]
    judged = [epath.Path(file)] if file else []
    judged += [one for one in beside if one.exists()]
    shared = [row for one in judged for row in results.read(one)]
    named = dict.fromkeys(run for folder in folders for run in expanded(folder))
    runs = [opened(folder, stage, shared) for folder in named]
    groups = grouped(runs)
    for_all, for_some = settings_tables(groups)
    blocks = [Block("table", results_table(groups)), *(Block("p", text) for text in notes(groups))]
    if for_all:
        blocks += [Block("h2", "Settings that differ"), Block("table", for_all)]
    told = [*blocks]
    if for_some:
        told += [Block("h2", "Settings that only some of the runs read"), Block("table", for_some)]
        several = len(for_some) - 1
        blocks.append(Block("p", f"{several} settings that only some of the runs read: see comparison.md."))

    out.mkdir(parents=True, exist_ok=True)
    compared.draw(out / "comparison.png", [_picture(group) for group in groups])
    picture = Block("img", ("comparison.png", "Curves and measurements"))
    text = markdown([Block("h1", "Comparison"), told[0], picture, *told[1:]])
    (out / "comparison.md").write_text(aligned(text))
    rows = csv_rows(groups)
    with (out / "comparison.csv").open("w", newline="") as lines:
        names = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(lines, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return aligned(markdown(blocks))


def _picture(group: Group) -> compared.Curves:
    """What the figure shows of a group."""
    rows = [row for run in group.runs for row in run.rows if row["features"] == group.runs[0].method]
    kept, _ = results.latest(rows)
    top1 = tables.pick(kept, metric="top1")
    points = {text: tables.aggregate(tables.pick(top1, **want))[:2] for text, want in tables.columns(top1)}
    return compared.Curves(group.name, group.runs[0].method, [run.metrics for run in group.runs], points)


def aligned(text: str) -> str:
    """Markdown whose tables have columns of one width each, as a terminal shows them well."""
    lines = text.split("\n")
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and lines[end].startswith("| "):
            end += 1
        if end > start:
            cells = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[start:end]]
            lines[start:end] = _padded(cells)
        start = end + 1
    return "\n".join(lines)


def _padded(cells: list[list[str]]) -> list[str]:
    """The lines of one table; the second is that of the dashes."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    out = []
    for i, (first, *others) in enumerate(cells):
        if i == 1:
            ruled = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
            out.append("| " + " | ".join(ruled) + " |")
            continue
        right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        out.append("| " + " | ".join([first.ljust(widths[0]), *right]) + " |")
    return out


def main(argv: list[str] | None = None) -> None:
    """`ssljax compare`."""
    parser = argparse.ArgumentParser(prog="ssljax compare", description="Runs side by side.")
    parser.add_argument("runs", nargs="+", help="folders of `ssljax train`")
    parser.add_argument("--results", default="", help="a results.jsonl that has measurements of the runs")
    parser.add_argument("--stage", default="", help="of runs with stages; the last by default")
    parser.add_argument("--out", default="comparison", help="the folder to write to")
    flags = parser.parse_args(argv)
    with cli.answered("compare"):
        out = Path(flags.out)
        print(compare(flags.runs, out, file=flags.results, stage=flags.stage))
        print("\n".join(str(out / f"comparison.{kind}") for kind in ("md", "csv", "png")))


if __name__ == "__main__":
    cli.run(main)
