"""What a network finds in annotated images beside what is there: boxes or masks over the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssljax.data.annotate import IGNORED
from ssljax.pictures import figures
from ssljax.pictures.overlays import Cell, sheet
from ssljax.pictures.page import Block
from ssljax.pictures.tables import Group, data_name, pick
from ssljax.protocols.bench import Bench

IMAGES = 8  # test images that are shown, evenly spaced
SIDE = 240  # largest side of one, in pixels
LEVELS = 8  # steps between the values of its pixels, see `gallery`
SURE = 0.3  # smallest score of a box that is shown
ACROSS = 2  # images in a row, each with its truth and with what was found


def looked(bench: Bench) -> dict[str, Any]:
    """Some test images with what is there and what the network finds. All hosts take part.

    Args:
        bench: of a run's network that finds something in images.

    Returns:
        `found`, the number of images, and for image i `found/i/image` uint8 [H, W, 3] and `true_mask` and
        `mask` uint8 [H, W]; or instead of the masks `true_boxes` float16 [G, 4], `true_classes` [G], `boxes`
        [K, 4], `classes` [K] and `scores` [K], in pixels of the image.
    """
    assert bench.predicted is not None, "only for what finds something in images"
    rows = np.unique(np.linspace(0, len(bench.test) - 1, IMAGES).astype(np.int64))
    fields: dict[str, Any] = {}
    count = 0
    for batch, found in bench.predicted(bench.test.select(rows)):
        for row in range(len(batch["index"])):
            one, its = ({name: values[row] for name, values in part.items()} for part in (batch, found))
            for name, value in reduced(one, its).items():
                fields[f"found/{count}/{name}"] = value
            count += 1
    return fields | {"found": count}


def save(path: Path, fields: Mapping[str, Any], bench: Bench, *, config_hash: str) -> None:
    """Saves the gallery of an annotated run.

    Args:
        path: the npz to write.
        fields: from `looked`.
        bench: of the run's network.
        config_hash: see `gallery.save`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        **fields,
        class_names=np.array(bench.test.class_names),
        preset=bench.config.preset,
        config_hash=config_hash,
        seed=bench.config.seed,
    )


def reduced(batch: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The fields of one image, without its padding and at no more than SIDE pixels.

    Args:
        batch: its row of the batch.
        found: its row of what was found.
    """
    height, width = batch["size"]
    stride = -(-max(height, width) // SIDE)
    inside = (slice(0, height, stride), slice(0, width, stride))
    image = np.rint(batch["image"][inside] / LEVELS) * LEVELS
    fields = {"image": np.clip(image, 0, 255).astype(np.uint8)}
    if "mask" in found:
        return fields | {"true_mask": batch["mask"][inside], "mask": found["mask"][inside]}
    there = batch["classes"] >= 0
    sure = (found["classes"] >= 0) & (found["scores"] >= SURE)
    return fields | {
        "true_boxes": (batch["boxes"][there] / stride).astype(np.float16),
        "true_classes": batch["classes"][there],
        "boxes": (found["boxes"][sure] / stride).astype(np.float16),
        "classes": found["classes"][sure],
        "scores": found["scores"][sure].astype(np.float16),
    }


def precision_blocks(group: Group, folder: Path) -> list[Block]:
    """Precision against recall of the newest detector of a group; none if it has none."""
    rows = pick(group.rows, protocol="detection", metric="AP")
    if not rows:
        return []
    row = max(rows, key=lambda row: row["time"])
    curves = {f"IoU {iou}": np.array(each) for iou, each in row["settings"].get("precision", {}).items()}
    if not curves:
        return []
    file = f"precision-{group.slug}.png"
    figures.precision_recall(folder / file, curves, f"{data_name(row['data'])}: boxes found")
    rules = "VOC" if row["settings"]["rules"] == "voc" else "COCO"  # some rows name the data
    return [Block("img", (file, f"Precision against recall of boxes, mean over classes, by {rules}'s rules"))]


def found_block(
    g: Mapping[str, np.ndarray], names: Sequence[str], data: str, slug: str, folder: Path
) -> Block:
    """Held-out images with what is there, and with what was found."""
    pairs = []
    for i in range(int(g["found"])):
        prefix = f"found/{i}/"
        its = {key.removeprefix(prefix): g[key] for key in g if key.startswith(prefix)}
        pairs.append(_masks(its, names) if "mask" in its else _boxes(its, names))
    rows = [[cell for pair in pairs[i : i + ACROSS] for cell in pair] for i in range(0, len(pairs), ACROSS)]
    rows[-1] += [Cell(np.full((2, 2, 3), 255, np.uint8))] * (len(rows[0]) - len(rows[-1]))
    kind = "masks" if "found/0/mask" in g else "boxes"
    file = f"found-{slug}.png"
    sheet(folder / file, f"{data}: {kind}, true and found", rows)
    if kind == "masks":
        text = "pixels without a class are white, the background is clear"
    else:
        text = f"with a score of at least {SURE}"
    return Block(
        "img", (file, f"Test images with true {kind} and with those found, seed {g['seed']}; {text}")
    )


def _masks(its: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Cell]:
    true, mask = its["true_mask"], its["mask"]
    counts = true != IGNORED
    right = (true == mask)[counts].mean() if counts.any() else 1.0
    words = [", ".join(names[c] for c in np.unique(m) if 0 < c < IGNORED) for m in (true, mask)]
    return [
        Cell(its["image"], f"true: {words[0] or 'background'}", mask=true),
        Cell(its["image"], f"{100 * right:.0f} % of pixels: {words[1] or 'background'}", mask=mask),
    ]


def _boxes(its: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Cell]:
    true = [names[c] for c in its["true_classes"]]
    scored = [
        f"{names[c]} {score:.2f}"
        for c, score in zip(its["classes"], its["scores"].astype(float), strict=True)
    ]
    return [
        Cell(its["image"], "true", its["true_boxes"].astype(float), true, its["true_classes"].tolist()),
        Cell(its["image"], "found", its["boxes"].astype(float), scored, its["classes"].tolist()),
    ]
