"""Views in folders: which files belong together, their pixels, and errors about what is missing."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs.cmc import get_config
from ssljax import config as configs
from ssljax.data import loader, recipes, sources, view_folders, views

SIZE = (20, 14)  # width and height


def photograph(seed, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)


def save(root, view, name, seed, pixels=None):
    """A colour image, or its red channel in a folder `depth` and the other two in `flow`."""
    image = photograph(seed) if pixels is None else pixels
    if view == "depth":
        image = image[..., 0]
    elif view == "flow":
        image = image[..., [1, 2, 0]]
    path = root / view / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def root(tmp_path):
    """Two classes of four examples, with three views each."""
    for i in range(8):
        name = f"{'cat' if i < 4 else 'dog'}/{i}"
        for view, ending in (("image", ".bmp"), ("depth", ".png"), ("flow", ".png")):
            save(tmp_path / "data", view, name + ending, i)
    return tmp_path / "data"


def config_of(root, folders=("image:3", "depth:1", "flow:2"), **data):
    config = get_config("views_small").unlock()
    config.data.update(source=f"views:{root}", view_folders=folders, image_size=8, holdout=0.25, **data)
    config.augment.color_space = "rgb"
    config.batch_size = 4
    config = configs.resolve(config)
    configs.check(config)
    return config


def test_files_of_one_name_are_one_example_and_their_channels_are_stacked(root):
    data = config_of(root, crop_on="host").data
    assert data.channels == 6
    train = sources.load(data, "train")
    test = sources.load(data, "test")
    assert (len(train), len(test), train.class_names) == (6, 2, ("cat", "dog"))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    names = [train.describe(i) for i in range(6)] + [test.describe(i) for i in range(2)]
    assert sorted(names) == [str(root / f"image/{'cat' if i < 4 else 'dog'}/{i}.bmp") for i in range(8)]
    for i, encoded in enumerate(train.read(np.arange(6))):
        pixels = photograph(int(names[i].split("/")[-1][0]))
        np.testing.assert_array_equal(train.decode(encoded), pixels[..., [0, 1, 2, 0, 1, 2]])
    file, size = train.file_of(0)
    assert file.startswith("image/cat/") and size == sum(
        (root / view / file.split("/", 1)[1]).with_suffix(ending).stat().st_size
        for view, ending in (("image", ".bmp"), ("depth", ".png"), ("flow", ".png"))
    )


def test_in_memory_a_view_is_resized_like_an_image_of_its_own(root):
    source = sources.load(config_of(root).data, "train")
    assert source.images.shape == (6, 8, 8, 6)
    np.testing.assert_array_equal(source.images[..., :3], source.images[..., 3:])
    alone = config_of(root).data.unlock()
    alone.update(source=f"folder:{root / 'image'}", channels=3)
    np.testing.assert_array_equal(source.images[..., :3], sources.load(alone, "train").images)


@pytest.mark.slow
def test_the_views_of_an_example_are_cropped_and_flipped_alike(root):
    config = config_of(root)
    batch = next(loader.train_batches(sources.load(config.data, "train"), config))
    made = np.asarray(views.stacked(batch, jax.random.key(0), config))
    assert made.shape == (4, 1, 8, 8, 6) and np.abs(made[:, :, :, 0] - made[:, :, :, -1]).max() > 0
    np.testing.assert_allclose(made[..., :3], made[..., 3:], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["tensorflow", "pillow"])
def test_so_they_are_on_the_host(root, resize):
    config = config_of(root, crop_on="host").unlock()
    config.augment.update(resize=resize, interpolation="bilinear")
    source = sources.load(config.data, "train")
    batch = next(loader.train_batches(source, config))
    assert batch["image"].shape == (4, 1, 8, 8, 6)
    np.testing.assert_array_equal(batch["image"][..., :3], batch["image"][..., 3:])
    shown = next(loader.eval_batches(source, config, batch_size=6))["image"]
    np.testing.assert_array_equal(shown[..., :3], shown[..., 3:])
    assert shown.std() > 10


def test_train_and_test_folders_have_the_views_inside(root, tmp_path):
    for split in ("train", "test"):
        for view in ("image", "depth", "flow"):
            (tmp_path / "both" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "both" / split / view).symlink_to(root / view)
    data = config_of(tmp_path / "both", crop_on="host").data
    train, test = sources.load(data, "train"), sources.load(data, "test")
    assert len(train) == len(test) == 8 and "/both/test/image/" in test.describe(0)


@pytest.mark.parametrize("crop_on", ["host", "device"])
def test_an_example_that_lacks_a_view_is_named_or_left_out(root, crop_on, caplog):
    (root / "depth/cat/1.png").unlink()
    save(root, "flow", "dog/9.png", 9)
    with pytest.raises(
        ValueError, match=r"2 of 9 examples .* lack a view \(first: .*image/cat/1.bmp has no "
    ):
        sources.load(config_of(root, crop_on=crop_on).data, "train")
    data = config_of(root, crop_on=crop_on, on_bad_image="skip").data
    kept = [sources.load(data, split) for split in ("train", "test")]
    assert sum(len(source) for source in kept) == 7
    assert sum((source.skipped for source in kept), ()) == (str(root / "image/cat/1.bmp"),)
    assert "cat/1, dog/9" in caplog.text


@pytest.mark.parametrize("crop_on", ["host", "device"])
def test_views_of_another_size_or_unreadable_are_named_or_left_out(root, crop_on):
    save(root, "depth", "cat/1.png", 1, photograph(1, (20, 15)))
    (root / "flow/dog/5.png").write_bytes((root / "flow/dog/5.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"view depth has 20x15 pixels, view image 20x14.*on_bad_image=skip"):
        for split in ("train", "test"):
            sources.load(config_of(root, crop_on=crop_on).data, split)
    data = config_of(root, crop_on=crop_on, on_bad_image="skip").data
    left = [sources.load(data, split).skipped for split in ("train", "test")]
    assert sorted(sum(left, ())) == [str(root / "image/cat/1.bmp"), str(root / "image/dog/5.bmp")]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ((), r"view_folders is empty.*--config.data.view_folders=depth:3,flow:3,image:3"),
        (("image:3",), r"view_folders is image:3, and at least two different folders"),
        (("image:3", "image:1"), "at least two different folders"),
        (
            ("image:3", "depths:1"),
            r"names depths, and .* has no such folder \(its folders: depth, flow, image",
        ),
    ],
)
def test_folders_that_are_not_there(root, folders, message):
    config = config_of(root).unlock()
    config.data.view_folders = folders
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        sources.load(config.data, "train")


def test_names_that_do_not_match_and_names_that_occur_twice(root):
    for file in (root / "depth").rglob("*.png"):
        file.rename(file.with_name("depth_" + file.name))
    with pytest.raises(ValueError, match=r"the first ones are image/cat/0.bmp, depth/cat/depth_0.png"):
        sources.load(config_of(root, ("image:3", "depth:1")).data, "train")
    save(root, "image", "cat/0.png", 0)
    with pytest.raises(ValueError, match=r"0\.bmp and .*0\.png are the same view of one example"):
        sources.load(config_of(root, ("image:3", "flow:2")).data, "train")


@pytest.mark.parametrize(
    ("folders", "changes", "message"),
    [
        (("depth:1", "image:3"), dict(color_space="lab"), "put a folder of colour images first"),
        (("image:3", "depth:1"), dict(jitter_probability=0.5), r"set --config.augment.jitter_probability=0"),
        (("image:3", "depth:1"), dict(mean=(0.0, 0.0, 0.0)), r"3 entries, and data.channels=4"),
    ],
)
def test_colours_of_views_without_any_are_refused(tmp_path, folders, changes, message):
    config = config_of(tmp_path, folders).unlock()
    config.augment.update(**changes)
    with pytest.raises(ValueError, match=message):
        recipes.check_channels(configs.resolve(config))


def test_pictures_of_views():
    stacked = np.arange(6, dtype=np.uint8).reshape(1, 1, 6)
    found = view_folders.pictures(stacked, ("image:3", "depth:1", "flow:2"))
    assert [view.ravel().tolist() for view in found] == [[0, 1, 2], [3, 3, 3], [4, 5, 0]]
