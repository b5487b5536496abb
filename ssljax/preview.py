"""What the network will see: a contact sheet of images and their views.

    ssljax preview --config configs/simclr.py:digits --workdir runs/digits    # writes runs/digits/preview.png

One row per example of the run's first batch: the image as it is stored, then views, each under what was drawn
for it. The first views are those of the run's first step, pixel for pixel. Where the config names several
views, each column stands under the name of its view, a view that shares the crop of another stands beside it,
and smaller views are smaller. Where a method mixes images (DeiT), mixtures of first views stand last, each
under its label's weights; row b is mixed with row B-1-b of the picture. Of a config with stages every stage
gets its own WORKDIR/STAGE/preview.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax import cli
from ssljax.config import flat, stages, view_names
from ssljax.data import loader, mixing, policies, sources, views
from ssljax.data.source import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS, VIEWS = 8, 6
OPERATIONS = "bcsh"  # brightness, contrast, saturation, hue


class Column(NamedTuple):
    """What stands in one column of the sheet.

    Attributes:
        name: of the view; "" where nothing needs to be told apart.
        images: float32 [B, S, S, C] in [0, 1].
        captions: one per row.
    """

    name: str
    images: np.ndarray
    captions: list[str]


def main(argv: list[str] | None = None) -> None:
    """Writes WORKDIR/preview.png and prints its path."""
    flags = cli.parse("preview", argv)
    for name, config in stages(flags.config).items():
        originals, columns, labels = examples(config)
        path = Path(flags.workdir) / name / "preview.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet(path, title(config), originals, columns, labels)
        print(path)


def examples(config: ConfigDict) -> tuple[list[np.ndarray], list[Column], list[str]]:
    """Originals uint8 [H, W, C], the columns of views (and mixtures), and the label of each row."""
    source = sources.load(config.data, "train")
    config, names = repeated(config)
    config.batch_size, config.data.repeats = min(ROWS, len(source)), 1
    batches = loader.train_batches(source, config)
    batch = next(batches)
    batches.close()

    key = jax.random.fold_in(jax.random.key(config.seed), 0)  # of step 0, as ssljax/step.py folds it
    index = jax.numpy.asarray(batch["index"])
    made = views.make({name: jax.numpy.asarray(value) for name, value in batch.items()}, key, config)
    drawn = jax.tree.map(np.asarray, views.draws(index, key, config))

    def column(view: views.View, i: int) -> Column:
        rows = []
        for b, which in enumerate(batch["index"]):
            own = jax.tree.map(lambda leaf, b=b: leaf[b, i], drawn[view.name])
            policy = policies.draw((config.seed, 0, which, view.first + i), view.augment)
            rows.append(caption(own, view.augment, config.data.channels, policy))
        return Column(heading(view, i, names[view.name]), pixels(made[view.name][:, i], view.augment), rows)

    order = [(view, i) for view in views.resolved(config) for i in range(view.count)]
    order.sort(key=lambda place: place[0].first + place[1])  # a view beside the one whose crop it shares
    columns = [column(view, i) for view, i in order]
    if "mix.mixup_alpha" in flat(config) and source.class_names:
        columns += mixtures(made[order[0][0].name][:, 0], batch["label"], source.class_names, key, config)
    labels = [source.class_names[label] if label >= 0 else "" for label in batch["label"]]
    return [original(source, i) for i in batch["index"]], columns, labels


def repeated(config: ConfigDict) -> tuple[ConfigDict, dict[str, str]]:
    """The config with its views over and over while they fit; the first are the run's own.

    Returns:
        an unlocked copy, and the name to show by the name of the view: "" where the config has one view.
    """
    config = config.copy_and_resolve_references().unlock()
    stated = {name: config.views[name].to_dict() for name in view_names(config)}
    names = {name: name if len(stated) > 1 else "" for name in stated}
    shown = sum(view.count for view in views.resolved(config))
    for again in range(2, VIEWS // shown + 1):
        for name, own in stated.items():
            shared = {"of": f"{own['of']} {again}"} if "of" in own else {}
            config.views[f"{name} {again}"] = own | shared
            names[f"{name} {again}"] = names[name]
    return config, names


def heading(view: views.View, i: int, name: str) -> str:
    """The name of a view's column with its number and its size."""
    number = f" {i + 1}" if view.count > 1 else ""
    return f"{name}{number}, {view.size} px" if name else ""


def pixels(images: jax.Array, augment: ConfigDict) -> np.ndarray:
    """Normalised images [B, S, S, C] as they were before: float32 in [0, 1]."""
    return np.clip(np.asarray(images) * np.float32(augment.std) + np.float32(augment.mean), 0.0, 1.0)


def mixtures(
    first: jax.Array, labels: np.ndarray, class_names: tuple[str, ...], key: jax.Array, config: ConfigDict
) -> list[Column]:
    """By mixup and by CutMix, those that are on, of the first views [B, S, S, C].

    Captions are the two heaviest labels of each row.
    """
    columns, names = [], np.array(class_names)
    targets = mixing.smoothed_one_hot(jax.numpy.asarray(labels), len(names), 0.0)
    for kind in ("mixup_alpha", "cutmix_alpha"):
        if config.mix[kind] and len(first) % 2 == 0:
            alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0} | {kind: config.mix[kind]}
            image, target = mixing.mix(first, targets, key, **alphas)
            heaviest = [(row, [c for c in np.argsort(-row)[:2] if row[c] > 0]) for row in np.asarray(target)]
            captions = ["\n".join(f"{row[c]:.2f} {names[c]}" for c in two) for row, two in heaviest]
            columns.append(Column("", pixels(image, config.augment), captions))
    return columns


def original(source: Source, index: int) -> np.ndarray:
    """The stored image of example `index`, uint8 [H, W, C]."""
    position = int(np.flatnonzero(source.index == index)[0])
    if source.images is not None:
        return source.images[position]
    from ssljax.data import crops

    # in colour even where the network sees grey
    return np.asarray(crops.decode(source.read([position])[0], 3))


def caption(
    drawn: views.Draw, augment: ConfigDict, channels: int, policy: Sequence[policies.Step] = ()
) -> str:
    """What was drawn for one view.

    E.g. `c1.32 b0.77 h-0.05 s1.20` (the jitter in its order) over `grey blur 0.8 solarize`. With a policy its
    operations and their arguments come first, e.g. `Equalize 0` over `Rotate -27.3`.
    """
    jitter, rest = [], []
    if drawn.apply_jitter:
        order = [i for i in np.argsort(drawn.jitter.rank) if i < 2 or channels == 3]
        jitter = [f"{OPERATIONS[i]}{drawn.jitter[i]:.2f}" for i in order]
    if drawn.apply_grayscale and channels == 3:
        rest.append("grey")
    if drawn.apply_blur:
        rest.append(f"blur {drawn.sigma:.1f}")
    if drawn.apply_solarize:
        rest.append("solarize")
    lines = [f"{step.op} {step.argument:.3g}" for step in policy]
    lines += [" ".join(words) for words in (jitter, rest) if words]
    return "\n".join(lines) or ("affine only" if augment.crop == "affine" else "crop only")


def title(config: ConfigDict) -> str:
    """The config, the ranges it draws from, and what each view overrides."""
    a = config.augment
    if a.crop == "affine":
        crop = f"affine: rotation {a.rotate} deg, shift {a.shift}, zoom {a.zoom}, shear {a.shear} deg"
    elif a.crop == "none":
        crop = f"no crop, on the {config.data.crop_on}"
    else:
        area = f"area {a.min_area} to {a.max_area}"
        crop = f"crop {a.crop} ({area}, {a.interpolation}) on the {config.data.crop_on}"
    policy = "" if a.policy == "none" else f", {a.policy}"
    color = f"grayscale p {a.grayscale_probability}, blur p {a.blur_probability}"
    if a.jitter_probability:
        order = f"{', '.join(OPERATIONS)} in the order applied"
        jitter = f"jitter ({a.jitter}) strength {a.jitter_strength} with p {a.jitter_probability}"
        color = f"{jitter}, {color} (captions: {order})"
    if a.solarize_probability:
        color += f", solarize p {a.solarize_probability}"
    if a.erasing_probability:
        color += f", erasing p {a.erasing_probability}"
    data = config.data
    run = f"{config.method}:{config.preset}, {data.source}, {data.image_size} px, seed {config.seed}"
    lines = [run, f"{crop}, {'flips' if a.flip else 'no flips'}{policy}", color]
    for name in view_names(config):
        own = ", ".join(f"{key} {value}" for key, value in config.views[name].to_dict().items())
        lines += [f"{name}: {own}"] if own else []
    return "\n".join(lines)


def sheet(
    path: Path, heading: str, originals: list[np.ndarray], columns: list[Column], labels: list[str]
) -> None:
    """Draws the contact sheet; views share one scale, originals have their own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    named = any(column.name for column in columns)
    figure = Figure(figsize=(2.1 * (len(columns) + 1), 2.2 * len(labels) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(labels) + named,
        len(columns) + 1,
        squeeze=False,
        height_ratios=[0.12] * named + [1.0] * len(labels),
    )
    if named:
        for axes, name in zip(grid[0], ["", *(column.name for column in columns)], strict=True):
            axes.text(0.5, 0.5, name, fontsize=10, weight="bold", ha="center", va="center")
            axes.set_axis_off()
    largest = max(column.images.shape[1] for column in columns)
    for b, row in enumerate(grid[int(named) :]):
        _show(row[0], originals[b], labels[b])
        for axes, column in zip(row[1:], columns, strict=True):
            _show(axes, column.images[b], column.captions[b])
            margin = (largest - column.images.shape[2]) / 2
            axes.set(xlim=(-0.5 - margin, largest - margin - 0.5), ylim=(largest - 0.5, -0.5))
    figure.suptitle(heading, fontsize=11)
    figure.savefig(path, dpi=110)


def _show(axes: Axes, picture: np.ndarray, text: str) -> None:
    """One picture [H, W, C] under its text."""
    white = 255 if picture.dtype == np.uint8 else 1
    # cmap is for one channel only
    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    axes.set_title(text, fontsize=8)
    axes.set_axis_off()


if __name__ == "__main__":
    main()
