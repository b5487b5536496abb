"""`coco:PATH`: images with the objects or masks of COCO, as they are unpacked.

    PATH/annotations/instances_train2017.json, PATH/train2017/*.jpg     the official layout
    PATH/instances_train.json, PATH/images/...                          a small copy

`data.train_split` and `data.test_split` are the NAME of instances_NAME.json or instances_NAME2017.json;
where there is no "test", "val" is taken. NAME[:40] are the first 40 images by their id.

Classes are the categories by rising id, 0..K-1, or those in `data.categories`, in that order. Crowds are left
out in training and difficult otherwise. Boxes of width or height 0 (train2017 has two, cocoapi#355)
are left out, as in detectron2's training; pycocotools counts them as missed [X]. Masks are PNGs with a
category's id for every pixel, in PATH/semantic/, beside which lies what the images have in PATH/images/: 0
(unlabelled) and 255 count nowhere, and every id that is not in use is background.
"""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import annotate
from ssljax.data.annotate import IGNORED, Object, Picture
from ssljax.data.source import Source

log = logging.getLogger(__name__)

MOST = 128  # objects in an image; train2017 has up to 93


def load(data: ConfigDict, path: str, split: str) -> Source:
    """Load one split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the records are damaged, see `annotate.with_boxes` too.
    """
    root = Path(path).expanduser()
    stored, count = annotate.first(data.train_split if split == "train" else data.test_split)
    file = _records(root, stored, split)
    records = _read(file)
    name_of = {each["id"]: each["name"] for each in sorted(records["categories"], key=lambda c: c["id"])}
    classes = annotate.chosen(data, tuple(name_of.values()), str(file))

    images = sorted(records["images"], key=lambda image: image["id"])[:count]
    folder = _folder(root, file, images[0]["file_name"]) if images else root
    objects = _objects(records, name_of, file) if data.annotations == "boxes" else {}
    pictures = [
        Picture(
            file=str(folder / image["file_name"]),
            record=str(file),
            size=(image["height"], image["width"]),
            objects=tuple(objects.get(image["id"], ())),
            mask=_mask(root, folder, image["file_name"]),
        )
        for image in images
    ]
    if data.annotations == "masks":
        meaning = np.zeros(256, np.int16)
        meaning[[0, IGNORED]] = IGNORED
        for number, name in name_of.items():
            meaning[number] = classes.index(name) + 1 if name in classes else 0
        return annotate.with_masks(data, split, root, pictures, classes, meaning)
    return annotate.with_boxes(data, split, root, pictures, classes, train_on_difficult=False, most=MOST)


def _records(root: Path, stored: str, split: str) -> Path:
    """The file instances_*.json of a split."""
    names = [stored, "val"] if split == "test" and stored == "test" else [stored]
    tried = [
        place / f"instances_{name}{year}.json"
        for name in names
        for place in (root / "annotations", root)
        for year in ("", "2017")
    ]
    for file in tried:
        if file.is_file():
            return file
    there = sorted(file.name for place in {root, root / "annotations"} for file in place.glob("instances_*"))
    raise FileNotFoundError(
        f"data.source=coco:{root}: no {tried[0]}, which data.{split}_split={stored!r} asks for (there: "
        f"{', '.join(there) or 'no instances_*.json'}): unpack annotations_trainval2017.zip in {root}, or "
        "name another split"
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        records = json.loads(file.read_text())
        missing = [key for key in ("images", "annotations", "categories") if key not in records]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}): unpack it again") from error
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing)}: it is not a file of COCO's instances")
    return records


def _objects(records: dict[str, Any], name_of: dict[int, str], file: Path) -> dict[int, list[Object]]:
    """The objects of every image by its id, in the order of the file."""
    known = {image["id"] for image in records["images"]}
    found: dict[int, list[Object]] = defaultdict(list)
    empty = []
    for each in records["annotations"]:
        for key, there in (("category_id", name_of), ("image_id", known)):
            if each[key] not in there:
                raise ValueError(
                    f"{file}: annotation {each['id']} has {key}={each[key]}, which the file does not list: "
                    "it belongs to another version of the data, so unpack images and records again"
                )
        one = _object(each, name_of, file)
        x1, y1, x2, y2 = one.box
        if x1 == x2 or y1 == y2:
            empty.append(f"annotation {each['id']} of image {each['image_id']}")
        else:
            found[each["image_id"]].append(one)
    if empty:
        log.warning("%s: boxes without area, left out: %d, first that of %s", file, len(empty), empty[0])
    return found


def _object(record: dict[str, Any], name_of: dict[int, str], file: Path) -> Object:
    try:
        x, y, width, height = map(float, record["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: annotation {record['id']} has no bbox of four numbers ({error!r}): unpack the file "
            "again, or take the annotation out"
        ) from error
    return Object(
        name=name_of[record["category_id"]],
        box=(x, y, x + width, y + height),
        difficult=bool(record.get("iscrowd", 0)),
        area=float(record.get("area", width * height)),
    )


def _folder(root: Path, file: Path, name: str) -> Path:
    """The folder that the names of images are relative to."""
    stored = file.stem.removeprefix("instances_")
    places = [root / "images", root / stored, root / "images" / stored, root]
    for place in places:
        if (place / name).is_file():
            return place
    raise FileNotFoundError(
        f"{file} lists {name}, which is in none of {', '.join(map(str, places))}: unpack {stored}.zip in "
        f"{root}"
    )


def _mask(root: Path, folder: Path, name: str) -> str:
    """The file of the mask of an image: its place below PATH/images or PATH, below PATH/semantic."""
    below = (folder / name).relative_to(root)
    if below.parts[0] == "images":
        below = below.relative_to("images")
    return os.path.join(root, "semantic", below.with_suffix(".png"))
