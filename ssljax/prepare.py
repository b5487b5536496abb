"""Download and build a data set once; training never downloads.

    ssljax prepare cifar10
    ssljax prepare tfds:imagenet2012 --data_dir gs://bucket/tfds
    ssljax prepare tfds:NAME --data_dir D --file_format array_record
    ssljax prepare hf:OWNER/NAME        # or hf:OWNER/NAME:CONFIG

The second needs ImageNet's two archives in <data_dir>/downloads/manual. The third also converts a copy that
is stored as TFRecord.

TensorFlow Datasets does the work. The default format is array_record, the only one that can be read at any
index. For hf: it is Hugging Face's `datasets`, from the Hub.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

from ssljax import cli

# Retries of a failing connection. TFDS's default of 10, with waits that double, takes 200 seconds to report
# that there is no network.
RETRIES = 3


def main(argv: list[str] | None = None) -> None:
    """Prepare the data set named on the command line and print where it is.

    Raises:
        SystemExit: the data set is unknown, there is no network, or archives must be downloaded by hand. The
            message says what to do.
    """
    parser = argparse.ArgumentParser(
        prog="ssljax prepare", description="Download and build a data set once, with TensorFlow Datasets."
    )
    parser.add_argument("name", help="fashion_mnist, cifar10, tfds:NAME (tfds:NAME/CONFIG) or hf:NAME")
    parser.add_argument(
        "--data_dir", default="", help="where it goes; default: TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    parser.add_argument("--file_format", default="array_record", choices=("array_record", "tfrecord"))
    flags = parser.parse_args(argv)

    if flags.name.startswith("hf:"):
        with cli.answered("prepare"):
            print(prepare_hf(flags.name.removeprefix("hf:"), flags.data_dir))
        return
    name = flags.name.removeprefix("tfds:")
    with cli.answered("prepare"):
        builder = prepare(name, flags.data_dir, flags.file_format)
    sizes = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    print(f"{builder.info.full_name}: {sizes} ({builder.info.dataset_size}) in {builder.data_path}")
    where = f" --config.data.data_dir={flags.data_dir}" if flags.data_dir else ""
    print(f"use it with --config.data.source=tfds:{name}{where}")


def prepare_hf(name: str, data_dir: str) -> str:
    """Download a data set of the Hugging Face Hub and save it as Arrow files, unless it is there already.

    Args:
        name: NAME or NAME:CONFIG.
        data_dir: the folder that its folder is made in; "" = `arrow.PREPARED`.

    Returns:
        what is there, for the terminal.

    Raises:
        ValueError: `datasets` is not installed, or the data set cannot be downloaded.
    """
    from ssljax.data import arrow

    where = Path(data_dir or arrow.PREPARED).expanduser() / name.replace(":", "--")
    if not where.is_dir():
        try:
            import datasets
        except ImportError as error:
            raise ValueError("downloading hf: data sets needs a package: pip install 'ssljax[hf]'") from error
        repository, _, config = name.partition(":")
        try:
            found = datasets.load_dataset(repository, config or None)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"hf:{name} could not be downloaded ({type(error).__name__}: {error}). Without a network, "
                f"load it on another machine, save it with save_to_disk, and copy that folder to {where}"
            ) from error
        unfinished = where.with_name(where.name + ".part")
        found.save_to_disk(unfinished)
        unfinished.rename(where)
    flag = f" --config.data.data_dir={data_dir}" if data_dir else ""
    splits = ", ".join(arrow.files_of(where))
    return f"hf:{name}: {splits} in {where}\nuse it with --config.data.source=hf:{name}{flag}"


def prepare(name: str, data_dir: str, file_format: str) -> Any:
    """Build a data set unless it is there already, and return its TFDS builder.

    Args:
        name: name of the builder, without "tfds:".
        data_dir: where prepared data sets are; "" = TFDS's default.
        file_format: "array_record" or "tfrecord". A copy stored as TFRecord is converted to array_record.

    Raises:
        SystemExit: as for `main`.
    """
    from ssljax.data import crops, records

    crops.tensorflow()
    import tensorflow_datasets as tfds

    where = data_dir or None
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    try:
        builder = tfds.builder(name, data_dir=where)
        if not builder.info.splits:
            _build(tfds.builder(name, data_dir=where, file_format=file_format), data_dir)
        elif file_format == "array_record" and array_record not in builder.info.available_file_formats():
            records.convert(builder)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name.split("/")[0], tfds.list_builders(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise SystemExit(f"ssljax prepare: TensorFlow Datasets has no data set {name!r}{hint}") from error
    return records.prepared(name, data_dir)


def _build(builder: Any, data_dir: str) -> None:
    """Download and build. A failure raises SystemExit with a message that says what to do."""
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = RETRIES
    try:
        builder.download_and_prepare()
    except AssertionError as error:  # this is how TFDS asks for archives that need a registration
        raise SystemExit(
            f"ssljax prepare: {builder.name} cannot be downloaded automatically. {error}"
        ) from error
    except OSError as error:
        where = Path(data_dir or "~/tensorflow_datasets")
        raise SystemExit(
            f"ssljax prepare: {builder.name} could not be downloaded ({type(error).__name__}: {error}). "
            f"Without a network, prepare it on another machine and copy the folder {builder.name} into "
            f"{where}"
        ) from error


if __name__ == "__main__":
    cli.run(main)
