"""Shows what the network will see: a contact sheet of images and their views.

    ssljax preview --config configs/simclr.py:digits --workdir runs/digits    # writes runs/digits/preview.png

There is one row per example of the run's first batch: the image as it is stored, then its views, each under
the random parameters that were drawn for it. The first views are those of the run's first step, pixel for
pixel.

If the config names several views, each column has the name of its view. A view that shares the crop of
another is beside it, and smaller views are drawn smaller. Views from several folders (`views:PATH`) lie side
by side in every picture. If the method mixes images (DeiT), the last columns show mixtures of first views,
each under the weights of its labels; row b is mixed with row B-1-b of the picture. If it masks patches
(BEiT), the last column shows the first view with these patches in grey; if it changes each patch for itself
(CPC), it shows those patches; if the network sees only edges (DeepCluster), it shows those. Images with boxes
or masks are shown under them, in the batch as the network sees it. A config with stages gives one
WORKDIR/STAGE/preview.png per stage.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax import board, cli
from ssljax.config import flat, stages, view_names
from ssljax.data import colours, loader, mixing, pillow, policies, sources, view_folders, views
from ssljax.data.source import Source
from ssljax.methods.beit import masks
from ssljax.methods.cpc import changed_patches
from ssljax.models.sobel import sobel
from ssljax.pictures import overlays
from ssljax.pictures.gallery import greyed
from ssljax.program import once

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS = 8
VIEWS = 6
SIDE = 2.0  # inches of a picture
AIR = 0.1  # inches between two
OPERATIONS = "bcsh"  # brightness, contrast, saturation, hue


class Column(NamedTuple):
    """One column of the sheet.

    Attributes:
        name: the name of the view; "" if there is only one.
        images: float32 [B, S, S, C] in [0, 1].
        captions: one per row.
        size: how wide it is drawn; the others are 1. Only columns of size 1 share one scale.
    """

    name: str
    images: np.ndarray
    captions: list[str]
    size: float = 1.0


def main(argv: list[str] | None = None) -> None:
    """`ssljax preview`: writes WORKDIR/preview.png and prints its path."""
    flags = cli.parse("preview", argv)
    with cli.answered("preview"):
        for name, config in stages(flags.config).items():
            path = Path(flags.workdir) / name / "preview.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if config.data.annotations:
                source = sources.load(config.data, "train")
                overlays.sheet(path, annotated_title(config), overlays.training(config, source, ROWS))
            else:
                originals, columns, labels = examples(config)
                sheet(path, title(config), originals, columns, labels)
            board.show(path.parent, 0, {"preview": path})
            print(path)


def examples(config: ConfigDict) -> tuple[list[np.ndarray], list[Column], list[str]]:
    """The contents of the sheet.

    Returns:
        The stored images, uint8 [H, W, C]; the columns of views and mixtures; the label of each row.
    """
    source = sources.load(config.data, "train")
    config, names = repeated(config)
    config.batch_size = min(ROWS, len(source))
    config.data.repeats = 1
    batches = loader.train_batches(source, config)
    batch = next(batches)
    batches.close()

    key = jax.random.fold_in(jax.random.key(config.seed), 0)  # the key of step 0, as in ssljax/step.py
    index = jax.numpy.asarray(batch["index"])
    arrays = {name: jax.numpy.asarray(value) for name, value in batch.items()}
    make = once(lambda arrays, key: (views.make(arrays, key, config), views.draws(index, key, config)))
    made, drawn = make(arrays, key)
    drawn = jax.tree.map(np.asarray, drawn)

    def column(view: views.View, i: int) -> Column:
        rows = []
        for b, which in enumerate(batch["index"]):
            own = jax.tree.map(lambda leaf, b=b: leaf[b, i], drawn[view.name])
            place = (config.seed, 0, which, view.first + i)
            policy = policies.draw(place, view.augment)
            if config.data.crop_on == "host" and pillow.jitters_image(view.augment):
                own = own._replace(apply_jitter=False)  # the host has done it, with draws of its own
                steps = [
                    f"{name[0]}{factor:.2f}" for name, factor in pillow.jitter_steps(place, view.augment)
                ]
                rows.append(" ".join(steps) + "\n" + caption(own, view.augment, config.data.channels, policy))
                continue
            rows.append(caption(own, view.augment, config.data.channels, policy))
        shown = beside(pixels(made[view.name][:, i], view.augment), config)
        return Column(heading(view, i, names[view.name]), shown, rows)

    order = [(view, i) for view in views.resolved(config) for i in range(view.count)]
    order.sort(key=lambda place: place[0].first + place[1])  # puts a view beside the one whose crop it shares
    columns = [column(view, i) for view, i in order]
    if "mix.mixup_alpha" in flat(config) and source.class_names:
        first = made[order[0][0].name][:, 0]
        columns += mixtures(first, batch["label"], source.class_names, key, config)
    if "masking.name" in flat(config):
        view, _ = order[0]
        columns.append(masked(pixels(made[view.name][:, 0], view.augment), index, key, config))
    if "patches.policy_ops" in flat(config):
        columns.append(patched(arrays, key, config))
    if flat(config).get("model.sobel"):
        view, _ = order[0]
        columns.append(edges(made[view.name][:, 0]))

    labels = [source.class_names[label] if label >= 0 else "" for label in batch["label"]]
    return [beside(original(source, i), config) for i in batch["index"]], columns, labels


def repeated(config: ConfigDict) -> tuple[ConfigDict, dict[str, str]]:
    """Repeats the views of a config as often as they fit into VIEWS columns. The first are the run's own.

    Returns:
        An unlocked copy, and the name to show for each view: "" if the config has only one view.
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
    """The heading of a view's column: its name, number and size."""
    if not name:
        return ""
    number = f" {i + 1}" if view.count > 1 else ""
    return f"{name}{number}, {view.size} px"


def pixels(images: jax.Array, augment: ConfigDict) -> np.ndarray:
    """Undoes the normalisation and the change of colour space of images [B, S, S, C]: float32 in [0, 1]."""
    channels = np.asarray(images) * np.float32(augment.std) + np.float32(augment.mean)
    return np.clip(np.asarray(colours.to_rgb(jax.numpy.asarray(channels), augment.color_space)), 0.0, 1.0)


def beside(images: np.ndarray, config: ConfigDict) -> np.ndarray:
    """Images [..., S, S, C] as pictures [..., S, S, 3 or 1]: several views of an image lie side by side."""
    folders = config.data.get("view_folders", ())
    if not folders:
        return images
    return np.concatenate(view_folders.pictures(images, folders), axis=-2)


def mixtures(
    first: jax.Array, labels: np.ndarray, class_names: tuple[str, ...], key: jax.Array, config: ConfigDict
) -> list[Column]:
    """The columns of mixtures by mixup and by CutMix, as far as the config uses them.

    Args:
        first: the first view of each example, [B, S, S, C].
        labels: int [B].
        class_names: one per label.
        key: the key of the step.
        config: the run's config.

    Returns:
        The columns. A caption names the two labels with the largest weights.
    """
    columns = []
    targets = mixing.smoothed_one_hot(jax.numpy.asarray(labels), len(class_names), 0.0)
    for kind in ("mixup_alpha", "cutmix_alpha"):
        if config.mix[kind] and len(first) % 2 == 0:
            alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, kind: config.mix[kind]}
            image, target = once(functools.partial(mixing.mix, **alphas))(first, targets, key)
            captions = [weights(row, class_names) for row in np.asarray(target)]
            columns.append(Column("", pixels(image, config.augment), captions))
    return columns


def masked(images: np.ndarray, index: jax.Array, key: jax.Array, config: ConfigDict) -> Column:
    """The column of views whose masked patches are grey.

    Args:
        images: float32 [B, S, S, C] in [0, 1].
        index: int32 [B], the ids of the images.
        key: the key of the step.
        config: the run's config, of the method beit.
    """
    grid = images.shape[1] // config.model.patch
    mask = np.asarray(masks(key, index, config, grid)).reshape(-1, grid, grid)
    captions = [f"{row.sum()} of {row.size} masked" for row in mask]
    return Column("masked", greyed(images, mask, 0.5), captions)


def patched(batch: Mapping[str, jax.Array], key: jax.Array, config: ConfigDict) -> Column:
    """The column of the first view's patches, each changed for itself, with gaps between them.

    Args:
        batch: as for `views.make`.
        key: the key of the step.
        config: the run's config, of the method cpc.
    """
    made = pixels(once(lambda batch: changed_patches(batch, key, config))(batch), config.augment)
    rows, grid, _, side = made.shape[:4]
    gap = max(side // 12, 1)
    made = np.pad(made, [(0, 0)] * 3 + [(0, gap)] * 2 + [(0, 0)], constant_values=1.0)
    sheet = made.swapaxes(2, 3).reshape(rows, grid * (side + gap), grid * (side + gap), -1)
    caption = f"{grid * grid} patches of {side} px"
    return Column("patches", sheet[:, :-gap, :-gap], [caption] * rows, size=1.0 if grid == 1 else 1.7)


def edges(images: jax.Array) -> Column:
    """The column of what a network with a Sobel filter sees of views: how steep they are, dark on white.

    Args:
        images: normalised, [B, S, S, C]; the first two channels of the filter are left and up.
    """
    steep = np.linalg.norm(np.asarray(sobel(images)), axis=-1, keepdims=True)
    most = steep[:, 1:-1, 1:-1].max(axis=(1, 2, 3), keepdims=True)  # the border may be steeper: it is padded
    shown = np.clip(1.0 - steep / np.maximum(most, 1e-6), 0.0, 1.0)
    return Column("edges", shown, ["edges, which the network sees"] * len(steep))


def weights(target: np.ndarray, class_names: tuple[str, ...]) -> str:
    """The two largest weights of a target [K] with the names of their classes, one per line."""
    largest = [c for c in np.argsort(-target)[:2] if target[c] > 0]
    return "\n".join(f"{target[c]:.2f} {class_names[c]}" for c in largest)


def original(source: Source, index: int) -> np.ndarray:
    """The stored image of example `index`, uint8 [H, W, C]."""
    position = int(np.flatnonzero(source.index == index)[0])
    if source.images is not None:
        return source.images[position]
    if source.decode is not None:
        return source.decode(source.read([position])[0])
    from ssljax.data import crops

    # Three channels, even if the network sees grey images.
    return np.asarray(crops.decode(source.read([position])[0], 3))


def caption(
    drawn: views.Draw, augment: ConfigDict, channels: int, policy: Sequence[policies.Step] = ()
) -> str:
    """The caption of one view: the random parameters that were drawn for it.

    E.g. `c1.32 b0.77 h-0.05 s1.20` (the jitter, in the order applied) above `grey blur 0.8 solarize`.
    The operations of a policy and their arguments come first, e.g. `Equalize 0` above `Rotate -27.3`.
    """
    jitter: list[str] = []
    rest: list[str] = []
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
    if not lines:
        return "affine only" if augment.crop == "affine" else "crop only"
    return "\n".join(lines)


def title(config: ConfigDict) -> str:
    """The title of the sheet: the config, the ranges of its augmentation, and what each view overrides."""
    data = config.data
    run = f"{config.method}:{config.preset}, {data.source}, {data.image_size} px, seed {config.seed}"
    lines = [run, _geometry(config.augment, data.crop_on), _colour(config.augment)]
    if "patches" in config:
        own = config.patches.to_dict()
        lines.append("each patch: " + ", ".join(f"{key} {value}" for key, value in own.items()))
    for name in view_names(config):
        own = ", ".join(f"{key} {value}" for key, value in config.views[name].to_dict().items())
        if own:
            lines.append(f"{name}: {own}")
    return "\n".join(lines)


def annotated_title(config: ConfigDict) -> str:
    """The title of a sheet of images with boxes or masks."""
    data, sizes = config.data, config.annotated
    first = f"{config.method}:{config.preset}, {data.source}, {data.annotations}, seed {config.seed}"
    if data.annotations == "masks":
        low, high = sizes.scales
        return f"{first}\nresized by {low} to {high}, cut to {sizes.crop} px; white: without a class"
    sides = ", ".join(map(str, sizes.short_sides))
    return f"{first}\nshorter side {sides}, longer at most {sizes.long_side} px"


def _geometry(a: ConfigDict, crop_on: str) -> str:
    """The crop, flip and policy of an `augment` section in words."""
    if a.crop == "affine":
        crop = f"affine: rotation {a.rotate} deg, shift {a.shift}, zoom {a.zoom}, shear {a.shear} deg"
    elif a.crop == "none":
        crop = f"no crop, on the {crop_on}"
    elif a.crop == "square":
        crop = f"square (area {a.min_area:.2f} of the central one, {a.interpolation}) on the {crop_on}"
    elif a.crop == "squash":
        crop = f"square of the squashed image (area {a.min_area:.2f}, {a.interpolation}) on the {crop_on}"
    else:
        by = " by Pillow" if crop_on == "host" and a.resize == "pillow" else ""
        crop = f"crop {a.crop} (area {a.min_area} to {a.max_area}, {a.interpolation}{by}) on the {crop_on}"
    flips = "flips" if a.flip else "no flips"
    policy = "" if a.policy == "none" else f", {a.policy}"
    return f"{crop}, {flips}{policy}"


def _colour(a: ConfigDict) -> str:
    """The operations of an `augment` section that follow the crop, in words."""
    first = a.jitter_probability and a.grayscale_probability and a.grayscale_order == "before"
    grey = f"grayscale p {a.grayscale_probability}{' before the jitter' if first else ''}"
    text = f"{grey}, blur p {a.blur_probability}"
    if a.jitter_probability:
        letters = ", ".join(OPERATIONS)
        jitter = f"jitter ({a.jitter}) strength {a.jitter_strength} with p {a.jitter_probability}"
        text = f"{jitter}, {text} (captions: {letters} in the order applied)"
    if a.solarize_probability:
        text += f", solarize p {a.solarize_probability}"
    if a.erasing_probability:
        text += f", erasing p {a.erasing_probability}"
    return text


def sheet(
    path: Path, heading: str, originals: list[np.ndarray], columns: list[Column], labels: list[str]
) -> None:
    """Draws the contact sheet. Views share one scale; each stored image has its own.

    All pictures lie on one axis whose unit is an inch: with an axis each they take five times as long.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    largest = max(column.images.shape[1] for column in columns if column.size == 1.0)
    widest = max(column.images.shape[2] for column in columns if column.size == 1.0)
    captions = [labels, *(column.captions for column in columns)]
    lines = max(text.count("\n") + 1 for texts in captions for text in texts)
    above = 0.09 + 0.15 * lines  # the room of a caption
    sizes = [1.0, *(column.size for column in columns)]
    left = np.concatenate([[0.0], np.cumsum(sizes)]) * (SIDE + AIR)
    tall = max(size if size != 1.0 else largest / widest for size in sizes) * SIDE
    top = [0.35 + above + row * (tall + above) for row in range(len(labels))]

    room = 0.12 + 0.19 * (heading.count("\n") + 1)  # of the heading
    inches = (left[-1] + AIR, top[-1] + tall + AIR + room)
    figure = Figure(figsize=inches)
    FigureCanvasAgg(figure)
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0 - room / inches[1]))

    for j, size in enumerate(sizes):
        middle = left[j] + SIDE * size / 2
        if j and columns[j - 1].name:
            axis.text(middle, 0.2, columns[j - 1].name, fontsize=10, weight="bold", ha="center", va="center")
        for b, text in enumerate(captions[j]):
            picture = columns[j - 1].images[b] if j else originals[b]
            own = max(picture.shape[0] / tall, picture.shape[1] / (SIDE * size))
            _show(axis, picture, widest / SIDE if j and size == 1.0 else own, (middle, top[b]), text)
    axis.set(xlim=(-AIR, left[-1]), ylim=(inches[1] - room, 0.0))
    axis.set_axis_off()
    figure.suptitle(heading, fontsize=11, y=1.0 - 0.07 / inches[1], va="top")
    figure.savefig(path, dpi=110)


def _show(axis: Axes, picture: np.ndarray, inch: float, place: tuple[float, float], text: str) -> None:
    """Shows one picture [H, W, C], with so many pixels per inch, below its place and with a text above."""
    x, y = place
    height, width = (length / inch for length in picture.shape[:2])
    white = 255 if picture.dtype == np.uint8 else 1
    extent = (x - width / 2, x + width / 2, y + height, y)
    # Matplotlib uses cmap, vmin and vmax only for pictures of one channel.
    axis.imshow(picture.squeeze(), extent=extent, cmap="gray", vmin=0, vmax=white, interpolation="nearest")
    axis.text(x, y - 0.05, text, fontsize=8, ha="center", va="bottom")


if __name__ == "__main__":
    cli.run(main)
