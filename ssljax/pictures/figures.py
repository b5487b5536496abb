"""The pictures of a report: colours of Okabe and Ito, which colour-blind readers tell apart; named lines."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

NAMES = {
    "raw_pixels": "raw pixels",
    "random_init": "random network",
    "supervised": "labels alone",
    "simclr": "SimCLR",
    "moco": "MoCo",
    "byol": "BYOL",
    "deit": "DeiT",
    "deepcluster": "DeepCluster",
}
# Of the baselines; a method, of which there is one a figure, has the first colour and marker.
COLOURS = {"supervised": "#D55E00", "raw_pixels": "#555555", "random_init": "#999999"}
MARKERS = {"supervised": "s", "raw_pixels": "^", "random_init": "v"}
CLASSES = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#8C8C00",
    "#000000",
    "#999999",
    "#7A3E9D",
)
GREY, NO_LABEL = "#444444", "#cccccc"


def name(features: str) -> str:
    """A kind of features as readers call it."""
    return NAMES.get(features, features)


def class_name(class_names: Sequence[str], label: int) -> str:
    """The name of a label; "" for -1, an image without one."""
    return class_names[label] if label >= 0 else ""


def blank(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with quiet axes in a row."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#aaaaaa")
        axis.tick_params(colors=GREY, labelsize=9)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Writes a png of 256 colours: a third of the bytes, and no difference to the eye."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    colours = Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)


def label_efficiency(
    path: Path, curves: Mapping[str, Mapping[int, tuple[float, float]]], full: Mapping[str, float], title: str
) -> None:
    """Accuracy against labels per class.

    Args:
        path: png to write.
        curves: features -> {labels per class: (mean, standard deviation)} in percent.
        full: features -> linear probe with all labels, drawn at the right end.
        title: above the picture.
    """
    figure, (axis,) = blank(6.4, 4.0)
    counts = sorted({k for curve in curves.values() for k in curve})
    place = {k: i for i, k in enumerate(counts)}
    ends = {True: {}, False: {}}  # where the names stand: behind the point of all labels, or the most
    for features, curve in curves.items():
        x = np.array([place[k] for k in sorted(curve)], float)
        mean, std = np.array([curve[k] for k in sorted(curve)]).T
        colour = COLOURS.get(features, CLASSES[0])
        axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        marker = MARKERS.get(features, "o")
        axis.plot(
            x, mean, color=colour, marker=marker, markersize=5, linewidth=1.4 if features in COLOURS else 2.2
        )
        ends[features in full][features] = full.get(features, mean[-1])
        if features in full:
            axis.plot(
                [len(counts)], [full[features]], color=colour, marker=marker, markersize=5, clip_on=False
            )
            axis.plot(
                [x[-1], len(counts)], [mean[-1], full[features]], color=colour, linewidth=0.9, linestyle=":"
            )
    last = len(counts) - (0 if full else 1)
    low, high = axis.get_ylim()
    for at, names in ((last, ends[True]), (len(counts) - 1, ends[False])):
        for features, y in spread_out(names, 0.06 * (high - low)).items():
            axis.annotate(
                name(features),
                (at, y),
                (10, 0),
                textcoords="offset points",
                va="center",
                fontsize=10,
                color=COLOURS.get(features, CLASSES[0]),
                annotation_clip=False,
            )
    axis.set_xticks(range(last + 1), [*map(str, counts), *(["all"] if full else [])])
    axis.set_xlim(-0.15, last + 0.05)
    axis.set_xlabel("labelled images per class", color=GREY)
    axis.set_ylabel("held-out accuracy, %", color=GREY)
    axis.set_title(title, loc="left", fontsize=11)
    save(figure, path)


def spread_out(values: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights for text beside these values, in their order, no two closer than `gap`, centred on overlaps."""
    order = sorted(values, key=values.get)
    heights = np.array([values[key] for key in order], float)
    for _ in range(100):
        short = gap - np.diff(heights)
        if not (short > 1e-9).any():
            break
        for i in np.flatnonzero(short > 1e-9):
            push = max(0.0, gap - (heights[i + 1] - heights[i])) / 2
            heights[i] -= push
            heights[i + 1] += push
    return dict(zip(order, heights.tolist(), strict=True))


# What a training figure shows where a run has measured it, and what it is called.
CURVES = {
    "loss": "training loss",
    "knn": "held-out kNN while training, %",
    "nmi_labels": "NMI of clusters with the labels",
    "nmi_previous": "NMI of clusters with those before",
}


def training(path: Path, runs: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> None:
    """The CURVES that were measured, against the step.

    Args:
        path: png to write.
        runs: name of a run -> lines of its metrics.jsonl.
        title: above the picture.
    """
    found = {metric for rows in runs.values() for row in rows for metric in row}
    shown = [metric for metric in CURVES if metric == "loss" or metric in found]
    figure, axes = blank(max(5.2, 4.2 * len(shown)), 3.2, len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        ends = {}
        for i, (run, rows) in enumerate(runs.items()):
            points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    color=CLASSES[i % len(CLASSES)],
                    linewidth=1.4,
                    markersize=4,
                    marker="" if metric == "loss" else "o",
                )
                ends[run] = points[-1][1]
        low, high = axis.get_ylim()
        for run, y in spread_out(ends, 0.07 * (high - low)).items():
            axis.annotate(
                run,
                (1, y),
                (4, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontsize=9,
                annotation_clip=False,
                color=CLASSES[list(runs).index(run) % len(CLASSES)],
            )
        axis.set_xlabel("step", color=GREY)
        axis.set_title(f"{title}: {CURVES[metric]}", loc="left", fontsize=10)
    save(figure, path)


def feature_map(
    path: Path, points: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str], title: str
) -> None:
    """Test images as t-SNE places them, a panel per kind of features, each class named at its median.

    Images without a label are light grey.

    Args:
        path: png to write.
        points: features -> [P, d], their principal components.
        labels: int [P].
        class_names: one a label.
        title: above the picture.
    """
    from sklearn.manifold import TSNE  # a second to import, only for this
    from threadpoolctl import threadpool_limits

    figure, axes = blank(4.4 * len(points), 4.4, len(points))
    for axis, (features, x) in zip(axes, points.items(), strict=True):
        perplexity = min(30.0, max(2.0, (len(x) - 1) / 4))
        with threadpool_limits(1):  # so few points are faster on one core
            projection = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
            flat = projection.fit_transform(x.astype(np.float32))
        for c in np.unique(labels):
            own = flat[labels == c]
            colour = CLASSES[c % len(CLASSES)] if c >= 0 else NO_LABEL
            axis.scatter(*own.T, s=9, color=colour, alpha=0.75, linewidths=0)
            if c >= 0 and len(np.unique(labels)) <= 20:
                axis.text(
                    *np.median(own, axis=0),
                    class_names[c],
                    fontsize=11,
                    weight="bold",
                    ha="center",
                    va="center",
                    color=colour,
                    bbox={"facecolor": "white", "alpha": 0.75, "pad": 1, "linewidth": 0},
                )
        axis.set_title(f"{title}: {name(features)}", loc="left", fontsize=10)
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        axis.spines[["left", "bottom"]].set_visible(False)
    save(figure, path)


def tiles(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches, and its axes [rows, columns] close together."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})


def draw(axis: Axes, image: np.ndarray) -> None:
    """An image, uint8 [S, S, C], pixel by pixel."""
    axis.imshow(
        image[..., 0] if image.shape[-1] == 1 else image,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
    )
    axis.set(xticks=[], yticks=[])


def frame(axis: Axes, wrong: bool) -> None:
    """A frame around what is wrong, none around the rest."""
    for spine in axis.spines.values():
        spine.set(visible=wrong, color="#D55E00", linewidth=3)


def beside(axis: Axes, text: str) -> None:
    """A text to the left."""
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, color=GREY)


def neighbours(
    path: Path,
    query: np.ndarray,
    query_labels: np.ndarray,
    neighbour: np.ndarray,
    neighbour_labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Each row: a test image, then its nearest training images by cosine; a wrong class is framed.

    Args:
        path: png to write.
        query: uint8 [Q, S, S, C].
        query_labels: int [Q].
        neighbour: uint8 [Q, K, S, S, C].
        neighbour_labels: int [Q, K].
        class_names: one a label.
        title: above the picture.
    """
    rows, columns = neighbour_labels.shape
    figure, axes = tiles(rows, columns + 1, 0.8 * (columns + 1.4), 0.8 * rows + 0.6)
    for r in range(rows):
        for c in range(columns + 1):
            draw(axes[r, c], query[r] if c == 0 else neighbour[r, c - 1])
            pair = (neighbour_labels[r, c - 1], query_labels[r])
            frame(axes[r, c], bool(c > 0 and pair[0] != pair[1] and min(pair) >= 0))
        beside(axes[r, 0], class_name(class_names, query_labels[r]))
    axes[0, 0].set_title("test", fontsize=9, color=GREY)
    axes[0, 1].set_title("nearest", fontsize=9, color=GREY)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    save(figure, path)


def attention(
    path: Path,
    query: np.ndarray,
    query_labels: np.ndarray,
    maps: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Each column: a test image, and below it the patches that each token looks at.

    Args:
        path: png to write.
        query: uint8 [Q, S, S, C].
        query_labels: int [Q].
        maps: float [Q, T, rows, columns], weights of the patches; T = 1 (class token) or 2 (distillation).
        class_names: one a label.
        title: above the picture.
    """
    tokens = maps.shape[1]
    figure, axes = tiles(1 + tokens, len(query), 1.1 * len(query) + 0.8, 1.1 * (1 + tokens) + 0.6)
    for c, image in enumerate(query):
        draw(axes[0, c], image)
        axes[0, c].set_title(class_name(class_names, query_labels[c]), fontsize=9, color=GREY)
        for t in range(tokens):
            axes[1 + t, c].imshow(
                maps[c, t].astype(np.float32), cmap="magma", vmin=0, interpolation="nearest"
            )
    for row, label in zip(axes, ("test", "class", "distillation"), strict=False):
        beside(row[0], label)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(f"{title}: attention of the last block", x=0.01, ha="left", fontsize=10)
    save(figure, path)


def clusters(
    path: Path,
    members: np.ndarray,
    labels: np.ndarray,
    sizes: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Each row: training images of one cluster, the largest first; a frame marks another class.

    Args:
        path: png to write.
        members: uint8 [K, M, S, S, C].
        labels: int [K, M].
        sizes: int [K], images in each cluster.
        class_names: one a label.
        title: above the picture.
    """
    rows, columns = labels.shape
    figure, axes = tiles(rows, columns, 0.8 * (columns + 2.4), 0.8 * rows + 0.6)
    for r in range(rows):
        known = labels[r][labels[r] >= 0]
        common = int(np.bincount(known).argmax()) if len(known) else -1
        for axis, image, label in zip(axes[r], members[r], labels[r], strict=True):
            draw(axis, image)
            frame(axis, bool(label >= 0 and label != common))
        beside(axes[r, 0], f"{class_name(class_names, common)}\n{sizes[r]:,} images".lstrip())
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    save(figure, path)
