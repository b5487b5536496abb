"""PASCAL VOC's lists of classes, made of the images of COCO.

    python tests/made_voc.py COCO_SMALL OUT

OUT gets JPEGImages and ImageSets/Main/CLASS_{train,val,test}.txt. COCO_SMALL has images/{train,val} and
instances_{train,val}.json. Of the training images every fourth is a validation image; COCO's validation
images are the test. An image is marked -1 for a class that is not in it, and 0, difficult, where all its
objects are crowds or smaller than 0.2 % of the image. Only classes with an image that counts in every split
are kept, 20 at most.
"""

import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path

SMALL = 0.002


def marks(file: Path) -> tuple[list[dict], dict[int, dict[int, int]], dict[int, str]]:
    """Of an instances file its images by id; image -> category -> 1, or 0 for difficult; the categories."""
    stored = json.loads(file.read_text())
    images = {image["id"]: image for image in stored["images"]}
    found: dict[int, dict[int, int]] = defaultdict(dict)
    for one in stored["annotations"]:
        image = images[one["image_id"]]
        clear = not one["iscrowd"] and one["area"] >= SMALL * image["width"] * image["height"]
        seen = found[one["image_id"]]
        seen[one["category_id"]] = max(seen.get(one["category_id"], 0), int(clear))
    names = {one["id"]: one["name"].replace(" ", "_") for one in stored["categories"]}
    return sorted(images.values(), key=lambda image: image["id"]), found, names


def make(coco: Path, out: Path) -> None:
    """Write the devkit."""
    train, found, names = marks(coco / "instances_train.json")
    test, of_test, _ = marks(coco / "instances_val.json")
    parts = {
        "train": ([image for i, image in enumerate(train) if i % 4], found),
        "val": (train[::4], found),
        "test": (test, of_test),
    }
    (out / "JPEGImages").mkdir(parents=True)
    (out / "ImageSets" / "Main").mkdir(parents=True)

    def name(part: str, image: dict) -> str:
        return f"{'2' if part == 'test' else '1'}{image['id']:012d}"

    for part, (images, _) in parts.items():
        for image in images:
            file = coco / "images" / image["file_name"]
            file = (
                file
                if file.exists()
                else coco / "images" / ("val" if part == "test" else "train") / file.name
            )
            shutil.copy(file, out / "JPEGImages" / f"{name(part, image)}.jpg")

    def count(part: str, category: int) -> int:
        images, seen = parts[part]
        return sum(seen[image["id"]].get(category, -1) == 1 for image in images)

    kept = [c for c in names if all(count(part, c) for part in parts)]
    for category in sorted(kept, key=lambda c: -count("train", c))[:20]:
        for part, (images, seen) in parts.items():
            lines = [f"{name(part, image)} {seen[image['id']].get(category, -1):2d}\n" for image in images]
            (out / "ImageSets" / "Main" / f"{names[category]}_{part}.txt").write_text("".join(lines))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
