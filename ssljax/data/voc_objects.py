"""`voc:PATH`: images with the objects or masks of PASCAL VOC. PATH is VOCdevkit, or what lies in it.

    PATH/VOC2007/{Annotations,ImageSets,JPEGImages,SegmentationClass}, PATH/VOC2012/...
    PATH/{Annotations,ImageSets,...}        one year alone

`data.train_split` and `data.test_split` are YEAR/SET, with + between them: MoCo trains on
2007/trainval+2012/trainval and tests on 2007/test. Without a year it is a SET of PATH itself. SET[:40] are
the first 40 images. The sets lie in ImageSets/Main, or for masks in ImageSets/Segmentation.

VOC counts pixels from 1, and the last one belongs to the box: x1 = xmin - 1, y1 = ymin - 1, x2 = xmax,
y2 = ymax. Difficult objects are trained on; the metric leaves them out.

Masks are read from SegmentationClass or, if there is none, SegmentationClassAug (SBD's, for train_aug). They
have a palette: what counts is the number of a pixel, not its colour. 255 is the border of an object.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from ml_collections import ConfigDict

from ssljax.data import annotate
from ssljax.data.annotate import IGNORED, Object, Picture
from ssljax.data.source import Source

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
MOST = 64  # objects in an image; VOC07 has up to 42, VOC12 up to 56
MASKS = ("SegmentationClass", "SegmentationClassAug")


def load(data: ConfigDict, path: str, split: str) -> Source:
    """Load one split.

    Raises:
        FileNotFoundError: there is no such set, or a file of it is not there.
        ValueError: a record is damaged, see `annotate.with_boxes` too.
    """
    root = Path(path).expanduser()
    stored, count = annotate.first(data.train_split if split == "train" else data.test_split)
    kind = "Main" if data.annotations == "boxes" else "Segmentation"
    names = [
        (folder, name)
        for part in stored.split("+")
        for folder, of in [_year(root, part, split)]
        for name in _names(folder, kind, of, split)
    ][:count]
    if data.annotations == "masks":
        classes = annotate.chosen(data, CLASSES, "VOC")
        pictures = [
            Picture(_image(folder, name), str(folder / "ImageSets" / kind), mask=_mask(folder, name))
            for folder, name in names
        ]
        meaning = np.full(256, -1, np.int16)
        meaning[[0, IGNORED]] = 0, IGNORED
        for number, name in enumerate(CLASSES, 1):
            meaning[number] = classes.index(name) + 1 if name in classes else 0
        return annotate.with_masks(data, split, root, pictures, classes, meaning)

    pictures = [_picture(folder, name) for folder, name in names]
    others: dict[str, str] = {}  # a class that VOC does not have -> a file where it occurs
    for picture in pictures:
        others |= {one.name: picture.record for one in picture.objects if one.name not in CLASSES}
    if others and not data.categories:
        name, file = min(others.items())
        raise ValueError(
            f"{file} has an object {name!r}, which is no class of VOC: name the classes of your own data "
            "with --config.data.categories"
        )
    classes = annotate.chosen(data, (*CLASSES, *sorted(others)), str(root))
    return annotate.with_boxes(data, split, root, pictures, classes, train_on_difficult=True, most=MOST)


def _year(root: Path, part: str, split: str) -> tuple[Path, str]:
    """The folder of a year and the name of the set, of "2007/trainval" or "trainval"."""
    year, slash, of = part.rpartition("/")
    places = [root / f"VOC{year}", root / "VOCdevkit" / f"VOC{year}"] if slash else [root]
    for place in places:
        if (place / "ImageSets").is_dir():
            return place, of
    there = sorted(place.name for place in root.glob("VOC*") if place.is_dir())
    raise FileNotFoundError(
        f"data.source=voc:{root}: no {places[0] / 'ImageSets'}, which data.{split}_split={part!r} asks for "
        f"(there: {', '.join(there) or 'no VOC2007 or VOC2012'}). Unpack VOCtrainval_06-Nov-2007.tar, "
        "VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar there, and name years: 2007/trainval"
    )


def _names(folder: Path, kind: str, of: str, split: str) -> list[str]:
    """The names of the images of a set."""
    file = folder / "ImageSets" / kind / f"{of}.txt"
    if not file.is_file():
        there = sorted(each.stem for each in file.parent.glob("*.txt") if "_" not in each.stem)
        raise FileNotFoundError(
            f"no {file}, which data.{split}_split asks for (there: {', '.join(there) or 'none'})"
        )
    # Some lists of train_aug have the files of image and mask in place of a name.
    return [Path(line.split()[0]).stem for line in file.read_text().splitlines() if line.strip()]


def _image(folder: Path, name: str) -> str:
    return str(folder / "JPEGImages" / f"{name}.jpg")


def _mask(folder: Path, name: str) -> str:
    files = [folder / place / f"{name}.png" for place in MASKS]
    return str(next((file for file in files if file.is_file()), files[0]))


def _picture(folder: Path, name: str) -> Picture:
    """One image with its objects.

    Raises:
        ValueError: its XML cannot be read.
    """
    file = folder / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(file).getroot()
        size = int(_text(tree, "size/height")), int(_text(tree, "size/width"))
        objects = tuple(_object(each) for each in tree.findall("object"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): unpack the devkit again") from error
    return Picture(_image(folder, name), str(file), size, objects)


def _object(element: ElementTree.Element) -> Object:
    xmin, ymin, xmax, ymax = (
        float(_text(element, f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    box = (xmin - 1.0, ymin - 1.0, xmax, ymax)
    difficult = element.findtext("difficult", "0").strip() == "1"
    return Object(_text(element, "name"), box, difficult, (box[2] - box[0]) * (box[3] - box[1]))


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if found is None:
        raise ValueError(f"it has no {path}")
    return found.strip()
