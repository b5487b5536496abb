"""Small data sets as COCO and PASCAL VOC are unpacked: a white rectangle on black for each object."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

# id, width, height, objects (category, x, y, width, height, crowd). Crowds are not drawn, so that the white
# pixels are those of one object. The file names sort in another order.
COCO = (
    (9, 60, 40, [(90, 10, 8, 30, 20, 0)]),
    (2, 40, 64, [(7, 4, 30, 20, 28, 0)]),
    (5, 64, 48, [(3, 0, 0, 16, 48, 0), (7, 40, 10, 20, 12, 1)]),
    (11, 50, 40, [(7, 5, 5, 30, 20, 1)]),
    (12, 50, 40, []),
    (21, 48, 40, [(7, 8, 10, 24, 20, 0)]),
    (22, 40, 40, [(3, 20, 20, 20, 20, 0)]),
)
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 90, "name": "bus"}, {"id": 3, "name": "cat"}]


def picture(width, height, boxes):
    """Black, and white in the boxes (x, y, width, height): uint8 [height, width, 3]."""
    image = np.zeros((height, width, 3), np.uint8)
    for x, y, w, h in boxes:
        image[y : y + h, x : x + w] = 255
    return image


def coco(root: Path, splits=("train", "val"), copies=1) -> Path:
    """A folder for `coco:`: the same images in every split, each so many times, with semantic masks."""
    for split in splits:
        (root / "images" / split).mkdir(parents=True)
        (root / "semantic" / split).mkdir(parents=True)
        images, records = [], []
        for number, width, height, objects in [
            (100 * copy + first, *rest) for copy in range(copies) for first, *rest in COCO
        ]:
            name = f"{split}/{number // 100}{number % 100 * 37 % 100:05d}.png"
            drawn = picture(width, height, [one[1:5] for one in objects if not one[5]])
            Image.fromarray(drawn).save(root / "images" / name)
            mask = np.full((height, width), 184, np.uint8)  # a class of stuff
            mask[-2:] = 0
            for category, x, y, w, h, crowd in objects:
                if not crowd:
                    mask[y : y + h, x : x + w] = category
                records.append(
                    {
                        "id": len(records) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h - 5,
                        "iscrowd": crowd,
                    }
                )
            Image.fromarray(mask).save(root / "semantic" / name)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
        file = {"images": images, "annotations": records, "categories": CATEGORIES}
        (root / f"instances_{split}.json").write_text(json.dumps(file))
    return root


OBJECT = """<object><name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>
<bndbox><xmax>{xmax}</xmax><xmin>{xmin}</xmin><ymax>{ymax}</ymax><ymin>{ymin}</ymin></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
</object>"""


def voc_image(year: Path, name: str, width: int, height: int, objects) -> None:
    """One image of a year with its record and its mask.

    Args:
        year: the folder VOC2007, say.
        name: of the image.
        width, height: of the image.
        objects: class, its number, xmin, ymin, xmax, ymax as VOC counts, from 1, and 0 or 1 for difficult.
    """
    for folder in ("Annotations", "JPEGImages", "SegmentationClass"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    boxes = [(x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1) for _, _, x1, y1, x2, y2, _ in objects]
    image = Image.fromarray(picture(width, height, boxes))
    image.save(year / "JPEGImages" / f"{name}.jpg", quality=98, subsampling=0)
    text = "".join(
        OBJECT.format(name=kind, difficult=hard, xmin=x1, ymin=y1, xmax=x2, ymax=y2)
        for kind, _, x1, y1, x2, y2, hard in objects
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    (year / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    mask = np.zeros((height, width), np.uint8)
    for (x, y, w, h), one in zip(boxes, objects, strict=True):
        mask[y : y + h, x : x + w] = 255
        mask[y + 1 : y + h - 1, x + 1 : x + w - 1] = one[1]
    numbers = Image.fromarray(mask)
    numbers.putpalette(np.repeat((np.arange(256) + 5) % 21, 3).tolist())  # greys, which might be numbers too
    numbers.save(year / "SegmentationClass" / f"{name}.png")


def voc(root: Path) -> Path:
    """A folder for `voc:` with two years; sets for boxes and for masks."""
    horse = ("horse", 13, 11, 5, 40, 30, 0)
    sets = {
        "VOC2007": {"trainval": ["000012", "000005"], "test": ["000001"]},
        "VOC2012": {"trainval": ["2008_000002"]},
    }
    voc_image(root / "VOC2007", "000012", 60, 40, [horse, ("person", 15, 1, 1, 20, 40, 1)])
    voc_image(root / "VOC2007", "000005", 40, 50, [("aeroplane", 1, 3, 10, 40, 50, 0)])
    voc_image(root / "VOC2007", "000001", 60, 44, [("person", 15, 21, 11, 60, 44, 1)])
    voc_image(root / "VOC2012", "2008_000002", 48, 40, [("tvmonitor", 20, 9, 9, 40, 32, 0)])
    for year, lists in sets.items():
        for kind in ("Main", "Segmentation"):
            (root / year / "ImageSets" / kind).mkdir(parents=True)
            for name, images in lists.items():
                (root / year / "ImageSets" / kind / f"{name}.txt").write_text("\n".join(images) + "\n")
    return root
