"""Retrieval of images of the same place or thing: mean average precision with frozen features.

    ssljax evaluate --workdir RUN --protocols retrieval --config.evaluate.retrieval=DIR

Oxford5k, Paris6k, their revisited forms, and any folder with an index.json or class folders (`data/landmarks`
says how they lie). A convolutional network gives R-MAC descriptors of its last feature map, as in DeepCluster
(section 4.6), at one scale and without query expansion. A vision transformer and raw pixels give their
features of the image as a square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ssljax.data import landmarks, sampler
from ssljax.data.landmarks import Box, Landmarks
from ssljax.data.source import Source
from ssljax.protocols import rmac
from ssljax.protocols.bench import Bench
from ssljax.protocols.ranking import mean_ap, precision_at_recalls, trapezoid
from ssljax.types import Measurement, Protocol

EXAMPLES = 6  # queries of a picture
NEAREST = 6  # images beside each of them
SIDE = 64  # of these, in pixels
PCA_IMAGES = 500  # training images, of 20 regions each, that whitening is learned on

Vectors = Callable[[np.ndarray, Box | None], np.ndarray]
"""A decoded image uint8 [H, W, C] and the part to look at -> vectors [R, D] with unit norm."""


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement for each folder, under the name `retrieval_FOLDER`."""
    vectors = vectors_of(bench)
    whitening, learned_on = whitening_of(bench, vectors)
    for path in folders(bench):
        found = landmarks.load(path)
        database = described(bench, vectors, whitening, found.files, [None] * len(found.files))
        if found.protocol == "instances":
            position = {file: i for i, file in enumerate(found.files)}
            queries = database[[position[file] for file in found.queries]]
        else:
            queries = described(bench, vectors, whitening, found.queries, found.boxes)
        values, detail = scores(queries @ database.T, found)
        settings = {
            "protocol": found.protocol,
            "images": len(found.files),
            "descriptor": "features" if bench.last_map is None else "R-MAC",
            "dim": database.shape[1],
            "whitened_on": learned_on,
            "size": bench.config.data.image_size if bench.last_map is None else longest(bench),
            **detail,
        }
        name = f"retrieval_{Path(path).expanduser().resolve().name}"
        shown = examples(queries @ database.T, found)
        yield {"protocol": name, "settings": settings, **values, "n": len(found.queries), "shown": shown}


def examples(similarity: np.ndarray, found: Landmarks) -> dict[str, np.ndarray]:
    """What a picture of a set shows: some queries, the nearest images, and precision against recall.

    Args:
        similarity: [Q, N], from each query to every image of the database.
        found: the set. Of its levels of difficulty, medium is shown.

    Returns:
        `query` uint8 [q, S, S, 3], evenly spaced among the queries with something to find; their `ap` [q], in
        percent; `nearest` uint8 [q, k, S, S, 3] and whether they are `right` bool [q, k], without junk; and
        the mean over all queries of `precision_at_recalls`, `precision` [11].
    """
    wanted, junk = found.found["medium" if "medium" in found.found else ""]
    asked = [i for i, each in enumerate(wanted) if len(each)]
    curves = [precision_at_recalls(similarity[i], wanted[i], junk[i]) for i in asked]
    rows = np.unique(np.linspace(0, len(asked) - 1, EXAMPLES).astype(int))
    pictures: dict[str, list[Any]] = {name: [] for name in ("query", "ap", "nearest", "right")}
    for i in (asked[row] for row in rows):
        order = np.argsort(-similarity[i], kind="stable")
        near = order[~np.isin(order, junk[i])][:NEAREST]
        pictures["query"].append(
            landmarks.squashed(landmarks.read(found.queries[i], 3), SIDE, found.boxes[i])
        )
        pictures["ap"].append(100.0 * trapezoid(similarity[i], wanted[i], junk[i])[0])
        pictures["nearest"].append(
            [landmarks.squashed(landmarks.read(found.files[j], 3), SIDE, None) for j in near]
        )
        pictures["right"].append(np.isin(near, wanted[i]))
    return {**{name: np.array(each) for name, each in pictures.items()}, "precision": np.mean(curves, axis=0)}


def described(
    bench: Bench,
    vectors: Vectors,
    whitening: rmac.Whitening | None,
    files: Sequence[str],
    boxes: Sequence[Box | None],
) -> np.ndarray:
    """The descriptors of images, [N, K]."""
    channels = bench.config.data.channels
    images = ((landmarks.read(file, channels), box) for file, box in zip(files, boxes, strict=True))
    return np.stack([rmac.descriptor(vectors(image, box), whitening) for image, box in images])


def scores(similarity: np.ndarray, found: Landmarks) -> tuple[dict[str, float], dict[str, Any]]:
    """The metrics of a set in percent, and what its settings say in detail.

    Args:
        similarity: [Q, N], from each query to every image of the database.
        found: the set.
    """
    values = {}
    detail: dict[str, Any] = {}
    for name, (wanted, junk) in found.found.items():
        mean, each, precisions = mean_ap(similarity, wanted, junk)
        values[f"map_{name}" if name else "map"] = 100.0 * mean
        at = f"precision_at_{name}" if name else "precision_at"
        detail[at] = {str(k): round(100.0 * p, 3) for k, p in precisions.items()}
        kinds = sorted(set(found.kinds) - {""})
        if kinds:
            rows = {kind: np.array([kind == one for one in found.kinds]) for kind in kinds}
            detail["map_by_kind"] = {k: round(100.0 * float(np.nanmean(each[r])), 3) for k, r in rows.items()}
    return values, detail


def folders(bench: Bench) -> list[str]:
    """The folders that `evaluate.retrieval` names."""
    return [path.strip() for path in bench.config.evaluate.retrieval.split(",") if path.strip()]


def longest(bench: Bench) -> int:
    """The longer side of the images: 1024 pixels for a network trained at 224, in proportion for others."""
    return bench.config.evaluate.retrieval_size or round(1024 / 224 * bench.config.data.image_size)


def vectors_of(bench: Bench) -> Vectors:
    """How an image becomes vectors: of its regions for a convolutional network, else one vector."""
    if bench.last_map is None:
        side = bench.config.data.image_size

        def whole(image: np.ndarray, box: Box | None) -> np.ndarray:
            assert bench.encode is not None, "every bench of `ssljax evaluate` encodes images"
            return np.asarray(rmac.unit(bench.encode(landmarks.squashed(image, side, box)[None])))

        return whole

    side = longest(bench)
    reduce = jax.jit(rmac.region_vectors)

    def of_regions(image: np.ndarray, box: Box | None) -> np.ndarray:
        assert bench.last_map is not None
        return bench.last_map(landmarks.resized(image, side, box)[None], reduce)[0]

    return of_regions


def whitening_of(bench: Bench, vectors: Vectors) -> tuple[rmac.Whitening | None, str]:
    """The whitening that `evaluate.retrieval_pca` asks for, and what it was learned on, for the record."""
    where = bench.config.evaluate.retrieval_pca
    if bench.last_map is None or where == "none":
        return None, "none"
    if where == "train":
        rows = [vectors(image, None) for image in training_images(bench.train, bench.config.data.channels)]
        learned_on = f"{len(rows)} training images of {bench.train.name.rpartition('/')[2]}"
    else:
        files = landmarks.load(where).files
        rows = [vectors(landmarks.read(file, bench.config.data.channels), None) for file in files]
        learned_on = f"{len(files)} images of {Path(where).expanduser().resolve().name}"
    return rmac.fit(np.concatenate(rows)), learned_on


def training_images(source: Source, channels: int) -> Iterator[np.ndarray]:
    """PCA_IMAGES of the training images, the same for all runs: uint8 [H, W, C]."""
    for position in np.sort(sampler.order(0, 0, len(source))[:PCA_IMAGES]):
        if source.images is not None:
            yield source.images[position]
        else:
            yield landmarks.pixels(source.read([position])[0], channels, source.describe(position))


def refuse(bench: Bench) -> str:
    """The folders must be named and hold sets for retrieval."""
    if not folders(bench):
        return (
            "retrieval needs config.evaluate.retrieval, a folder with ROxford, RParis, Oxford5k, Paris6k, an "
            "index.json or class folders (docs/transfer.md)"
        )
    pca = bench.config.evaluate.retrieval_pca
    try:
        for path in folders(bench) + ([] if pca in ("train", "none") else [pca]):
            landmarks.load(path)
    except (FileNotFoundError, ValueError) as error:
        return f"retrieval: {error}"
    return ""


PROTOCOL = Protocol(
    reads="images", metrics=("map", "map_medium", "map_hard", "map_easy"), judge=judge, refuse=refuse
)
