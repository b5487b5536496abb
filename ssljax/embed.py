"""Features of a folder of images, by a trained network.

    ssljax embed --workdir runs/digits --images photos --out photos.npz        # or photos.parquet, photos.csv

Every image at any depth below the folder is looked at; neither labels nor the training data are
needed. The file has one row per image, in the order of the paths: its path, and its features as float32. In
a .npz they are the arrays `path` [N] and `features` [N, D], in a .parquet file the columns `path` and
`features` (a list), in a .csv file the columns `path`, `f0`, `f1`, ...

A file that cannot be read stops the command, or is left out and named with `--on_bad_image skip`. Of a run
with stages the last one is taken, or `--stage NAME`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssljax import cli
from ssljax.data import folder


def write_npz(file: Path, paths: list[str], features: np.ndarray) -> None:
    """Arrays `path` [N] and `features` float32 [N, D]."""
    with file.open("wb") as out:  # savez would append .npz to another name
        np.savez(out, path=np.array(paths), features=features)


def write_csv(file: Path, paths: list[str], features: np.ndarray) -> None:
    """Columns `path`, `f0`, `f1`, ...; as many digits as tell float32 numbers apart."""
    import csv

    with file.open("w", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["path", *(f"f{i}" for i in range(features.shape[1]))])
        for path, row in zip(paths, features, strict=True):
            rows.writerow([path, *(f"{value:.9g}" for value in row)])


def write_parquet(file: Path, paths: list[str], features: np.ndarray) -> None:
    """Columns `path` (string) and `features` (a list of D float32)."""
    import pyarrow
    from pyarrow import parquet

    rows = pyarrow.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
    parquet.write_table(pyarrow.table({"path": paths, "features": rows}), file)


WRITERS: dict[str, Callable[[Path, list[str], np.ndarray], None]] = {
    ".npz": write_npz,
    ".parquet": write_parquet,
    ".csv": write_csv,
}


def embed(workdir: str, images: str, out: str, *, stage: str = "", on_bad_image: str = "error") -> str:
    """Writes the features of the images below a folder.

    Args:
        workdir: of the run.
        images: the folder.
        out: the file to write; its ending says the format.
        stage: of a run with stages.
        on_bad_image: "error" or "skip".

    Returns:
        what was written, for the terminal.

    Raises:
        ValueError: another ending, a file in place of the folder, or an unreadable image (named).
        FileNotFoundError: there is no run, no image, or no folder to write to.
    """
    file = Path(out)
    if file.suffix not in WRITERS:
        raise ValueError(f"--out={out}: the file must end in {', '.join(WRITERS)}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"--out={out}: there is no folder {file.parent}, make it first")
    if Path(images).is_file():
        raise ValueError(f"--images={images} is a file: name its folder, --images={Path(images).parent}")
    if not Path(images).is_dir():
        raise FileNotFoundError(f"--images={images}: there is no such folder")
    paths, _, _ = folder.list_loose(Path(images))

    from ssljax.network import load
    from ssljax.run import memory

    network = load(workdir, stage)
    skipped = ""
    with memory.explained(network.config, stage, verb="embed"):
        if on_bad_image == "skip":
            rows, features = network.encode_readable(paths, progress=True)
            skipped = f", {len(paths) - len(rows)} of {len(paths)} files left out"
            paths = [paths[i] for i in rows]
        else:
            features = network.encode(paths, progress=True)

    unfinished = file.with_name(file.name + ".part")
    WRITERS[file.suffix](unfinished, paths, features)
    os.replace(unfinished, file)
    count, dim = features.shape
    return f"{file}: {count:,} images, {dim} features each{skipped}"


def main(argv: list[str] | None = None) -> None:
    """`ssljax embed`."""
    parser = argparse.ArgumentParser(
        prog="ssljax embed", description="Features of a folder of images, by a trained network."
    )
    parser.add_argument("--workdir", required=True, help="the folder of a run of `ssljax train`")
    parser.add_argument("--images", required=True, help="a folder of images")
    parser.add_argument("--out", required=True, help="the file to write: .npz, .parquet or .csv")
    parser.add_argument("--stage", default="", help="of a run with stages; the last by default")
    parser.add_argument("--on_bad_image", default="error", choices=("error", "skip"))
    flags = parser.parse_args(argv)
    with cli.answered("embed"):
        print(embed(**vars(flags)))


if __name__ == "__main__":
    cli.run(main)
