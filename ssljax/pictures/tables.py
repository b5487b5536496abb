"""Measurements to groups and tables: which belong together, what tells groups apart, means and spreads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from ssljax import results
from ssljax.pictures.figures import name
from ssljax.results import Row

ORDER = ("raw_pixels", "random_init", "supervised")  # and then the methods themselves
TITLES = {
    "classifier": "own head",
    "classifier_class_token": "class token's head",
    "classifier_distillation_token": "distillation token's head",
    "knn": "kNN",
    "linear_lbfgs": "linear",
    "linear_sgd_cached": "linear (SGD, cached)",
}
GROUP = ("experiment", "preset", "data", "epochs", "train_images", "config_hash", "data_checksum")
# What tells groups apart whose presets, changes and sizes are alike, and how readers call it.
APART = {"experiment": "experiment", "config_hash": "config", "data_checksum": "data"}


class Group(NamedTuple):
    """Measurements of runs that differ in their seeds alone: they belong in one table.

    Attributes:
        slug: for file names: the preset; of several groups of one preset the older ones have their config's
            hash too.
        title: for readers: the preset, and what was changed in it.
        preset: its name.
        changed: key -> value, what the command line changed in it.
        rows: the measurements that count.
        replaced: earlier measurements of the same.
    """

    slug: str
    title: str
    preset: str
    changed: dict[str, Any]
    rows: list[Row]
    replaced: list[Row]


def groups(rows: Sequence[Row]) -> list[Group]:
    """The rows by settings and data: presets in the order of the rows, and of one the newest group first."""
    kept, replaced = results.latest(rows)
    found: dict[tuple, list[Row]] = defaultdict(list)
    earlier: dict[tuple, list[Row]] = defaultdict(list)
    for row in kept:
        found[_key(row)].append(row)
    for row in replaced:
        earlier[_key(row)].append(row)
    presets = list(dict.fromkeys(row["preset"] for row in kept))
    order = sorted(reversed(found), key=lambda key: newest(found[key]), reverse=True)
    order.sort(key=lambda key: presets.index(found[key][0]["preset"]))
    said = [title(found[key]) for key in order]
    out: list[Group] = []
    for key, text in zip(order, said, strict=True):
        own = found[key]
        first = own[0]
        alike = [found[other] for other, its in zip(order, said, strict=True) if its == text]
        names = [first["preset"], first["config_hash"], first["data_checksum"][:6]]
        slugs = ["-".join(names[:n]) for n in (1, 2, 3)]
        slug = next(slug for slug in slugs if all(group.slug != slug for group in out))
        text += told_apart(own, alike)
        out.append(Group(slug, text, first["preset"], last(own)["changed"], own, earlier[key]))
    return out


def _key(row: Row) -> tuple:
    return tuple(row[field] for field in GROUP)


def newest(rows: Sequence[Row]) -> str:
    """When the last of them was measured."""
    return max(row["time"] for row in rows)


def last(rows: Sequence[Row]) -> Row:
    """The one measured last."""
    return max(reversed(rows), key=lambda row: row["time"])


def title(rows: Sequence[Row]) -> str:
    """What readers know a group by, as long as no other has the same: preset, changes, data and budget."""
    row = last(rows)
    # The epochs are said at the end.
    changes = [f"{key}={value}" for key, value in row["changed"].items() if key != "epochs"]
    return (
        f"{', '.join([row['preset'], *changes])} "
        f"({row['data']}, {row['train_images']:,} training images, {row['epochs']} epochs)"
    )


def told_apart(rows: Sequence[Row], alike: Sequence[Sequence[Row]]) -> str:
    """What else differs among the groups of one title: the preset itself has been another at times."""
    if len(alike) == 1:
        return ""
    differ = [field for field in APART if len({other[0][field] for other in alike}) > 1]
    words = [f"{APART[field]} {rows[0][field]}" for field in differ]
    return f", {', '.join(words)}, commit {', '.join(sorted({row['commit'] for row in rows}))}"


def aggregate(rows: Sequence[Row]) -> tuple[float, float, int]:
    """Mean, sample standard deviation (0 for one) and number of values over seeds and draws."""
    values = [row["value"] for row in rows]
    return fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values)


def cell(rows: Sequence[Row]) -> str:
    """`85.1 ± 1.2`, without the spread where there is one value; a dash for none."""
    if not rows:
        return "–"
    mean, std, n = aggregate(rows)
    return f"{mean:.1f} ± {std:.1f}" if n > 1 else f"{mean:.1f}"


def pick(rows: Sequence[Row], **want: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in want.items())]


def kinds(rows: Sequence[Row]) -> list[str]:
    """Kinds of features: the baselines, then the method."""
    present = {row["features"] for row in rows}
    return [k for k in ORDER if k in present] + sorted(present - set(ORDER))


def columns(rows: Sequence[Row]) -> list[tuple[str, dict[str, Any]]]:
    """(title, the values that its rows have) of every column; top-5 is beside each top-1 and has none."""
    top1 = pick(rows, metric="top1")
    present = list(dict.fromkeys(row["protocol"] for row in top1 if row["protocol"] != "label_fraction"))
    known = [protocol for protocol in TITLES if protocol in present]
    out: list[tuple[str, dict[str, Any]]] = [(TITLES[protocol], {"protocol": protocol}) for protocol in known]
    others = [protocol for protocol in present if protocol not in TITLES]
    out += [(protocol.removeprefix("layer_"), {"protocol": protocol}) for protocol in others]
    for k in sorted({row["labels_per_class"] for row in pick(top1, protocol="label_fraction")}):
        text = f"{k} label{'s' if k > 1 else ''} per class"
        out.append((text, {"protocol": "label_fraction", "labels_per_class": k}))
    out = [(text, {"metric": "top1", **want}) for text, want in out]
    for protocol, metric in dict.fromkeys((row["protocol"], row["metric"]) for row in rows):
        if metric not in ("top1", "top5"):
            text = "NMI of clusters with labels" if metric == "nmi" else f"{protocol}, {metric}"
            out.append((text, {"protocol": protocol, "metric": metric}))
    return out


def main_table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows: what every protocol found, for every kind of features."""
    shown = columns(rows)
    table = [["held-out top-1, %", *(text for text, _ in shown)]]
    for kind in kinds(rows):
        table.append([name(kind), *(cell(pick(rows, features=kind, **want)) for _, want in shown)])
    return table


def caption(group: Group) -> str:
    """How the numbers of a group came about."""
    rows = group.rows

    def values(key: str, form: str = "", of: Sequence[Row] = rows) -> str:
        return ", ".join(format(value, form) for value in sorted({row[key] for row in of}))

    draws = len({row["draw"] for row in rows if row["labels_per_class"]})
    few = f", {draws} draws of the labels" if draws else ""
    packages = []
    for package in ("jax", "flax"):
        found = sorted({row["versions"][package] for row in rows if package in row["versions"]})
        packages += [f"{package} {' and '.join(found)}"] if found else []
    judged = pick(rows, metric="top1") or rows  # clusters are judged on the training images
    return (
        f"Mean ± standard deviation over seeds {values('seed')}{few}; {values('n', ',', judged)} "
        f"held-out images; last checkpoint (step {values('step', ',')}); commit {values('commit')}; "
        f"config {values('config_hash')}; data {values('data_checksum')}; {', '.join(packages)}"
        f"{repeated(group)}."
    )


def repeated(group: Group) -> str:
    """How many measurements were made again, of what, and how many of the earlier ones had another value."""
    if not group.replaced:
        return ""
    what = ", ".join(name(kind) for kind in kinds(group.replaced))
    shown = {results.same(row): row["value"] for row in group.rows}
    other = sum(shown[results.same(row)] != row["value"] for row in group.replaced)
    return (
        f"; {len(group.replaced)} earlier measurements ({what}) replaced by later ones, "
        f"{other} of another value"
    )


def measured(
    known: Sequence[Group], match: Mapping[str, Any], row: Mapping[str, Any]
) -> tuple[list[Row], str]:
    """The rows that fill one cell of a paper's table, and what is to be said of the choice.

    Only runs of the preset with exactly the changes that the table's row asks for count, none where it asks
    for none. Where the preset itself was another at times, the newest counts, and the note names it.

    Args:
        known: the groups to choose from.
        match: the values that the rows have.
        row: of the paper's table: `preset`, unless `match` has it, and perhaps `changed`.
    """
    wanted = {"preset": row["preset"], **match} if "preset" in row else match
    found = [pick(group.rows, **wanted) for group in known if group.changed == row.get("changed", {})]
    found = [rows for rows in found if rows]
    if not found:
        return [], ""
    chosen = max(found, key=newest)
    note = f"config {chosen[0]['config_hash']}, the newest of {len(found)}" if len(found) > 1 else ""
    return chosen, note
