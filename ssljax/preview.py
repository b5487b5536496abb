"""What the network will see: a contact sheet of images and their views.

    ssljax preview --config configs/simclr.py:digits --workdir runs/digits      # writes runs/digits/preview.png

One row an example of the run's first batch: the image as it is stored, then views, each under what was drawn for it. The first views
are those of the run's first step, pixel for pixel. Where a method mixes images (DeiT), mixtures of first views stand last, each under its
label's weights; row b is mixed with row B-1-b of the picture. Of a config with stages every stage gets its own WORKDIR/STAGE/preview.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax import cli
from ssljax.data import loader, mixing, policies, sources, views
from ssljax.data.source import Source

ROWS, VIEWS = 8, 6
OPERATIONS = "bcsh"         # brightness, contrast, saturation, hue


def main(argv: list[str] | None = None) -> None:
    """Writes WORKDIR/preview.png and prints its path."""
    flags = cli.parse("preview", argv)
    stages = {name: flags.config[name] for name in flags.config.stages} if "stages" in flags.config else {"": flags.config}
    for name, config in stages.items():
        originals, made, drawn, labels = examples(config)
        path = Path(flags.workdir) / name / "preview.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet(path, title(config), originals, made, drawn, labels)
        print(path)


def examples(config: ConfigDict) -> tuple[list[np.ndarray], np.ndarray, list[list[str]], list[str]]:
    """Originals uint8 [H, W, C], views (and mixtures) float32 [B, V, S, S, C] in [0, 1], a caption a view and a label a row."""
    source = sources.load(config.data, "train")
    config = config.copy_and_resolve_references().unlock()
    config.batch_size, config.data.views, config.data.repeats = min(ROWS, len(source)), VIEWS, 1
    batches = loader.train_batches(source, config)
    batch = next(batches)
    batches.close()

    key = jax.random.fold_in(jax.random.key(config.seed), 0)               # of step 0, as ssljax/step.py folds it
    image, index = jax.numpy.asarray(batch["image"]), jax.numpy.asarray(batch["index"])
    made = views.random_views(image, index, key, config.augment, size=config.data.image_size, num_views=VIEWS)
    mixed, weights = [], []
    if "mix" in config and source.class_names:
        mixed, weights = mixtures(made[:, 0], batch["label"], source.class_names, key, config)
    pictures = np.concatenate([made, *mixed], axis=1) * np.float32(config.augment.std) + np.float32(config.augment.mean)
    drawn = jax.tree.map(np.asarray, views.draws(index, key, config.augment, VIEWS))
    captions = [[caption(jax.tree.map(lambda leaf, i=i, v=v: leaf[i, v], drawn), config,
                         policies.draw((config.seed, 0, batch["index"][i], v), config.augment))
                 for v in range(VIEWS)] for i in range(len(index))]
    captions = [[*row, *(column[i] for column in weights)] for i, row in enumerate(captions)]
    return ([original(source, i) for i in batch["index"]], np.clip(pictures, 0.0, 1.0), captions,
            [source.class_names[label] if label >= 0 else "" for label in batch["label"]])


def mixtures(first: jax.Array, labels: np.ndarray, class_names: tuple[str, ...], key: jax.Array,
             config: ConfigDict) -> tuple[list[np.ndarray], list[list[str]]]:
    """By mixup and by CutMix, those that are on: images [B, 1, S, S, C], normalised, and the two heaviest labels of each row."""
    images, captions, names = [], [], np.array(class_names)
    for kind in ("mixup_alpha", "cutmix_alpha"):
        if config.mix[kind] and len(first) % 2 == 0:
            alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0} | {kind: config.mix[kind]}
            image, target = mixing.mix(first, mixing.smoothed_one_hot(jax.numpy.asarray(labels), len(names), 0.0), key, **alphas)
            images.append(np.asarray(image)[:, None])
            heaviest = [(row, [c for c in np.argsort(-row)[:2] if row[c] > 0]) for row in np.asarray(target)]
            captions.append(["\n".join(f"{row[c]:.2f} {names[c]}" for c in two) for row, two in heaviest])
    return images, captions


def original(source: Source, index: int) -> np.ndarray:
    """The stored image of example `index`, uint8 [H, W, C]."""
    position = int(np.flatnonzero(source.index == index)[0])
    if source.images is not None:
        return source.images[position]
    from ssljax.data import crops
    return np.asarray(crops.decode(source.read([position])[0], 3))          # in colour even where the network sees grey


def caption(drawn: views.Draw, config: ConfigDict, policy: Sequence[policies.Step] = ()) -> str:
    """What was drawn for one view, e.g. `c1.32 b0.77 h-0.05 s1.20` (the jitter's operations in their order) over `grey blur 0.8`.

    With a policy its operations and their arguments come first, e.g. `Equalize 0` over `Rotate -27.3`.
    """
    jitter, rest = [], []
    if drawn.apply_jitter:
        jitter = [f"{OPERATIONS[i]}{drawn.jitter[i]:.2f}" for i in np.argsort(drawn.jitter.rank) if i < 2 or config.data.channels == 3]
    if drawn.apply_grayscale and config.data.channels == 3:
        rest.append("grey")
    if drawn.apply_blur:
        rest.append(f"blur {drawn.sigma:.1f}")
    lines = [f"{step.op} {step.argument:.3g}" for step in policy] + [" ".join(words) for words in (jitter, rest) if words]
    return "\n".join(lines) or ("affine only" if config.augment.crop == "affine" else "crop only")


def title(config: ConfigDict) -> str:
    """The config and the ranges it draws from."""
    a, s = config.augment, config.augment.jitter_strength
    crop = f"crop {a.crop} (area from {a.min_area}) on the {config.data.crop_on}"
    if a.crop == "affine":
        crop = f"affine: rotation {a.rotate} deg, shift {a.shift}, zoom {a.zoom}, shear {a.shear} deg"
    policy = "" if a.policy == "none" else f", {a.policy}"
    color = (f"jitter strength {s} with p {a.jitter_probability}, grayscale p {a.grayscale_probability}, blur p {a.blur_probability} "
             f"(captions: {', '.join(OPERATIONS)} in the order applied)")
    if a.erasing_probability:
        color += f", erasing p {a.erasing_probability}"
    return (f"{config.method}:{config.preset}, {config.data.source}, {config.data.image_size} px, seed {config.seed}\n"
            f"{crop}, {'flips' if a.flip else 'no flips'}{policy}\n{color}")


def sheet(path: Path, heading: str, originals: list[np.ndarray], made: np.ndarray, captions: list[list[str]], labels: list[str]) -> None:
    """Draws the contact sheet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = made.shape[:2]
    figure = Figure(figsize=(2.1 * (columns + 1), 2.2 * rows + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns + 1, squeeze=False)
    for i in range(rows):
        pictures = [(originals[i], labels[i]), *zip(made[i], captions[i], strict=True)]
        for axes, (picture, text) in zip(grid[i], pictures, strict=True):
            white = 255 if picture.dtype == np.uint8 else 1
            axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=white, interpolation="nearest")     # cmap is for one channel only
            axes.set_title(text, fontsize=8)
            axes.set_axis_off()
    figure.suptitle(heading, fontsize=11)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
