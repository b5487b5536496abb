"""Sorts measurements into groups and tables, with means and standard deviations."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from ssljax import results
from ssljax.pictures.figures import name
from ssljax.results import Row

# How a learning rate depends on the batch size, by `optim.scaling`.
RATES = {"none": "", "linear": " B/256", "sqrt": " sqrt(B)"}
ORDER = ("raw_pixels", "random_init", "supervised")  # the methods themselves come last
TITLES = {
    "classifier": "own head",
    "classifier_class_token": "class token's head",
    "classifier_distillation_token": "distillation token's head",
    "probe": "linear probe, random crops",
    "knn": "kNN",
    "linear_lbfgs": "linear",
    "linear_sgd_cached": "linear (SGD, cached)",
    "best_layer": "linear, best layer",
    "imagenet_a": "ImageNet-A",
}
# The columns of metrics other than accuracy. Those left out always come with one that is shown.
UNSHOWN = (
    *("top1", "top5", "clean_error", "relative_mce", "class_accuracy"),
    *("AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
METRICS = {
    ("knn", "top1_k1"): "kNN, k=1",
    ("knn", "top1_k20"): "kNN, k=20",
    ("knn", "top1_k200"): "kNN, k=200",
    ("clusters", "nmi"): "NMI of clusters with labels",
    ("corruptions", "mean_error"): "mean error under corruptions",
    ("corruptions", "mce"): "mCE",
    ("perturbations", "flip_probability"): "flip probability",
    ("perturbations", "mfr"): "mFR",
    ("perturbations", "mt5d"): "mT5D",
    ("reconstruction", "mae"): "mean absolute error of pixels, %",
    ("reconstruction", "psnr"): "PSNR, dB",
    ("reconstruction", "bits"): "bits per token",
    ("reconstruction", "codebook_usage"): "codes used, %",
    ("detection", "AP"): "AP",
    ("detection", "AP50"): "AP50",
    ("detection", "AP75"): "AP75",
    ("segmentation", "mIoU"): "mIoU",
    ("segmentation", "pixel_accuracy"): "pixels, %",
}
GROUP = ("experiment", "preset", "stage", "data", "epochs", "train_images", "config_hash", "data_checksum")
# The fields that tell groups with the same title apart, and their names for readers.
APART = {"experiment": "experiment", "config_hash": "config", "data_checksum": "data"}


class Group(NamedTuple):
    """Measurements of runs that differ only in their seeds, so that they belong in one table.

    Attributes:
        slug: the group's name in file names: the preset, and the stage if it is not the last. If that has
            several groups, the older ones also have the hash of their config; if another experiment has a
            preset of the same name, the experiment comes first.
        title: the group's name for readers: the preset, and what was changed in it.
        preset: the name of the preset.
        stage: the name of the stage; "" for the last or only one.
        changed: key -> value, what the command line changed in the preset.
        rows: the measurements that count.
        replaced: earlier measurements of the same things.
    """

    slug: str
    title: str
    preset: str
    stage: str
    changed: dict[str, Any]
    rows: list[Row]
    replaced: list[Row]


def groups(rows: Sequence[Row]) -> list[Group]:
    """Groups rows by settings and data.

    Presets are in the order of the rows, and the groups of one preset from the newest to the oldest.
    """
    kept, replaced = results.latest(rows)
    found: dict[tuple, list[Row]] = defaultdict(list)
    for row in kept:
        found[_key(row)].append(row)
    earlier: dict[tuple, list[Row]] = defaultdict(list)
    for row in replaced:
        earlier[_key(row)].append(row)

    presets = list(dict.fromkeys(row["preset"] for row in kept))
    order = sorted(reversed(found), key=lambda key: newest(found[key]), reverse=True)
    order.sort(key=lambda key: presets.index(found[key][0]["preset"]))
    shared = shared_presets(kept)
    titles = {key: title(found[key], of_several=found[key][0]["preset"] in shared) for key in order}

    out: list[Group] = []
    for key in order:
        own = found[key]
        preset = own[0]["preset"]
        alike = [found[other] for other in order if titles[other] == titles[key]]
        text = titles[key] + told_apart(own, alike)
        slug = _slug(own[0], of_several=preset in shared, taken=[group.slug for group in out])
        out.append(Group(slug, text, preset, own[0]["stage"], last(own)["changed"], own, earlier[key]))
    return out


def _key(row: Mapping[str, Any]) -> tuple:
    return tuple(row[field] for field in GROUP)


def shared_presets(rows: Sequence[Row]) -> set[str]:
    """The presets whose name several experiments have."""
    pairs = {(row["experiment"], row["preset"]) for row in rows}
    presets = [preset for _, preset in pairs]
    return {preset for preset in presets if presets.count(preset) > 1}


def _slug(row: Row, of_several: bool, taken: Sequence[str]) -> str:
    """The shortest name for files that no newer group has taken."""
    label = results.label(row["preset"], row["stage"])
    label = f"{row['experiment']}-{label}" if of_several else label
    names = [label, row["config_hash"], row["data_checksum"][:6]]
    slugs = ["-".join(names[:n]) for n in (1, 2, 3)]
    return next(slug for slug in slugs if slug not in taken)


def newest(rows: Sequence[Row]) -> str:
    """The time of the latest measurement."""
    return max(row["time"] for row in rows)


def last(rows: Sequence[Row]) -> Row:
    """The latest measurement."""
    return max(reversed(rows), key=lambda row: row["time"])


def data_name(source: str) -> str:
    """The name of a data set in the titles of pictures; of a folder of images, its last part."""
    return source.rpartition(":")[2].rstrip("/").rpartition("/")[2]


def title(rows: Sequence[Row], of_several: bool = False) -> str:
    """The title of a group, unless another group has the same: its preset, changes, data and budget.

    A folder of images comes first, because the name of a preset may be that of another data set.

    Args:
        rows: the group's measurements.
        of_several: whether another experiment has a preset of this name.
    """
    row = last(rows)
    # The epochs come at the end in any case.
    changes = [f"{key}={value}" for key, value in row["changed"].items() if key != "epochs"]
    stage = [f"stage {row['stage']}"] if row["stage"] else []
    own_images = row["data"].startswith("folder:")
    preset = f"{row['experiment']}:{row['preset']}" if of_several or own_images else row["preset"]
    name_of = ", ".join([*([data_name(row["data"])] if own_images else []), preset, *stage, *changes])
    return f"{name_of} ({row['data']}, {row['train_images']:,} training images, {row['epochs']} epochs)"


def told_apart(rows: Sequence[Row], alike: Sequence[Sequence[Row]]) -> str:
    """The end of a group's title that tells it from groups with the same title.

    There are such groups because a preset may have changed between commits.

    Args:
        rows: the group's measurements.
        alike: the measurements of all groups with this title, itself included.
    """
    if len(alike) == 1:
        return ""
    first: Mapping[str, Any] = rows[0]
    firsts: list[Mapping[str, Any]] = [other[0] for other in alike]
    differ = [field for field in APART if len({other[field] for other in firsts}) > 1]
    words = [f"{APART[field]} {first[field]}" for field in differ]
    commits = sorted({row["commit"] for row in rows})
    return f", {', '.join(words)}, commit {', '.join(commits)}"


def aggregate(rows: Sequence[Row]) -> tuple[float, float, int]:
    """The mean, the sample standard deviation (0 for a single value) and the number of values."""
    values = [row["value"] for row in rows]
    spread = stdev(values) if len(values) > 1 else 0.0
    return fmean(values), spread, len(values)


def cell(rows: Sequence[Row]) -> str:
    """`85.1 ± 1.2`, without the deviation for a single value; a dash for none."""
    if not rows:
        return "–"
    mean, std, n = aggregate(rows)
    return f"{mean:.1f} ± {std:.1f}" if n > 1 else f"{mean:.1f}"


def pick(rows: Sequence[Row], **want: Any) -> list[Row]:
    """The rows that have these values."""

    def fits(row: Mapping[str, Any]) -> bool:
        return all(row[key] == value for key, value in want.items())

    return [row for row in rows if fits(row)]


def kinds(rows: Sequence[Row]) -> list[str]:
    """The kinds of features in some rows: the baselines, then the method."""
    present = {row["features"] for row in rows}
    return [k for k in ORDER if k in present] + sorted(present - set(ORDER))


def columns(rows: Sequence[Row]) -> list[tuple[str, dict[str, Any]]]:
    """The columns of a group's table: (title, the values that the column's rows have).

    Top-5 accuracies are not shown: they always come with a top-1 accuracy. Nor is that of kNN with the number
    of neighbours that every kNN of these rows has anyway.
    """
    asked = neighbours(rows)
    same = f"top1_k{asked[0]}" if len(asked) == 1 else ""
    top1 = pick(rows, metric="top1")
    present = list(dict.fromkeys(row["protocol"] for row in top1 if row["protocol"] != "label_fraction"))
    known = [protocol for protocol in TITLES if protocol in present]
    others = [protocol for protocol in present if protocol not in TITLES]

    out: list[tuple[str, dict[str, Any]]] = []
    for protocol in known:
        out.append((TITLES[protocol], {"metric": "top1", "protocol": protocol}))
    for protocol in others:
        out.append((protocol.removeprefix("layer_"), {"metric": "top1", "protocol": protocol}))

    for k in sorted({row["labels_per_class"] for row in pick(top1, protocol="label_fraction")}):
        text = "1 label per class" if k == 1 else f"{k} labels per class"
        out.append((text, {"metric": "top1", "protocol": "label_fraction", "labels_per_class": k}))

    for protocol, metric in dict.fromkeys((row["protocol"], row["metric"]) for row in rows):
        if metric not in UNSHOWN and (protocol, metric) != ("knn", same):
            text = METRICS.get((protocol, metric), f"{protocol}, {metric}".replace("_", " "))
            out.append((text, {"protocol": protocol, "metric": metric}))
    return out


def neighbours(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The numbers of neighbours that vote in the kNN of some rows."""
    return sorted({row["settings"]["k"] for row in rows if row["protocol"] == "knn" and row["settings"]})


def main_table(rows: Sequence[Row]) -> list[list[str]]:
    """The table of a group, header first: a row per kind of features, a column per protocol."""
    shown = columns(rows)
    accuracies = any(str(want["metric"]).startswith("top1") for _, want in shown)
    heading = "held-out top-1, %" if accuracies else "held-out"
    table = [[heading, *(text for text, _ in shown)]]
    for kind in kinds(rows):
        own = pick(rows, features=kind)
        table.append([row_name(own), *(cell(pick(own, **want)) for _, want in shown)])
    return table


def row_name(rows: Sequence[Row]) -> str:
    """The name that readers see for the measurements of one kind of features.

    A network with a head of its own is called after its preset's paper: BEiT, fine-tuned by DeiT's method, is
    BEiT.
    """
    own_head = any(row["protocol"].startswith("classifier") for row in rows)
    return name(rows[0]["experiment"] if own_head else rows[0]["features"])


def caption(group: Group) -> str:
    """The caption of a group's table: where its numbers come from."""
    rows: Sequence[Mapping[str, Any]] = group.rows
    # Clusters are evaluated on the training images.
    judged: Sequence[Mapping[str, Any]] = pick(group.rows, metric="top1") or group.rows

    def values(key: str, form: str = "", of: Sequence[Mapping[str, Any]] = rows) -> str:
        return ", ".join(format(value, form) for value in sorted({row[key] for row in of}))

    several = len({row["seed"] for row in rows}) > 1
    draws = len({row["draw"] for row in rows if row["labels_per_class"]})
    spread = [f"over seeds {values('seed')}"] if several else []
    spread += [f"over {draws} draws of the labels"] if draws > 1 else []
    seed = [] if several else [f"Seed {values('seed')}"]
    if spread:
        seed.append(f"{'mean' if seed else 'Mean'} ± standard deviation {' and '.join(spread)}")

    packages = []
    for package in ("jax", "flax"):
        found = sorted({row["versions"][package] for row in rows if package in row["versions"]})
        if found:
            packages.append(f"{package} {' and '.join(found)}")

    nearest = neighbours(rows)
    counts = [f"kNN of {' and '.join(map(str, nearest))} neighbours"] if nearest else []
    parts = [
        *seed,
        f"{values('n', ',', judged)} held-out images",
        f"last checkpoint (step {values('step', ',')})",
        f"commit {values('commit')}",
        f"config {values('config_hash')}",
        f"data {values('data_checksum')}",
        ", ".join(packages),
        *counts,
        *probes(rows),
    ]
    return f"{'; '.join(parts)}{repeated(group)}."


def probes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which linear probe made which number, if one of them was trained under random crops."""
    trained = [row for row in rows if row["protocol"] == "probe"]
    if not trained:
        return []
    said = []
    for s in dict.fromkeys(json.dumps(row["settings"]) for row in trained):
        own = json.loads(s)
        of = f"{own['layer']} of a frozen network" if own["layer"] else "a frozen network"
        rate = f"{own['learning_rate']:g}" + RATES[own["scaling"]]
        crops = "the mean of ten crops" if own["test_crops"] == 10 else "the centre crop"
        said.append(
            f"linear probe of {of}, trained under random crops ({own['crop']}; {own['recipe']} recipe: "
            f"{own['optimizer']} at {rate}, {own['epochs']} epochs at batch size {own['batch_size']}) and "
            f"tested on {crops}"
        )
    if any(row["protocol"].startswith("linear") for row in rows):
        said.append("the other linear probes: on cached features of the centre crop")
    return said


def repeated(group: Group) -> str:
    """How many measurements were replaced, of what, and how many of them had a different value."""
    if not group.replaced:
        return ""
    what = ", ".join(row_name(pick(group.replaced, features=kind)) for kind in kinds(group.replaced))
    shown = {results.same(row): row["value"] for row in group.rows}
    other = sum(shown[results.same(row)] != row["value"] for row in group.replaced)
    return (
        f"; {len(group.replaced)} earlier measurements ({what}) replaced by later ones, "
        f"{other} of them with a different value"
    )


def measured(
    known: Sequence[Group], match: Mapping[str, Any], row: Mapping[str, Any]
) -> tuple[list[Row], str]:
    """The rows that fill one cell of a paper's table, and a note on how they were chosen.

    Only runs of the preset count, with exactly the changes that the table's row asks for, or with any if it
    says so: fine-tuned runs differ in where they start and in what was searched. If the preset
    itself has changed between commits, the newest group counts, and the note says so. Of a preset with stages
    the last one counts, unless `match` names a `stage`.

    Args:
        known: the groups to choose from.
        match: the values that the measurements must have.
        row: a row of the paper's table, with `preset` (unless `match` has it) and optionally `changed`:
            setting -> value, or "any".
    """
    wanted = {"stage": "", **match}
    if "preset" in row:
        wanted = {"preset": row["preset"], **wanted}
    changed = row.get("changed", {})
    found = [pick(group.rows, **wanted) for group in known if changed in ("any", group.changed)]
    found = [rows for rows in found if rows]
    if not found:
        return [], ""
    chosen = max(found, key=newest)
    note = f"config {chosen[0]['config_hash']}, the newest of {len(found)}" if len(found) > 1 else ""
    return chosen, note
