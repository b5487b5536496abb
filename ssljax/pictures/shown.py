"""A gallery as figures: features, neighbours, attention maps, clusters and so on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from ssljax.pictures import figures
from ssljax.pictures.findings import found_block
from ssljax.pictures.page import Block
from ssljax.pictures.tables import Group, data_name


def gallery_blocks(path: Path, group: Group, folder: Path) -> list[Block]:
    """The figures of a gallery, of what it has: features, neighbours, attention maps, clusters and so on."""
    return drawn(path, data_name(group.rows[0]["data"]), group.slug, folder)


def drawn(path: Path, data: str, slug: str, folder: Path, skip: Sequence[str] = ()) -> list[Block]:
    """Draws the figures of a gallery into a folder.

    Args:
        path: of the gallery.
        data: the name of the data, for the titles.
        slug: the end of the files' names.
        folder: where the PNGs go.
        skip: the beginnings of the names of files that are not drawn.
    """
    g = np.load(path)
    names = [str(name) for name in g["class_names"]]
    kinds = (
        ("features", "neighbour", features_block),
        ("neighbours", "neighbour", neighbours_block),
        ("masked", "masked", masked_block),
        ("attention", "attention", attention_block),
        ("reconstruction", "reconstruction", reconstruction_block),
        ("clusters", "cluster", clusters_block),
        ("found", "found", found_block),
    )
    blocks = [
        block(g, names, data, slug, folder) for kind, field, block in kinds if field in g and kind not in skip
    ]
    sets = dict.fromkeys(field.split("/")[0] for field in g.files if field.startswith("retrieval_"))
    for name in () if "retrieval" in skip else sets:
        blocks += retrieval_blocks(g, name, slug, folder)
    return blocks


def retrieval_blocks(g: NpzFile, name: str, slug: str, folder: Path) -> list[Block]:
    """Queries and the images nearest to them, and precision against recall for each kind of features."""
    kinds = [str(kind) for kind in g["kinds"] if f"{name}/{kind}/query" in g]
    first = f"{name}/{kinds[0]}"
    title = name.removeprefix("retrieval_")
    rows = np.arange(len(g[f"{first}/query"]))
    other = len(rows)  # the label of whatever is wrong
    names = [f"AP {value:.0f} %" for value in g[f"{first}/ap"]]
    found = f"{name}-{slug}.png"
    figures.neighbours(
        folder / found,
        g[f"{first}/query"],
        rows,
        g[f"{first}/nearest"],
        np.where(g[f"{first}/right"], rows[:, None], other),
        names,
        f"{title}: nearest images by {figures.name(kinds[0])} features",
        ("query", "an image of another place than the query's"),
    )
    curve = f"{name}-precision-{slug}.png"
    curves = {kind: 100.0 * g[f"{name}/{kind}/precision"] for kind in kinds}
    figures.precision_recall(folder / curve, curves, title)
    return [
        Block("img", (found, f"Queries of {title} and the images found first; a frame marks a wrong one")),
        Block("img", (curve, "Precision against recall, mean over all queries")),
    ]


def features_block(g: NpzFile, names: list[str], data: str, slug: str, folder: Path) -> Block:
    """The t-SNE of raw pixels and of each kind of features, without those of a random network."""
    points = {}
    for kind in ("raw_pixels", *map(str, g["kinds"])):
        if f"points/{kind}" in g and kind != "random_init":
            points[kind] = g[f"points/{kind}"]

    file = f"features-{slug}.png"
    figures.feature_map(folder / file, points, g["labels"], names, data)
    text = (
        f"t-SNE of the features of held-out images, seed {g['seed']}; the projection does not use the labels"
    )
    return Block("img", (file, text))


def neighbours_block(g: NpzFile, names: list[str], data: str, slug: str, folder: Path) -> Block:
    """Held-out images and their nearest training images."""
    file = f"neighbours-{slug}.png"
    figures.neighbours(
        folder / file,
        g["query"],
        g["query_labels"],
        g["neighbour"],
        g["neighbour_labels"],
        names,
        f"{data}: nearest neighbours by {figures.name(str(g['kinds'][0]))} features",
    )
    text = "Held-out images and their nearest training images; a frame marks an image of another class"
    return Block("img", (file, text))


def attention_block(g: NpzFile, names: list[str], data: str, slug: str, folder: Path) -> Block:
    """Attention maps of a vision transformer."""
    file = f"attention-{slug}.png"
    figures.attention(folder / file, g["query"], g["query_labels"], g["attention"], names, data)
    text = (
        "Attention of the class token, and of the distillation token if there is one, in the last block; "
        "mean over the heads"
    )
    return Block("img", (file, text))


def reconstruction_block(g: NpzFile, names: list[str], data: str, slug: str, folder: Path) -> Block:
    """Held-out images and what a tokenizer's codes keep of them."""
    file = f"reconstruction-{slug}.png"
    rows = {"test": g["query"], "of its codes": g["reconstruction"]}
    figures.rows_of_images(folder / file, rows, g["query_labels"], names, f"{data}: reconstructions")
    return Block(
        "img", (file, f"Held-out images, and the images made of their codes alone, seed {g['seed']}")
    )


def masked_block(g: NpzFile, names: list[str], data: str, slug: str, folder: Path) -> Block:
    """Held-out images as BEiT sees them while it pretrains."""
    file = f"masked-{slug}.png"
    rows = {"test": g["query"], "masked": g["masked"]}
    figures.rows_of_images(folder / file, rows, g["query_labels"], names, f"{data}: masked patches")
    return Block("img", (file, f"Held-out images, and what is left of them in pretraining, seed {g['seed']}"))


def clusters_block(g: NpzFile, names: list[str], data: str, slug: str, folder: Path) -> Block:
    """Training images of some clusters."""
    file = f"clusters-{slug}.png"
    figures.clusters(
        folder / file,
        g["cluster"],
        g["cluster_labels"],
        g["cluster_size"],
        names,
        f"{data}: training images of some clusters",
    )
    text = (
        f"Training images of some clusters, largest first, seed {g['seed']}; a frame marks an image outside "
        "the most common class of its row"
    )
    return Block("img", (file, text))
