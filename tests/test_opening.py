"""What a run says before its first step, and the images that are in both splits."""

import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import simclr
from ssljax.config import base
from ssljax.data import sources, twins
from ssljax.run import memory, opening
from ssljax.run.folder import duration


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of cats and four of dogs; one dog is also held out, once as a copy and once as a link."""
    rng = np.random.default_rng(0)
    for split, name, count in (
        ("train", "cat", 10),
        ("train", "dog", 4),
        ("test", "cat", 3),
        ("test", "dog", 1),
    ):
        where = tmp_path / split / name
        where.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)).save(where / f"{i}.png")
    dog = tmp_path / "train" / "dog" / "2.png"
    shutil.copy(dog, tmp_path / "test" / "dog" / "copy.png")
    (tmp_path / "test" / "dog" / "link.png").symlink_to(dog)
    return tmp_path


@pytest.mark.parametrize("crop_on", ["host", "device"])
def test_images_in_both_splits_are_named(folder, crop_on):
    data = base().data
    data.update(source=f"folder:{folder}", crop_on=crop_on, image_size=12)
    train, test = (sources.load(data, split) for split in ("train", "test"))
    dog = str(folder / "train" / "dog" / "2.png")
    assert twins.between(train, test) == [
        (str(folder / "test" / "dog" / name), dog) for name in ("copy.png", "link.png")
    ]
    assert opening.found(train, test) == (
        f"14 training images, 4 to 10 in each of 2 classes; 6 held out (folder:{folder})"
    )
    (warning,) = opening.warnings(train, test)
    assert warning.startswith("WARNING 2 of the held-out images are also training images")
    assert warning.endswith(f"the first: {folder}/test/dog/copy.png has the content of {dog}")

    cats = np.flatnonzero(train.labels == 0)
    alone = train.select(cats)
    assert twins.between(alone, test) == []
    one_class = sources.Source(**{**vars(alone), "class_names": ("cat",), "skipped": tuple("abcde")})
    said = opening.warnings(one_class, None)
    assert said[0] == "WARNING unreadable images left out: a, b, c and 2 more"
    assert said[1].startswith("WARNING there is one class only, 'cat'")


def test_a_step_that_is_too_large_is_refused_with_what_would_fit(monkeypatch):
    config = simclr.get_config("digits")
    compiled = jax.jit(lambda x: (x @ x.T).sum()).lower(np.zeros((1000, 10), np.float32)).compile()
    asked = memory.needed(compiled)
    devices = jax.local_device_count()
    assert 40_000 * devices <= asked <= 10_000_000 * devices
    monkeypatch.setattr(memory, "limit", lambda: (2**30, "this machine has"))
    assert memory.fits(2**29) == "memory: a step takes 0.50 GiB; this machine has 1.0 GiB"
    with pytest.raises(MemoryError) as caught, memory.explained(config, verb="train", pieces=True):
        memory.fits(3 * 2**30)
    assert "a step would take 3.0 GiB, and this machine has 1.0 GiB. Try --config.batch_size=" in str(
        caught.value
    )


def test_durations_are_short():
    words = [duration(seconds) for seconds in (0.4, 100, 130, 7200, 200_000)]
    assert words == ["0 s", "100 s", "2 min", "2.0 h", "2.3 days"]
