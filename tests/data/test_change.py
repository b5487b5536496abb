"""What a run remembers of its data, and how it says what changed."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from configs import simclr
from ssljax.config import resolve
from ssljax.data import change, sources


@pytest.fixture
def root(tmp_path):
    """Four training images and one test image of each of three classes."""
    for split, count in (("train", 4), ("test", 1)):
        for label, name in enumerate(("bird", "cat", "dog")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 8), 40 * label + i, np.uint8)
                Image.fromarray(pixels).save(place / f"{name}{i}.png")
    return tmp_path


def described(root, **settings):
    config = simclr.get_config("digits").unlock()
    config.data.update(source=f"folder:{root}", image_size=8, **settings)
    return json.loads(json.dumps(change.describe(sources.load(resolve(config).data, "train"))))


def move(root, name, new):
    for split in ("train", "test"):
        (root / split / name).rename(root / split / new)


def test_the_same_data_have_no_difference(root, tmp_path_factory):
    before = described(root)
    elsewhere = tmp_path_factory.mktemp("other") / "place"
    root.rename(elsewhere)
    assert change.difference(before, described(elsewhere)) == ""


@pytest.mark.parametrize("crop_on", ["device", "host"])
def test_the_first_difference_is_named(root, crop_on):
    before = described(root, crop_on=crop_on)
    cat = root / "train" / "cat"

    def now():
        return change.difference(before, described(root, crop_on=crop_on))

    (cat / "cat1.png").rename(root / "kept.png")
    assert now() == "class cat had 4 images, now 3: cat/cat1.png is gone"
    (root / "kept.png").rename(cat / "new.png")
    assert now() == "class cat has 4 images as before, but others: cat/cat1.png is gone, cat/new.png is new"
    Image.fromarray(np.zeros((9, 30), np.uint8)).save(cat / "cat1.png")
    assert now() == "class cat had 4 images, now 5: cat/new.png is new"
    sizes = (cat / "new.png").stat().st_size, (cat / "cat1.png").stat().st_size
    (cat / "new.png").unlink()
    assert now().endswith(f"but others: cat/cat1.png had {sizes[0]} bytes, now {sizes[1]}")


def test_other_pixels_are_seen_where_they_are_in_memory(root):
    before = described(root)
    file = root / "train" / "cat" / "cat1.png"
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(file)
    assert "cat/cat1.png has other pixels" in change.difference(before, described(root))


def test_swapped_renamed_added_and_removed_classes_are_named(root):
    before = described(root)
    move(root, "cat", "x")
    move(root, "dog", "cat")
    move(root, "x", "dog")
    said = change.difference(before, described(root))
    assert said == "the images of the classes cat and dog changed places"
    move(root, "dog", "x")
    move(root, "cat", "dog")
    move(root, "x", "zebra")
    assert change.difference(before, described(root)) == "class cat is now called zebra"
    more = described(root)
    move(root, "zebra", ".hidden")
    said = change.difference(more, described(root))
    assert said == "class zebra is gone (there were 3 classes, now 2)"
    assert change.difference(described(root), more) == "class zebra is new (there were 2 classes, now 3)"


def test_images_without_labels_are_one_class(root):
    before = described(root, labels="none")
    assert [name for name, *_ in before["classes"]] == [""]
    (root / "train" / "cat" / "cat1.png").unlink()
    said = change.difference(before, described(root, labels="none"))
    assert said == "the folder had 12 images, now 11: train/cat/cat1.png is gone"


def test_images_in_memory_without_files_are_told_apart():
    source = sources.load(simclr.get_config("digits").data, "train")
    before = change.describe(source)
    assert "files" not in before and len(before["classes"]) == 10
    images = source.images.copy()
    images[np.flatnonzero(source.labels == 3)[5]] += 1
    said = change.difference(before, change.describe(dataclasses.replace(source, images=images)))
    assert said == "class 3 has 153 images as before, but others"
    other = change.describe(dataclasses.replace(source, checksum="0123"))
    assert "the checksum of the 1500 images was" in change.difference(before, other)


@pytest.mark.slow
def test_a_million_files_take_little_room():
    count = 1_000_000
    labels = np.repeat(np.arange(1000, dtype=np.int32), 1000)
    source = dataclasses.replace(
        sources.load(simclr.get_config("digits").data, "train"),
        labels=labels,
        index=np.arange(count, dtype=np.int32),
        images=None,
        class_names=tuple(f"n{i:08}" for i in range(1000)),
        file_of=lambda i: (f"train/n{i // 1000:08}/n{i // 1000:08}_{i}.JPEG", 100_000 + i),
    )
    found = change.describe(source)
    assert len(json.dumps(found)) < 100_000 and "files" not in found
    fewer = change.describe(source.select(np.delete(np.arange(count), 4321)))
    assert change.difference(found, fewer) == "class n00000004 had 1000 images, now 999"
