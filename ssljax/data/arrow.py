"""`hf:NAME`: a data set of Hugging Face's `datasets`, read by index through Arrow.

NAME is a folder, or what `ssljax prepare hf:NAME` has downloaded. A folder is

    what DatasetDict.save_to_disk or Dataset.save_to_disk has written
    or one with .arrow or .parquet files of `datasets`, whose names begin with those of their splits, or which
    lie in a folder for each split

Only pyarrow is needed. Arrow files are mapped into memory, so that any image is read from its place on the
disk. Parquet files have no such places: their images are read into memory as they are stored.

The images and labels are found by their types, Image and ClassLabel. Without test or validation a share
`data.holdout` of every class is held out, as from a folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import decode, folder, formats
from ssljax.data.source import Source, digest

PREPARED = "~/.cache/ssljax/datasets"
IMAGES = ("image", "img")  # where several columns are of a type, one of these is taken
LABELS = ("label", "labels", "fine_label")
TESTS = ("test", "validation", "val", "valid")


def load(data: ConfigDict, name: str, split: str) -> Source:
    """Load one split. It is decoded into memory if `data.crop_on` is "device".

    Args:
        data: the `data` section of a config.
        name: NAME of `hf:NAME`.
        split: "train" or "test".

    Raises:
        FileNotFoundError: there is no such data set or split.
        ValueError: it has no images or no labels (`data.labels="none"` works without), or one is unreadable.
        MemoryError: the images of Parquet files, or the pixels, do not fit into memory.
    """
    root = place(name, data.data_dir)
    splits = files_of(root)
    train = data.train_split
    others = TESTS if data.test_split == "test" else (data.test_split,)
    test = next((each for each in others if each in splits), "")
    for wanted in (train, test or data.test_split):
        if wanted not in splits and (wanted == train or wanted != "test"):
            raise FileNotFoundError(
                f"hf:{name}: no split {wanted!r} in {root}; it has {', '.join(splits)}: set data.train_split "
                "and data.test_split"
            )
    stored = test if test and split == "test" else train
    table, features = _table(splits[stored], stored)
    image = _column(features, "Image", IMAGES, name)
    read = _reader(table[image])
    classes: tuple[str, ...] = ()
    if data.labels == "none":
        labels = np.full(table.num_rows, -1, np.int32)
    else:
        column = _column(features, "ClassLabel", LABELS, name)
        classes = tuple(features[column]["names"])
        labels = np.array([-1 if x is None else x for x in table[column].to_pylist()], np.int32)

    rows = np.arange(table.num_rows)
    if not test:
        groups = [f"class {each}" for each in classes] or [f"hf:{name}"]
        held = folder.held_out(np.maximum(labels, 0), groups, data.holdout)
        rows = rows[held if split == "test" else ~held]

    def bytes_of(i: int) -> bytes:
        return formats.plain(read(int(rows[i])), data.background)

    def name_of(i: int) -> str:
        return f"image {rows[i]} of hf:{name}, {stored} ({root})"

    images: np.ndarray | None = None
    skipped: tuple[str, ...] = ()
    if data.crop_on == "device":
        images, good, skipped = decode.decode_all(
            bytes_of,
            name_of,
            len(rows),
            size=data.image_size,
            channels=data.channels,
            on_bad=data.on_bad_image,
        )
        rows = rows[good]
    labels = labels[rows]
    sizes, paths = _described(table[image], rows)
    return Source(
        name=data.source,
        split=split,
        labels=labels,
        index=np.arange(len(rows), dtype=np.int32),
        class_names=classes,
        checksum=digest("\n".join(paths).encode(), sizes.tobytes(), labels.tobytes()),
        images=images,
        encoded=lambda ids: [bytes_of(int(i)) for i in ids],
        name_of=name_of,
        skipped=skipped,
    )


def place(name: str, data_dir: str) -> Path:
    """The folder of a data set.

    Raises:
        FileNotFoundError: there is none.
    """
    here = Path(name).expanduser()
    prepared = Path(data_dir or PREPARED).expanduser() / name.replace(":", "--")
    for found in (here, prepared):
        if found.is_dir():
            return found
    flag = f" --data_dir {data_dir}" if data_dir else ""
    raise FileNotFoundError(
        f"data.source=hf:{name}: neither {here} nor {prepared} is a folder: download it once with `ssljax "
        f"prepare hf:{name}{flag}`, or name a folder that `datasets` has saved with save_to_disk. Training "
        "never downloads"
    )


def files_of(root: Path) -> dict[str, list[Path]]:
    """The files of each split, in their order.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file that lists the others is damaged.
    """
    if (root / "dataset_dict.json").exists():
        return {name: _saved(root / name) for name in _json(root / "dataset_dict.json")["splits"]}
    if (root / "state.json").exists():
        return {"train": _saved(root)}
    found = sorted([*root.rglob("*.arrow"), *root.rglob("*.parquet")])
    if not found:
        raise FileNotFoundError(f"{root} holds no data set: neither dataset_dict.json nor .arrow or .parquet")
    splits: dict[str, list[Path]] = {}
    for file in found:
        inside = file.parent.relative_to(root).parts
        named = next((each for each in ("train", *TESTS) if each in inside), "")
        splits.setdefault(named or file.stem.split("-")[0].split(".")[0], []).append(file)
    return splits if len(splits) > 1 or "train" in splits else {"train": found}


def _saved(folder_of_split: Path) -> list[Path]:
    """The files of a split that was saved with save_to_disk."""
    state = _json(folder_of_split / "state.json")
    return [folder_of_split / file["filename"] for file in state["_data_files"]]


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): save the data set again") from error


def _table(files: list[Path], split: str) -> tuple[Any, dict[str, Any]]:
    """The files as one table, and what `datasets` says of its columns."""
    import pyarrow
    from pyarrow import ipc, parquet

    if files[0].suffix == ".parquet":
        wanted = sum(file.stat().st_size for file in files)
        fix = "save the data set with save_to_disk, whose files are read by index"
        decode.require_memory(wanted, f"{split} in Parquet files", fix)
    tables = []
    for file in files:
        try:
            if file.suffix == ".parquet":
                tables.append(parquet.read_table(file, memory_map=True))
            else:
                tables.append(ipc.open_stream(pyarrow.memory_map(str(file))).read_all())
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"{file} is damaged, or no file of `datasets` ({error}): save it again"
            ) from error
    table = pyarrow.concat_tables(tables)
    stated = (table.schema.metadata or {}).get(b"huggingface", b"{}")
    return table, json.loads(stated).get("info", {}).get("features", {})


def _column(features: dict[str, Any], kind: str, usual: tuple[str, ...], name: str) -> str:
    """The column of a type: the only one, or the one with a usual name.

    Raises:
        ValueError: there is none, or it is not clear which.
    """
    found = [column for column, stated in features.items() if _type(stated) == kind]
    if len(found) == 1:
        return found[0]
    named = [column for column in usual if column in found]
    if named:
        return named[0]
    columns = ", ".join(f"{column} ({_type(stated) or 'nested'})" for column, stated in features.items())
    hint = " Set data.labels='none' to use the images alone." if kind == "ClassLabel" else ""
    raise ValueError(
        f"hf:{name} has {len(found)} columns of type {kind}, and one of them must be called "
        f"{' or '.join(usual)}; its columns: {columns or 'without types, so no file of `datasets`'}.{hint} "
        "Cast or rename with `datasets` (cast_column, rename_column) and save it again"
    )


def _type(stated: Any) -> str:
    return stated.get("_type", "") if isinstance(stated, dict) else ""


def _reader(column: Any) -> Callable[[int], bytes]:
    """A function from the number of a row to the bytes of its image."""
    starts = np.cumsum([0, *(len(chunk) for chunk in column.chunks)])

    def read(row: int) -> bytes:
        chunk = int(np.searchsorted(starts, row, side="right")) - 1
        value = column.chunk(chunk)[row - int(starts[chunk])].as_py()
        if isinstance(value, bytes) or not value:
            return value or b""
        if value["bytes"] is None and value["path"]:
            return Path(value["path"]).read_bytes()
        return value["bytes"] or b""

    return read


def _described(column: Any, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The number of bytes of these images, int64 [N], and the names of their files, where they are stored."""
    import pyarrow
    from pyarrow import compute

    nested = pyarrow.types.is_struct(column.type)
    stored = compute.struct_field(column, "bytes") if nested else column
    sizes = np.asarray(compute.fill_null(compute.binary_length(stored), 0), np.int64)[rows]
    paths = compute.struct_field(column, "path").take(rows).to_pylist() if nested else []
    return sizes, [path or "" for path in paths]
