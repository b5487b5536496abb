"""Download and build a data set once; training never downloads.

    ssljax prepare cifar10
    ssljax prepare tfds:imagenet2012 --data_dir gs://bucket/tfds      # needs the two archives in <data_dir>/downloads/manual
    ssljax prepare tfds:NAME --data_dir D --file_format array_record  # also converts a copy stored as TFRecord

TensorFlow Datasets does the work. The format is array_record unless asked otherwise: it alone can be read at any index.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

RETRIES = 3  # of a failing connection. TFDS's 10, with waits that double, take 200 seconds to say that there is no network


def main(argv: list[str] | None = None) -> None:
    """Prepares the data set named on the command line and prints where it is.

    Raises:
        SystemExit: unknown data set, no network, archives that must be fetched by hand; the message says what to do.
    """
    parser = argparse.ArgumentParser(
        prog="ssljax prepare", description="Download and build a data set once, with TensorFlow Datasets."
    )
    parser.add_argument("name", help="fashion_mnist, cifar10, or tfds:NAME (tfds:NAME/CONFIG)")
    parser.add_argument(
        "--data_dir", default="", help="where it goes; default: TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    parser.add_argument("--file_format", default="array_record", choices=("array_record", "tfrecord"))
    flags = parser.parse_args(argv)
    builder = prepare(flags.name.removeprefix("tfds:"), flags.data_dir, flags.file_format)
    sizes = ", ".join(f"{name} {info.num_examples:,}" for name, info in builder.info.splits.items())
    print(f"{builder.info.full_name}: {sizes} ({builder.info.dataset_size}) in {builder.data_path}")
    print(
        f"use it with --config.data.source=tfds:{flags.name.removeprefix('tfds:')}"
        + (f" --config.data.data_dir={flags.data_dir}" if flags.data_dir else "")
    )


def prepare(name: str, data_dir: str, file_format: str) -> Any:
    """Builds `name` in `file_format` unless it is there already, and returns its TFDS builder."""
    from ssljax.data import crops, records

    crops.tensorflow()
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
        if not builder.info.splits:
            _build(tfds.builder(name, data_dir=data_dir or None, file_format=file_format), data_dir)
        elif (
            file_format == "array_record"
            and tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats()
        ):
            records.convert(builder)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name.split("/")[0], tfds.list_builders(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise SystemExit(f"ssljax prepare: TensorFlow Datasets has no data set {name!r}{hint}") from error
    return records.prepared(name, data_dir)


def _build(builder: Any, data_dir: str) -> None:
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = RETRIES
    try:
        builder.download_and_prepare()
    except AssertionError as error:  # TFDS's way to ask for archives that need a registration
        raise SystemExit(
            f"ssljax prepare: {builder.name} cannot be downloaded automatically. {error}"
        ) from error
    except OSError as error:
        where = Path(data_dir or "~/tensorflow_datasets")
        raise SystemExit(
            f"ssljax prepare: {builder.name} could not be downloaded ({type(error).__name__}: {error}). Without a network, "
            f"prepare it on another machine and copy the folder {builder.name} into {where}"
        ) from error


if __name__ == "__main__":
    main()
