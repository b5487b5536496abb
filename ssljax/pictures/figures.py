"""The figures of a report.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. Lines carry their names, so
there are no legends.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

NAMES = {
    "raw_pixels": "raw pixels",
    "random_init": "random network",
    "supervised": "labels alone",
    "simclr": "SimCLR",
    "simclr_v2": "SimCLRv2",
    "moco": "MoCo",
    "byol": "BYOL",
    "deit": "DeiT",
    "beit": "BEiT",
    "cpc": "CPC v2",
    "dvae": "dVAE",
    "deepcluster": "DeepCluster",
    "noisy_student": "Noisy Student",
    "cmc": "CMC",
    "predictive": "predictive baseline",
    "linear": "frozen network",
}
# Colours and markers of the baselines. The method, one per figure, has the first of CLASSES and a circle.
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
GREY = "#444444"
NO_LABEL = "#cccccc"
WRONG = "#D55E00"  # the frame of an image of another class
WIDEST = 10  # images side by side
TILE = 0.95  # inches, of an image in a figure of neighbours or clusters
AIR = 1.06  # from one of these images to the next, in sides of an image


def name(features: str) -> str:
    """The name that readers see for a kind of features."""
    return NAMES.get(features, features)


def class_name(class_names: Sequence[str], label: int) -> str:
    """The name of a label; "" for -1, an image without one."""
    return class_names[label] if label >= 0 else ""


def blank(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with plain axes, row by row; the size is in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    axes = list(np.ravel(figure.subplots(rows, columns)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color("#aaaaaa")
        axis.tick_params(colors=GREY, labelsize=9)
        axis.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of 256 colours: a third of the bytes, without a visible difference."""
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    colours = Image.open(whole, formats=("PNG",)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)


def label_efficiency(
    path: Path, curves: Mapping[str, Mapping[int, tuple[float, float]]], full: Mapping[str, float], title: str
) -> None:
    """Draws accuracy against the number of labels per class.

    Args:
        path: PNG to write.
        curves: features -> {labels per class: (mean, standard deviation)}, in percent.
        full: features -> accuracy of the linear probe with all labels, drawn at the right end.
        title: title of the figure.
    """
    figure, (axis,) = blank(6.4, 4.0)
    counts = sorted({k for curve in curves.values() for k in curve})
    for features, curve in curves.items():
        label_curve(axis, features, curve, counts, full)

    # The names stand to the right of each curve's last point: the one of all labels, if it has that.
    last = len(counts) - (0 if full else 1)
    to_the_end = {features: full[features] for features in curves if features in full}
    shorter = {features: curve[max(curve)][0] for features, curve in curves.items() if features not in full}
    low, high = axis.get_ylim()
    for x, heights in ((last, to_the_end), (len(counts) - 1, shorter)):
        for features, y in spread_out(heights, 0.06 * (high - low)).items():
            axis.annotate(
                name(features),
                (x, y),
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


def label_curve(
    axis: Axes,
    features: str,
    curve: Mapping[int, tuple[float, float]],
    counts: Sequence[int],
    full: Mapping[str, float],
) -> None:
    """Draws one curve of `label_efficiency`: mean, band, and a dotted line to the point of all labels."""
    x = np.array([counts.index(k) for k in sorted(curve)], float)
    mean, std = np.array([curve[k] for k in sorted(curve)]).T
    colour = COLOURS.get(features, CLASSES[0])
    marker = MARKERS.get(features, "o")
    width = 1.4 if features in COLOURS else 2.2

    axis.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    axis.plot(x, mean, color=colour, marker=marker, markersize=5, linewidth=width)
    if features in full:
        end = len(counts)
        value = full[features]
        axis.plot([end], [value], color=colour, marker=marker, markersize=5, clip_on=False)
        axis.plot([x[-1], end], [mean[-1], value], color=colour, linewidth=0.9, linestyle=":")


def spread_out(values: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights for text beside these values: in the same order, at least `gap` apart, centred on overlaps."""
    order = sorted(values, key=lambda key: values[key])
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


# The metrics that a training figure shows if a run has logged them, and their names.
CURVES = {
    "loss": "training loss",
    "knn": "held-out kNN accuracy, %",
    "nmi_labels": "NMI of clusters with labels",
    "nmi_previous": "NMI of clusters with previous ones",
}


def training(path: Path, runs: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> None:
    """Draws the CURVES that were logged, against the step.

    Args:
        path: PNG to write.
        runs: name of a run -> lines of its metrics.jsonl.
        title: title of the figure.
    """
    logged: set[str] = set()
    for rows in runs.values():
        logged.update(*rows)
    shown = [metric for metric in CURVES if metric == "loss" or metric in logged]

    figure, axes = blank(max(5.2, 4.2 * len(shown)), 3.2, len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        training_curves(axis, runs, metric)
        axis.set_xlabel("step", color=GREY)
        axis.set_title(f"{title}: {CURVES[metric]}", loc="left", fontsize=10)
    save(figure, path)


def training_curves(axis: Axes, runs: Mapping[str, Sequence[Mapping[str, float]]], metric: str) -> None:
    """Draws one metric of several runs, with the name of each run beside its last value."""
    colours = {run: CLASSES[i % len(CLASSES)] for i, run in enumerate(runs)}
    marker = "" if metric == "loss" else "o"
    ends = {}
    for run, rows in runs.items():
        points = [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]
        if points:
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, color=colours[run], linewidth=1.4, markersize=4, marker=marker)
            ends[run] = values[-1]

    name_ends(axis, ends, colours)


def name_ends(axis: Axes, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Write the name of each curve beside its end, moved apart where they would overlap.

    Args:
        axis: of the curves.
        ends: name -> the height of the end.
        colours: name -> the colour of the curve.
    """
    low, high = axis.get_ylim()
    for label, y in spread_out(dict(ends), 0.07 * (high - low)).items():
        axis.annotate(
            label,
            (1, y),
            (4, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=9,
            annotation_clip=False,
            color=colours[label],
        )


def feature_map(
    path: Path, points: Mapping[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str], title: str
) -> None:
    """Draws the t-SNE of test images, one panel per kind of features, with each class named at its median.

    Images without a label are light grey.

    Args:
        path: PNG to write.
        points: features -> [P, d], their principal components.
        labels: int [P].
        class_names: one per label.
        title: title of the figure.
    """
    from sklearn.manifold import TSNE  # takes a second to import, and only this function needs it
    from threadpoolctl import threadpool_limits

    figure, axes = blank(4.4 * len(points), 4.4, len(points))
    names_of: dict[Axes, list[Text]] = {}
    for axis, (features, x) in zip(axes, points.items(), strict=True):
        perplexity = min(30.0, max(2.0, (len(x) - 1) / 4))
        with threadpool_limits(1):  # so few points are faster on one core
            projection = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
            flat = projection.fit_transform(x.astype(np.float32))

        texts = []
        for c in np.unique(labels):
            own = flat[labels == c]
            colour = CLASSES[c % len(CLASSES)] if c >= 0 else NO_LABEL
            axis.scatter(own[:, 0], own[:, 1], s=9, color=colour, alpha=0.75, linewidths=0)
            if c >= 0 and len(np.unique(labels)) <= 20:
                x_median, y_median = np.median(own, axis=0)
                text = axis.text(
                    x_median,
                    y_median,
                    class_names[c],
                    fontsize=11,
                    weight="bold",
                    ha="center",
                    va="center",
                    color=colour,
                    bbox={"facecolor": "white", "alpha": 0.75, "pad": 1, "linewidth": 0},
                )
                texts.append(text)

        axis.set_title(f"{title}: {name(features)}", loc="left", fontsize=10)
        axis.grid(False)
        axis.set(xticks=[], yticks=[])
        axis.spines[["left", "bottom"]].set_visible(False)
        names_of[axis] = texts
    figure.draw_without_rendering()  # lays the panels out, so that the texts have their places
    for axis, texts in names_of.items():
        move_apart(axis, texts)
    save(figure, path)


def move_apart(axis: Axes, texts: Sequence[Text]) -> None:
    """Moves texts of a panel up or down until none covers another, and back into the panel."""
    boxes = np.array([text.get_window_extent().extents for text in texts]).reshape(-1, 4)
    middle = (boxes[:, 1] + boxes[:, 3]) / 2
    half = (boxes[:, 3] - boxes[:, 1]) / 2 + 1  # a pixel of air
    panel = axis.get_window_extent()
    for _ in range(300):
        middle = np.clip(middle, panel.y0 + half, panel.y1 - half)
        hits = 0
        for i in range(len(texts)):
            for k in range(i):
                beside = boxes[i, 0] < boxes[k, 2] and boxes[k, 0] < boxes[i, 2]
                short = half[i] + half[k] - abs(middle[i] - middle[k])
                if beside and short > 1e-6:
                    up, down = (i, k) if middle[i] >= middle[k] else (k, i)
                    middle[up] += short / 2
                    middle[down] -= short / 2
                    hits += 1
        if not hits:
            break
    for text, height in zip(texts, middle, strict=True):
        x, _ = axis.transData.transform(text.get_position())
        x, y = axis.transData.inverted().transform((x, height))
        text.set_position((x, y))


def tiles(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure, `width` by `height` inches, and its axes [rows, columns] close together."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    return figure, axes


def strips(height: int, count: int, names: Sequence[str]) -> tuple[Figure, list[list[Axes]]]:
    """A figure of columns of axes, WIDEST side by side and the others below them.

    Args:
        height: how many axes a column has.
        count: the number of columns.
        names: of the axes of a column, written to the left of the first.

    Returns:
        The figure, and the axes of each column from top to bottom.
    """
    wide = min(count, WIDEST)
    blocks = -(-count // WIDEST)
    figure, axes = tiles(height * blocks, wide, 1.1 * wide + 0.8, 1.1 * height * blocks + 0.3 * blocks + 0.3)
    parts = axes.reshape(blocks, height, wide)
    columns = [list(parts[c // WIDEST, :, c % WIDEST]) for c in range(count)]
    for part in parts:
        for axis, text in zip(part[:, 0], names, strict=False):
            beside(axis, text)
    for c in range(count, blocks * WIDEST if blocks > 1 else count):
        for axis in parts[c // WIDEST, :, c % WIDEST]:
            axis.set_axis_off()
    return figure, columns


def without_channel(image: np.ndarray) -> np.ndarray:
    """A grey image as [S, S], and one in colour as it is: as matplotlib takes them."""
    return image[..., 0] if image.shape[-1] == 1 else image


def draw(axis: Axes, image: np.ndarray) -> None:
    """Shows an image, uint8 [S, S, C], without interpolation."""
    axis.imshow(without_channel(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    # A thin edge, so that a white image ends somewhere on the white page.
    axis.add_patch(Rectangle((0, 0), 1, 1, transform=axis.transAxes, fill=False, color=NO_LABEL))


def sheet(
    images: Sequence[Sequence[np.ndarray]] | np.ndarray,
    wrong: np.ndarray,
    names: Sequence[str],
    heads: Sequence[str],
    means: str,
    title: str,
) -> Figure:
    """Rows of images, some of them framed, on one axis: with an axis each they take five times as long.

    Args:
        images: uint8 [S, S, C], by row and column.
        wrong: bool [rows, columns], which images have a frame.
        names: of the rows, written to the left of them.
        heads: written above the first columns.
        means: what a frame means, said below the images if there is one.
        title: title of the figure.
    """
    rows, columns = wrong.shape
    figure = Figure(figsize=(TILE * (columns + 1.4), TILE * rows + 0.8), layout="constrained", dpi=150)
    axis = figure.subplots()
    for r, c in np.ndindex(rows, columns):
        pixels = without_channel(images[r][c])
        place = (AIR * c, AIR * c + 1, AIR * r + 1, AIR * r)
        axis.imshow(pixels, extent=place, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        # A thin edge, so that a white image ends somewhere on the white page.
        width, colour = (3, WRONG) if wrong[r, c] else (1, NO_LABEL)
        axis.add_patch(Rectangle((AIR * c, AIR * r), 1, 1, fill=False, linewidth=width, edgecolor=colour))
    for r, text in enumerate(names):
        axis.text(-0.1, AIR * r + 0.5, text, ha="right", va="center", fontsize=9, color=GREY)
    for c, text in enumerate(heads):
        axis.text(AIR * c + 0.5, -0.1, text, ha="center", fontsize=9, color=GREY)
    axis.set(xlim=(-0.02, AIR * columns), ylim=(AIR * rows, -0.02))
    axis.set_axis_off()
    if wrong.any():
        patch = Rectangle((0, 0), 1, 1, fill=False, edgecolor=WRONG, linewidth=3, label=means)
        figure.legend(handles=[patch], loc="outside lower left", frameon=False, fontsize=9, handlelength=1.2)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def beside(axis: Axes, text: str) -> None:
    """Writes a text to the left of an image."""
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, color=GREY)


def neighbours(
    path: Path,
    query: np.ndarray,
    query_labels: np.ndarray,
    neighbour: np.ndarray,
    neighbour_labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
    words: tuple[str, str] = ("test", "an image of another class than that of its row"),
) -> None:
    """Draws a row per test image: the image, then its nearest training images by cosine similarity.

    Neighbours of another class are framed.

    Args:
        path: PNG to write.
        query: uint8 [Q, S, S, C].
        query_labels: int [Q].
        neighbour: uint8 [Q, K, S, S, C].
        neighbour_labels: int [Q, K].
        class_names: one per label.
        title: title of the figure.
        words: above the first column, and what a frame means.
    """
    images = [[first, *others] for first, others in zip(query, neighbour, strict=True)]
    known = (query_labels[:, None] >= 0) & (neighbour_labels >= 0)
    wrong = known & (neighbour_labels != query_labels[:, None])
    wrong = np.concatenate([np.zeros_like(wrong[:, :1]), wrong], axis=1)
    names = [class_name(class_names, label) for label in query_labels]
    save(sheet(images, wrong, names, (words[0], "nearest"), words[1], title), path)


def precision_recall(path: Path, curves: Mapping[str, np.ndarray], title: str) -> None:
    """Draws precision at the recalls 0, 10, ... 100 %, all in percent, for each kind of features or IoU."""
    figure, (axis,) = blank(5.2, 3.4)
    recall = 10.0 * np.arange(11)
    others = [kind for kind in curves if kind not in COLOURS]
    colours = {**COLOURS, **dict(zip(others, CLASSES, strict=False))}
    for kind, precision in curves.items():
        colour = colours[kind]
        axis.plot(recall, precision, color=colour, marker=MARKERS.get(kind, "o"), markersize=4)
    ends = spread_out({kind: float(each[-1]) for kind, each in curves.items()}, 6.0)
    for kind, y in ends.items():
        colour = colours[kind]
        axis.annotate(
            name(kind), (100, y), (8, 0), textcoords="offset points", va="center", fontsize=10, color=colour
        )
    axis.set(xlim=(0, 101), ylim=(0, 101))
    axis.set_xlabel("recall, %", color=GREY)
    axis.set_ylabel("precision, %", color=GREY)
    axis.set_title(title, loc="left", fontsize=11)
    save(figure, path)


def attention(
    path: Path,
    query: np.ndarray,
    query_labels: np.ndarray,
    maps: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draws a column per test image: the image, and below it the attention of each token to the patches.

    Args:
        path: PNG to write.
        query: uint8 [Q, S, S, C].
        query_labels: int [Q].
        maps: float [Q, T, rows, columns], weights of the patches; T = 1 (class token) or 2 (distillation
            token as well).
        class_names: one per label.
        title: title of the figure.
    """
    tokens = maps.shape[1]
    figure, columns = strips(1 + tokens, len(query), ("test", "class", "distillation"))
    for c, (image, own) in enumerate(zip(query, columns, strict=True)):
        draw(own[0], image)
        own[0].set_title(class_name(class_names, query_labels[c]), fontsize=9, color=GREY)
        for t in range(tokens):
            weights = maps[c, t].astype(np.float32)
            own[1 + t].imshow(weights, cmap="magma", vmin=0, interpolation="nearest")
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.suptitle(f"{title}: attention of the last block", x=0.01, ha="left", fontsize=10)
    save(figure, path)


def rows_of_images(
    path: Path,
    rows: Mapping[str, np.ndarray],
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draws rows of images of the same things.

    Args:
        path: PNG to write.
        rows: uint8 [Q, S, S, C] by the name of the row.
        labels: int [Q], of the columns.
        class_names: one per label.
        title: title of the figure.
    """
    figure, columns = strips(len(rows), len(labels), list(rows))
    for c, own in enumerate(columns):
        for axis, images in zip(own, rows.values(), strict=True):
            draw(axis, images[c])
        own[0].set_title(class_name(class_names, labels[c]), fontsize=9, color=GREY)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    save(figure, path)


def clusters(
    path: Path,
    members: np.ndarray,
    labels: np.ndarray,
    sizes: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> None:
    """Draws a row of training images per cluster, the largest cluster first.

    Images outside the most common class of their row are framed.

    Args:
        path: PNG to write.
        members: uint8 [K, M, S, S, C].
        labels: int [K, M].
        sizes: int [K], the number of images in each cluster.
        class_names: one per label.
        title: title of the figure.
    """
    common = [int(np.bincount(row[row >= 0]).argmax()) if (row >= 0).any() else -1 for row in labels]
    names = [
        f"{class_name(class_names, label)}\n{size:,} images".lstrip()
        for label, size in zip(common, sizes, strict=True)
    ]
    wrong = (labels >= 0) & (labels != np.array(common)[:, None])
    means = "an image outside the most common class of its row"
    save(sheet(members, wrong, names, (), means, title), path)
