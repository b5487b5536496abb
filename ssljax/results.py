"""results.jsonl: one line per run, and one line per number that was measured on it.

A RUN line holds the settings, data, commit and package versions. The MEASUREMENT lines after it name the run
by its id. A run that is evaluated again keeps its id as long as nothing in its line differs, so its
measurements add up. Of several measurements of the same thing, the last one counts.

    python -m ssljax.results FILE ...   # in place: neighbours that differ only in their metric share a line

Such a line has `metrics`, from name to value. It is read as so many measurements. A run without `versions`
has those of the run before it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from etils import epath

from ssljax.config import public

PACKAGES = (
    "ssljax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
    "numpy",
    "scikit-learn",
)

# Settings that are not named when two runs are told apart. The seed, the data and the preset have fields of
# their own; a folder is a location, not a setting; the rest is about logging and the choice of protocols.
UNSAID = (
    "seed",
    "name",
    "preset",
    "log_every",
    "eval_every_epochs",
    "checkpoint",
    "data.source",
    "data.data_dir",
    "data.num_examples",
    "data.num_classes",
    "data.num_ids",
    "distill.teacher",
    "evaluate.protocols",
    "evaluate.corruptions",  # where these lie; a measurement says whether they were made anew
    "evaluate.imagenet_a",
    "evaluate.perturbations",
    "evaluate.retrieval",
    "evaluate.retrieval_pca",
    "evaluate.transfer",
    "evaluate.transfer_root",
    "evaluate.voc07",
)


class Run(TypedDict):
    """The fields that all measurements of one evaluation share.

    Attributes:
        experiment: the paper's config file, e.g. "moco".
        preset: the name of its settings.
        stage: the name of the stage that was evaluated; "" for the last or only one of the preset.
        seed: the seed of the run.
        epochs: how long it was trained.
        step: the number of updates behind the checkpoint that was evaluated.
        data: the data source, without folders of this machine.
        train_images: the number of training images.
        parameters: of the backbone that was evaluated, heads excluded; 0: not recorded.
        data_checksum: checksum of both splits.
        config_hash: equal for equal settings, see `ssljax evaluate`.
        changed: what the command line changed in the preset, see `changed`.
        commit: the commit of the source code.
        versions: package -> version.
        command: the command as typed, without folders of this machine.
    """

    experiment: str
    preset: str
    stage: str
    seed: int
    epochs: int
    step: int
    data: str
    train_images: int
    parameters: int
    data_checksum: str
    config_hash: str
    changed: dict[str, Any]
    commit: str
    versions: dict[str, str]
    command: str


class Measurement(TypedDict):
    """One number.

    Attributes:
        features: "raw_pixels", "random_init", "supervised" or the method's name.
        protocol: how the features were evaluated.
        settings: the settings of the protocol.
        labels_per_class: the number of labels per class; 0 for all.
        draw: which random draw of these labels.
        metric: "top1", "top5", ...
        value: the result, in percent.
        n: the number of images evaluated.
        seconds: how long it took.
        time: when it was made; UTC, ISO 8601.
    """

    features: str
    protocol: str
    settings: dict[str, Any]
    labels_per_class: int
    draw: int
    metric: str
    value: float
    n: int
    seconds: float
    time: str


class Row(Run, Measurement):
    """A measurement joined with its run, whose id is `run`."""

    run: str


RUN = tuple(Run.__annotations__)
MEASUREMENT = tuple(Measurement.__annotations__)

# The fields that the lines of older files do not have, and what they are then.
LATER = {"parameters": 0, "stage": ""}

# The fields that the line of a measurement leaves out where they are this. It also leaves out a `time` on the
# day of its run's line, whose time then counts.
USUAL = {"labels_per_class": 0, "draw": 0}

DAY = len("2026-11-27")  # of a time

# Two rows that agree in these fields measure the same thing.
SAME = (
    "experiment",
    "preset",
    "stage",
    "data",
    "data_checksum",
    "epochs",
    "train_images",
    "config_hash",
    "protocol",
    "features",
    "metric",
    "labels_per_class",
    "draw",
    "seed",
)


def read(path: Path) -> list[Row]:
    """Reads all measurements of a results.jsonl, each joined with its run, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no measurement, or a line is neither a run nor a measurement of an earlier
            run; the message names the line.
    """
    if not path.exists():
        raise FileNotFoundError(f"no {path}: run `ssljax evaluate ... --results {path}` first")
    runs: dict[str, Run] = {}
    times: dict[str, str] = {}
    rows: list[Row] = []
    versions: dict[str, Any] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "metric" in record or "metrics" in record:
                rows += _joined(runs[record["run"]], times[record["run"]], record)
            else:
                fields = {**LATER, **versions, **record}
                versions = {"versions": fields["versions"]}
                times[record["run"]] = record["time"]
                runs[record["run"]] = cast(Run, {name: fields[name] for name in RUN})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is neither a run nor a measurement of an earlier run ({error!r}): "
                "delete it, or evaluate again into a new file"
            ) from error
    if not rows:
        raise ValueError(f"{path} is empty: run `ssljax evaluate` first")
    return rows


def _joined(run: Run, time_of_run: str, record: Mapping[str, Any]) -> list[Row]:
    fields = {**USUAL, "time": time_of_run, **record}
    values = record["metrics"] if "metrics" in record else {record["metric"]: record["value"]}
    found = []
    for metric, value in values.items():
        one = {**fields, "metric": metric, "value": value}
        found.append(cast(Row, {"run": record["run"], **run, **{name: one[name] for name in MEASUREMENT}}))
    return found


def same(row: Row) -> tuple:
    """A key that is equal for two rows that measure the same thing.

    The seed does not count for raw pixels, which do not depend on the network.
    """
    fields: Mapping[str, Any] = row
    if row["features"] == "raw_pixels":
        fields = {**row, "seed": 0}
    return tuple(fields[name] for name in SAME)


def latest(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Splits rows into those that count and those that a later measurement of the same thing replaced.

    The rows that count are in the order of their last measurement.
    """
    kept: dict[tuple, Row] = {}
    replaced = []
    for row in rows:
        key = same(row)
        if key in kept:
            replaced.append(kept.pop(key))
        kept[key] = row
    return list(kept.values()), replaced


def lines(result: Mapping[str, Any], metrics: Sequence[str]) -> list[Measurement]:
    """Makes one measurement for each metric in a protocol's result.

    Args:
        result: the fields of a Measurement except `metric` and `value`, and one field per metric, in percent.
        metrics: the names that may be metrics.

    Raises:
        ValueError: the result has a field that is neither.
    """
    rest = {name: value for name, value in result.items() if name not in metrics}
    strange = [name for name in rest if name not in MEASUREMENT]
    if strange:
        raise ValueError(
            f"a result of protocol {rest['protocol']!r} has {', '.join(strange)}, for which "
            "results.jsonl has no field: put it into the result's `settings`"
        )
    rest["seconds"] = round(rest["seconds"], 3)
    found = [name for name in metrics if name in result]
    return [cast(Measurement, {**rest, "metric": name, "value": round(result[name], 4)}) for name in found]


def identity(run: Run) -> str:
    """The id of a run: 10 hex digits, the same for equal runs."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:10]


def append(path: Path | epath.Path, run: Run, measurements: Sequence[Measurement]) -> None:
    """Appends measurements to a results.jsonl, preceded by the line of their run unless the file has it.

    Objects of a bucket cannot grow: there the whole file is written again.
    """
    name = identity(run)
    fields: Mapping[str, Any] = {**LATER, **run}
    record = {"run": name, **{field: fields[field] for field in RUN}, "time": now()}

    path.parent.mkdir(parents=True, exist_ok=True)
    lines_there = path.read_text().splitlines() if path.exists() else []
    start = f'{{"run":"{name}","experiment"'  # no measurement begins like this
    known = [line for line in lines_there if line.replace(" ", "").startswith(start)]
    day = json.loads(known[-1])["time"] if known else record["time"]
    new = [] if known else [json.dumps(record)]
    new += [json.dumps({"run": name, **_said(each, day)}) for each in measurements]
    if "://" in str(path):
        path.write_text("".join(f"{line}\n" for line in [*lines_there, *new]))
        return
    with path.open("a") as out:
        out.writelines(f"{line}\n" for line in new)


def fold(path: Path) -> None:
    """Rewrites a results.jsonl so that neighbours that differ only in metric and value share a line.

    The versions of a run go where they are those of the run before.

    Raises:
        ValueError: the file would not be read as before; it is left as it is.
    """
    before = read(path)
    folded: list[dict[str, Any]] = []
    versions: Any = None
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "metric" in record:
            record["metrics"] = {record.pop("metric"): record.pop("value")}
        elif "metrics" not in record:
            its = record.get("versions", versions)
            if its == versions:
                record.pop("versions", None)
            versions = its
        last = folded[-1] if folded else {}
        new = record.get("metrics", {})
        if new and _rest(record) == _rest(last) and not new.keys() & last["metrics"].keys():
            last["metrics"] |= new
        else:
            folded.append(record)

    beside = path.with_suffix(".folded")
    beside.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in folded))
    if read(beside) != before:
        raise ValueError(f"{path} would not be read as before: compare it with {beside}")
    beside.replace(path)


def _rest(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "metrics"}


def _said(measurement: Measurement, time_of_run: str) -> dict[str, Any]:
    """The fields of a measurement that its line names."""
    said = {name: value for name, value in measurement.items() if USUAL.get(name) != value}
    if measurement["time"][:DAY] == time_of_run[:DAY]:
        del said["time"]
    return said


def label(preset: str, stage: str) -> str:
    """The name of a preset's stage in file names: without the stage if it is the last or only one.

    Args:
        preset: the name of the preset.
        stage: as in `Run`.
    """
    return f"{preset}-{stage}" if stage else preset


def changed(overrides: Mapping[str, Any], stages: Sequence[str] = ()) -> dict[str, Any]:
    """What the command line changed in the preset, as far as it tells two runs apart.

    Args:
        overrides: dotted key -> value, e.g. {"loss.temperature": 0.5}.
        stages: the names of the config's stages. The last one is evaluated, and its name is dropped from its
            keys.

    Returns:
        The overrides without those in UNSAID, sorted. Values are as JSON returns them, without folders of
        this machine.
    """
    found = {}
    for key, value in overrides.items():
        stage, _, rest = key.partition(".")
        plain = rest if stage in stages else key
        if not any(plain == name or plain.startswith(name + ".") for name in UNSAID):
            found[plain if stages and stage == stages[-1] else key] = json.loads(public(json.dumps(value)))
    return dict(sorted(found.items()))


def versions() -> dict[str, str]:
    """The installed version of every package that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(where: Path = Path(__file__).parent) -> str:
    """The commit of the source code.

    Args:
        where: a folder of the checkout.

    Returns:
        12 hex digits, with "-dirty" appended if tracked files of ssljax/ or configs/ were changed; "unknown"
        outside a git checkout.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(where), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # ":/" is the root of the checkout; other paths would be relative to `where`.
        edited = git("status", "--porcelain", "--untracked-files=no", "--", ":/ssljax", ":/configs")
        return git("rev-parse", "HEAD")[:12] + ("-dirty" if edited else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def now() -> str:
    """The current time in the format of the results: UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        fold(Path(name))
