"""Pictures as images in TensorBoard: those of `ssljax preview`, and the gallery of `ssljax evaluate`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from ssljax.pictures.shown import drawn
from ssljax.pictures.tables import data_name
from ssljax.run import writers
from ssljax.run.folder import installed


def show(workdir: str | Path, step: int, pictures: Mapping[str, Path]) -> None:
    """Adds pictures to the event files of a run; nothing, if it has none.

    Args:
        workdir: of the run, one stage.
        step: the number of updates that they are of.
        pictures: name -> a PNG.
    """
    folder = epath.Path(workdir)
    written = (folder / "tensorboard").exists() and installed("tensorflow") and installed("clu")
    if not written or not pictures:
        return
    board = writers.TensorBoard(folder)
    read = {name: Image.open(file, formats=("PNG",)).convert("RGB") for name, file in pictures.items()}
    board.images(step, {name: np.asarray(picture) for name, picture in read.items()})
    board.close()


def show_gallery(workdir: str, step: int, config: ConfigDict, gallery: Path) -> None:
    """Adds what a gallery has, but for the map of features: neighbours, reconstructions and so on.

    Args:
        workdir: of the run, one stage.
        step: of the checkpoint that was evaluated.
        config: of that run.
        gallery: the file of `gallery.save`.
    """
    if not (epath.Path(workdir) / "tensorboard").exists():
        return
    with tempfile.TemporaryDirectory() as place:
        blocks = drawn(gallery, data_name(config.data.source), config.preset, Path(place), skip=("features",))
        files = [Path(place) / block.content[0] for block in blocks]
        show(workdir, step, {file.name.partition("-")[0]: file for file in files})
