"""Batches depend only on (source, config, step), not on the processes, the start or the kind of source."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from configs.simclr import get_config
from ssljax.config import resolve
from ssljax.data import crops, loader, recipes, sampler, sources


def take(batches, n):
    """Take the first n elements of an endless stream and close it."""
    out = list(itertools.islice(batches, n))
    batches.close()
    return out


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture
def memory():
    """90 digits in batches of 20: 4 steps per epoch, 10 images left over."""
    config = get_config("digits").unlock()
    config.update(batch_size=20, seed=3)
    return sources.load(config.data, "train").select(range(50, 140)), config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """21 images of noise, 24 to 44 pixels wide. Every third is a PNG, the others are JPEG."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(21):
        path = root / "train" / "abc"[i % 3] / (f"{i:02}.png" if i % 3 == 0 else f"{i:02}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + i % 5, 24 + i, 3)).astype(np.uint8)).save(path)
    return root


@pytest.fixture
def host(folder):
    """The folder, cropped on the host: 21 files minus one held out per class, batches of 6, 3 per epoch."""
    config = get_config("folder").unlock()
    config.data.update(source=f"folder:{folder}", image_size=16)
    config.update(batch_size=6, seed=5)
    return sources.load(config.data, "train"), config


def test_steps_per_epoch_and_its_error(memory):
    assert loader.steps_per_epoch(90, 20) == 4 and loader.steps_per_epoch(20, 20) == 1
    source, config = memory
    config.batch_size = 91
    with pytest.raises(
        ValueError, match="90 examples do not fill one batch of 91: set batch_size to at most 90"
    ):
        loader.train_batches(source, config)


def test_batches_are_the_rows_of_the_order(memory):
    source, config = memory
    batches = take(loader.train_batches(source, config), 9)
    for step, batch in enumerate(batches):
        rows = sampler.order(3, step // 4, 90)[20 * (step % 4) :][:20]
        np.testing.assert_array_equal(batch["index"], rows + 50)
        np.testing.assert_array_equal(batch["label"], source.labels[rows])
        np.testing.assert_array_equal(batch["image"], source.images[rows])
    assert [batches[0][k].dtype for k in ("image", "label", "index")] == [np.uint8, np.int32, np.int32]
    epoch = np.concatenate([b["index"] for b in batches[:4]])
    assert len(set(epoch)) == 80


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "host", "repeated"])
def test_resume_and_processes_give_the_same_stream(kind, request):
    source, config = request.getfixturevalue(kind)
    whole = take(loader.train_batches(source, config), 8)
    resumed = take(loader.train_batches(source, config, start_step=5), 3)
    assert all(same(a, b) for a, b in zip(resumed, whole[5:], strict=True))
    shares = [
        take(loader.train_batches(source, config, start_step=2, process_index=p, process_count=2), 4)
        for p in range(2)
    ]
    for step in range(4):
        joined = {k: np.concatenate([shares[0][step][k], shares[1][step][k]]) for k in whole[0]}
        assert same(joined, whole[2 + step])
    with pytest.raises(ValueError, match="does not divide over 7 processes"):
        loader.train_batches(source, config, process_count=7)


@pytest.mark.slow
def test_host_views_are_those_of_crops(host):
    source, config = host
    for step, batch in enumerate(take(loader.train_batches(source, config), 4)):
        rows = sampler.order(5, step // 3, 18)[6 * (step % 3) :][:6]
        np.testing.assert_array_equal(batch["index"], rows)
        np.testing.assert_array_equal(batch["label"], source.labels[rows])
        assert batch["image"].shape == (6, 2, 16, 16, 3) and batch["image"].dtype == np.uint8
        for k, row in enumerate(rows):
            image = crops.decode(source.read([row])[0], 3)
            expected = crops.training_views(image, np.int64([step // 3, row]), config)["image"]
            np.testing.assert_array_equal(batch["image"][k], expected)


@pytest.mark.slow
def test_views_of_several_sizes_come_under_their_names(host):
    """Names and shapes are those of `host_shapes`, also after resuming."""
    source, config = host
    config.views = dict(
        large=dict(count=2), small=dict(size=8, max_area=0.3), again=dict(of="large", count=2, size=4)
    )
    whole = take(loader.train_batches(source, config), 4)
    shapes = {name: (6, *shape) for name, shape in recipes.host_shapes(config).items()}
    assert {name: leaf.shape for name, leaf in whole[0].items()} == {**shapes, "label": (6,), "index": (6,)}
    row = whole[3]["index"][2]
    image = crops.decode(source.read([row])[0], 3)
    for name, expected in crops.training_views(image, np.int64([1, row]), config).items():
        assert whole[3][name].dtype == np.uint8
        np.testing.assert_array_equal(whole[3][name][2], expected.numpy())
    assert same(take(loader.train_batches(source, config, start_step=3), 1)[0], whole[3])


@pytest.fixture
def repeated(host):
    """DeiT's input on a small scale: three copies per image, cropped as in Pillow, with RandAugment."""
    source, config = host
    config.data.repeats = 3
    config.views = dict(one=dict())
    config.augment.update(crop="torchvision", policy="randaugment", jitter_probability=0.0, antialias=True)
    return source, resolve(config)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["repeated", "memory"])
def test_copies_are_neighbours_with_views_of_their_own(kind, request):
    """An epoch has as many steps as without repeats, a third of the images, and no two equal rows."""
    source, config = request.getfixturevalue(kind)
    config.data.repeats = 3
    n = len(source)
    spe = n // config.batch_size
    two_epochs = take(loader.train_batches(source, config), 2 * spe)
    for epoch, batches in enumerate((two_epochs[:spe], two_epochs[spe:])):
        stream = {k: np.concatenate([b[k] for b in batches]) for k in ("image", "index", "label", "copy")}
        rows = sampler.repeated(config.seed, epoch, n, 3)[: spe * config.batch_size]
        np.testing.assert_array_equal(stream["index"], source.index[rows])
        np.testing.assert_array_equal(stream["label"], source.labels[rows])
        assert stream["copy"].dtype == np.int32 and (stream["copy"] == np.arange(len(rows)) % 3).all()
        assert len(set(stream["index"])) == -(-len(rows) // 3)
        if kind == "repeated":
            assert len({image.tobytes() for image in stream["image"]}) == len(rows)
            image = crops.decode(source.read([rows[4]])[0], 3)
            second = crops.training_views(image, np.int64([epoch, rows[4]]), config, copy=1)["image"]
            np.testing.assert_array_equal(stream["image"][4], second)
    config.data.repeats = 1
    assert "copy" not in take(loader.train_batches(source, config), 1)[0]


def test_the_policy_of_every_view_is_checked(host):
    source, config = host
    config.views = dict(one=dict(), two=dict(policy="randaugment"))
    with pytest.raises(ValueError, match="'randaugment' and augment.jitter_probability=0.8"):
        loader.train_batches(source, config)


def test_a_policy_is_checked_before_anything_is_read(memory):
    source, config = memory
    config.augment.policy = "randaugment"
    with pytest.raises(ValueError, match="set data.crop_on='host'"):
        loader.train_batches(source, config)


@pytest.mark.slow
def test_views_of_one_image_differ_between_epochs_and_stay_when_the_batch_changes(host):
    source, config = host
    batches = take(loader.train_batches(source, config), 6)
    by_epoch = [{}, {}]
    for step, batch in enumerate(batches):
        by_epoch[step // 3].update(zip(batch["index"], batch["image"], strict=True))
    assert all((by_epoch[0][i] != by_epoch[1][i]).any() for i in range(18))
    config.batch_size = 9
    for batch in take(loader.train_batches(source, config), 2):
        assert all((by_epoch[0][i] == v).all() for i, v in zip(batch["index"], batch["image"], strict=True))
    config.batch_size = 6
    half = source.select(range(0, 18, 2))  # other positions, same ids: same views
    batch = take(loader.train_batches(half, config), 1)[0]
    assert set(batch["index"]) <= set(range(0, 18, 2))
    assert all((by_epoch[0][i] == v).all() for i, v in zip(batch["index"], batch["image"], strict=True))


@pytest.mark.slow
def test_pixels_in_memory_can_be_cropped_on_the_host(memory):
    source, config = memory
    config.data.crop_on = "host"
    config.augment.crop = "torchvision"
    config = resolve(config)
    batch = take(loader.train_batches(source, config), 1)[0]
    assert batch["image"].shape == (20, 2, 16, 16, 1)
    row = batch["index"][7] - 50
    expected = crops.training_views(source.images[row], np.int64([0, row + 50]), config)["image"]
    np.testing.assert_array_equal(batch["image"][7], expected)


def test_crop_on_must_be_host_or_device_and_device_needs_pixels(host):
    source, config = host
    config.data.crop_on = "device"
    with pytest.raises(ValueError, match="not in memory"):
        loader.train_batches(source, config)
    config.data.crop_on = "gpu"
    with pytest.raises(ValueError, match="crop_on='gpu'"):
        loader.train_batches(source, config)


@pytest.mark.slow
@pytest.mark.parametrize("kind, batch_size", [("memory", 40), ("memory", 90), ("host", 5), ("host", 18)])
def test_evaluation_sees_every_example_once_in_order(kind, batch_size, request):
    source, config = request.getfixturevalue(kind)
    batches = list(loader.eval_batches(source, config, batch_size=batch_size))
    assert all(len(b[k]) == batch_size for b in batches for k in ("image", "label", "index", "mask"))
    mask = np.concatenate([b["mask"] for b in batches])
    assert mask.dtype == bool and mask.sum() == len(source) and mask[: len(source)].all()
    for field, expected in (("index", source.index), ("label", source.labels)):
        np.testing.assert_array_equal(np.concatenate([b[field] for b in batches])[mask], expected)
    images = np.concatenate([b["image"] for b in batches])
    assert images.shape[1:] == (16, 16, config.data.channels) and not images[~mask].any()
    for i in (0, len(source) - 1):
        if source.images is None:
            image = crops.eval_image(crops.decode(source.read([i])[0], 3), config)
        else:
            image = source.images[i]
        np.testing.assert_array_equal(images[i], image)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(
    "stored, size, share",
    [((40, 40), 40, 0.875), ((64, 50), 40, 0.875), ((45, 70), 33, 0.9), ((20, 23), 16, 0.5)],
)
def test_pixels_in_memory_are_cropped_for_evaluation_as_on_the_host(memory, stored, size, share, antialias):
    """Noise shows any error of the kernel; black and white pixels show overshoot.

    Up to 32 pixels nothing is cut off.
    """
    source, config = memory
    config.data.update(image_size=size, eval_crop=share)
    config.augment.antialias = antialias
    images = np.random.default_rng(0).integers(0, 256, (5, *stored, 1)).astype(np.uint8)
    images[3:] = np.where(images[3:] > 127, 255, 0)
    source = dataclasses.replace(source.select(range(5)), images=images)
    batches = list(loader.eval_batches(source, config, batch_size=3))
    found = np.concatenate([b["image"] for b in batches])
    assert found.shape == (6, size, size, 1) and found.dtype == np.uint8 and not found[5].any()
    expected = np.stack([crops.eval_image(image, config) for image in images])
    difference = np.abs(found[:5].astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "host"])
def test_images_are_altered_after_the_crop_by_their_ids_and_padding_is_not(kind, request):
    source, config = request.getfixturevalue(kind)
    source = source.select(np.arange(7)[::-1])
    seen = []

    def alter(images, index):
        seen.append((images.copy(), index.copy()))
        return images // 2 + index[:, None, None, None].astype(np.uint8)

    plain = list(loader.eval_batches(source, config, batch_size=5))
    changed = list(loader.eval_batches(dataclasses.replace(source, alter=alter), config, batch_size=5))
    for (images, index), before, after in zip(seen, plain, changed, strict=True):
        mask = before["mask"]
        np.testing.assert_array_equal(images, before["image"][mask])
        np.testing.assert_array_equal(index, before["index"][mask])
        expected = images // 2 + index[:, None, None, None].astype(np.uint8)
        np.testing.assert_array_equal(after["image"][mask], expected)
        assert not after["image"][~mask].any() and after["image"].shape == before["image"].shape
    assert [len(index) for _, index in seen] == [5, 2]


def spoil(path):
    """Destroy the middle of a PNG but keep its signature and end marker."""
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)


def test_an_image_that_fails_in_the_pipeline_is_named(tmp_path):
    for i in range(12):
        path = tmp_path / "train" / "a" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(path)
    config = get_config("folder").unlock()
    config.data.update(source=f"folder:{tmp_path}", image_size=8, holdout=0.1)
    config.batch_size = 4
    source = sources.load(config.data, "train")
    spoil(tmp_path / "train" / "a" / source.describe(3)[-6:])
    with pytest.raises(ValueError, match=f"{source.describe(3)} cannot be read as an image"):
        take(loader.train_batches(source, config), 3)  # somewhere in the first epoch
    with pytest.raises(ValueError, match=f"{source.describe(3)} cannot be read as an image"):
        list(loader.eval_batches(source, config, batch_size=4))
