"""What the network will see: a contact sheet of images and their views.

    ssljax preview --config configs/simclr.py:digits --workdir runs/digits      # writes runs/digits/preview.png

One row an example of the run's first batch: the image as it is stored, then views, each under what was drawn for it. The first views
are those of the run's first step, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax import cli
from ssljax.data import augment, loader, policies, sources

ROWS, VIEWS = 8, 6
OPERATIONS = "bcsh"         # brightness, contrast, saturation, hue


def main(argv: list[str] | None = None) -> None:
    """Writes WORKDIR/preview.png and prints its path."""
    flags = cli.parse("preview", argv)
    config = flags.config
    originals, views, drawn, labels = examples(config)
    path = Path(flags.workdir) / "preview.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(path, title(config), originals, views, drawn, labels)
    print(path)


def examples(config: ConfigDict) -> tuple[list[np.ndarray], np.ndarray, list[list[str]], list[str]]:
    """Originals uint8 [H, W, C], views float32 [B, V, S, S, C] in [0, 1], a caption a view and a label a row."""
    source = sources.load(config.data, "train")
    config = config.copy_and_resolve_references().unlock()
    config.batch_size, config.data.views, config.data.repeats = min(ROWS, len(source)), VIEWS, 1
    batches = loader.train_batches(source, config)
    batch = next(batches)
    batches.close()

    key = jax.random.fold_in(jax.random.key(config.seed), 0)               # of step 0, as ssljax/step.py folds it
    image, index = jax.numpy.asarray(batch["image"]), jax.numpy.asarray(batch["index"])
    views = augment.views(image, index, key, config.augment, size=config.data.image_size, num_views=VIEWS)
    views = np.asarray(views) * np.float32(config.augment.std) + np.float32(config.augment.mean)
    drawn = jax.tree.map(np.asarray, augment.draws(index, key, config.augment, VIEWS))
    captions = [[caption(jax.tree.map(lambda leaf, i=i, v=v: leaf[i, v], drawn), config,
                         policies.draw((config.seed, 0, batch["index"][i], v), config.augment))
                 for v in range(VIEWS)] for i in range(len(index))]
    return ([original(source, i) for i in batch["index"]], np.clip(views, 0.0, 1.0), captions,
            [source.class_names[label] for label in batch["label"]])


def original(source: sources.Source, index: int) -> np.ndarray:
    """The stored image of example `index`, uint8 [H, W, C]."""
    position = int(np.flatnonzero(source.index == index)[0])
    if source.images is not None:
        return source.images[position]
    from ssljax.data import crops
    return np.asarray(crops.decode(source.read([position])[0], 3))          # in colour even where the network sees grey


def caption(drawn: augment.Draw, config: ConfigDict, policy: Sequence[policies.Step] = ()) -> str:
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
    color = f"jitter strength {s} with p {a.jitter_probability}, grayscale p {a.grayscale_probability}, blur p {a.blur_probability}"
    return (f"{config.method}:{config.preset}, {config.data.source}, {config.data.image_size} px, seed {config.seed}\n"
            f"{crop}, {'flips' if a.flip else 'no flips'}{policy}\n{color} (captions: {', '.join(OPERATIONS)} in the order applied)")


def sheet(path: Path, heading: str, originals: list[np.ndarray], views: np.ndarray, captions: list[list[str]], labels: list[str]) -> None:
    """Draws the contact sheet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = views.shape[:2]
    figure = Figure(figsize=(2.1 * (columns + 1), 2.2 * rows + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns + 1, squeeze=False)
    for i in range(rows):
        pictures = [(originals[i], labels[i]), *zip(views[i], captions[i], strict=True)]
        for axes, (picture, text) in zip(grid[i], pictures, strict=True):
            white = 255 if picture.dtype == np.uint8 else 1
            axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=white, interpolation="nearest")     # cmap is for one channel only
            axes.set_title(text, fontsize=8)
            axes.set_axis_off()
    figure.suptitle(heading, fontsize=11)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
