"""Sources: their contents, their splits, and an error with a fix for every kind of bad input."""

import dataclasses
import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from configs.simclr import get_config
from ssljax.config import resolve
from ssljax.data import change, decode, sources


def data_of(source, **settings):
    config = get_config("digits").unlock()
    config.data.update(source=source, image_size=8, **settings)
    return resolve(config).data


def save(path, value, kind="JPEG", mode="RGB", size=(10, 12)):
    """A noisy image around a grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 40, (size[1], size[0], 3))
    Image.fromarray((noise + value).astype(np.uint8)).convert(mode).save(path, kind)


@pytest.fixture
def folder(tmp_path):
    """Two classes, six training and two test images each, in many modes."""
    for label, name in enumerate(("cat", "dog")):
        for i, (kind, mode) in enumerate(
            [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "L")]
        ):
            save(tmp_path / "pets" / "train" / name / f"{i}.{kind.lower()}", 100 * label + 10 * i, kind, mode)
        for i in range(2):
            save(tmp_path / "pets" / "test" / name / f"{i}.png", 100 * label + 7 * i, "PNG")
    return tmp_path / "pets"


def test_digits_are_scikit_learns_in_order():
    data = data_of("digits", channels=1)
    train = sources.load(data, "train")
    test = sources.load(data, "test")
    raw = load_digits()
    assert (len(train), len(test), train.num_classes) == (1500, 297, 10)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), raw.target)
    np.testing.assert_allclose(train.images[:, :, :, 0], raw.images[:1500] * 255 / 16, atol=0.5)
    assert train.images.dtype == np.uint8 and train.labels.dtype == train.index.dtype == np.int32
    data.update(image_size=16, channels=3)
    large = sources.load(data, "train")
    assert large.images.shape == (1500, 16, 16, 3) and large.checksum == train.checksum != test.checksum
    # Doubled, bilinear with half-pixel centres: 3/4 of the near pixel and 1/4 of the far one on each axis.
    x = train.images[0, :, :, 0].astype(float)
    expected = (9 * x[3, 4] + 3 * x[3, 5] + 3 * x[4, 4] + x[4, 5]) / 16
    assert abs(large.images[0, 7, 9, 0] - expected) <= 1


@pytest.mark.slow
def test_in_memory_sources_never_load_tensorflow(folder):
    program = f"""
import sys
from pathlib import Path
from configs.simclr import get_config
from ssljax.config import resolve
from ssljax.data import loader, sources
config = get_config("digits").unlock()
next(loader.train_batches(sources.load(config.data, "train"), config))
next(loader.eval_batches(sources.load(config.data, "test"), config, batch_size=9))
config.data.update(source="folder:{folder}", channels=3, image_size=40, eval_crop=0.875)
config.batch_size = 4
config = resolve(config)
next(loader.train_batches(sources.load(config.data, "train"), config))
next(loader.eval_batches(sources.load(config.data, "test"), config, batch_size=9))
assert not [m for m in sys.modules if m.startswith("tensorflow")]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_subsets_apply_to_training_only():
    data = data_of("digits", train_per_class=20, labels_per_class=3, subset_seed=1)
    train = sources.load(data, "train")
    assert np.bincount(train.labels).tolist() == [3] * 10 and len(sources.load(data, "test")) == 297
    assert train.index.max() < 250  # ids are those of the whole split
    np.testing.assert_array_equal(train.labels, load_digits().target[train.index])
    data.update(labels_per_class=0, label_fraction=0.5)
    assert np.bincount(sources.load(data, "train").labels).tolist() == [10] * 10
    data.labels_per_class = 30
    with pytest.raises(ValueError, match="has 20 examples, but 30 per class"):
        sources.load(data, "train")


def test_images_outside_the_labelled_subset_may_stay_without_labels():
    few = sources.load(data_of("digits", labels_per_class=3), "train")
    kept = sources.load(data_of("digits", labels_per_class=3, keep_unlabelled=True), "train")
    whole = sources.load(data_of("digits"), "train")
    np.testing.assert_array_equal(kept.index, whole.index)
    np.testing.assert_array_equal(kept.images, whole.images)
    np.testing.assert_array_equal(np.flatnonzero(kept.labels >= 0), few.index)
    np.testing.assert_array_equal(kept.labels[few.index], few.labels)
    assert kept.num_classes == 10
    assert kept.checksum not in (few.checksum, whole.checksum)


def painted(folder, *greys):
    """Writes a PNG of one grey per name below a folder."""
    for grey in greys:
        path = folder / f"{grey // 100}" / f"{grey:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 24), grey, np.uint8)).save(path)
    return f"folder:{folder}"


def test_a_second_source_without_labels_is_appended(tmp_path):
    data = data_of("digits", labels_per_class=3, unlabelled=painted(tmp_path / "more", 10, 120, 130))
    few = sources.load(data_of("digits", labels_per_class=3), "train")
    both = sources.load(data, "train")
    assert len(both) == 33 and both.facts.num_unlabelled == 3 and both.num_classes == 10
    np.testing.assert_array_equal(both.labels, [*few.labels, -1, -1, -1])
    # Ids of the second source begin behind all 1,500 images, also where only 30 of them are used.
    np.testing.assert_array_equal(both.index, [*few.index, 1500, 1501, 1502])
    np.testing.assert_array_equal(both.images[:30], few.images)
    assert [int(image.mean()) for image in both.images[30:]] == [10, 120, 130]
    assert both.describe(31).endswith("1/120.png")
    assert len(sources.load(data, "test")) == 297
    assert both.select([32, 0]).describe(0).endswith("1/130.png")
    painted(tmp_path / "more", 140)
    assert sources.load(data, "train").checksum != both.checksum


def test_files_of_two_folders(tmp_path):
    labelled = painted(tmp_path / "labelled", 0, 10, 20, 100, 110, 120)
    data = data_of(labelled, crop_on="host", holdout=0.34, unlabelled=painted(tmp_path / "more", 30, 40))
    source = sources.load(data, "train")
    assert source.labels.tolist() == [0, 0, 1, 1, -1, -1] and source.index.tolist() == [0, 1, 2, 3, 4, 5]
    for rows in ([4, 0, 5, 3], [5], [1, 2]):
        names = [source.describe(i) for i in rows]
        assert source.read(rows) == [Path(name).read_bytes() for name in names]
    assert source.file_of(4) == ("0/030.png", (tmp_path / "more/0/030.png").stat().st_size)
    assert change.describe(source)["classes"][0][:2] == ["", 2]


def test_a_second_source_that_does_not_fit(tmp_path):
    more = painted(tmp_path / "more", 30)
    with pytest.raises(ValueError, match="only one of them is in memory. Set data.crop_on='device'"):
        sources.load(data_of("digits", crop_on="host", unlabelled=more), "train")
    with pytest.raises(ValueError, match="data.unlabelled='digits' is unknown: use folder:PATH, tfds"):
        sources.load(data_of("digits", unlabelled="digits"), "train")
    with pytest.raises(FileNotFoundError, match="data.unlabelled=folder:.*there is no folder"):
        sources.load(data_of("digits", unlabelled=f"folder:{tmp_path}/moer"), "train")


def test_select_keeps_ids_pixels_and_names():
    source = sources.load(data_of("digits"), "train")
    some = source.select([5, 9, 5]).select([2, 1])
    assert some.index.tolist() == [5, 9] and some.labels.tolist() == source.labels[[5, 9]].tolist()
    np.testing.assert_array_equal(some.images, source.images[[5, 9]])
    assert some.describe(1) == "image 9 of digits, train"
    assert len({source.checksum, some.checksum, source.select([9, 5]).checksum}) == 3


def write_idx(path, array, magic=None):
    head = struct.pack(">4B", 0, 0, 8, array.ndim) if magic is None else magic
    path.write_bytes(gzip.compress(head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()))


def test_fashion_mnist_from_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    labels = np.array([9, 0, 3, 3, 1], np.uint8)
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels)
    data = data_of("fashion_mnist", data_dir=str(tmp_path))
    data.image_size = 28
    source = sources.load(data, "test")
    np.testing.assert_array_equal(source.images[..., 0], images)
    assert source.labels.tolist() == [9, 0, 3, 3, 1] and source.class_names[9] == "Ankle boot"

    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, images, magic=b"\0\0\x08\x01")
    with pytest.raises(ValueError, match="train-images.*00000801, not with 00000803"):
        sources.load(data, "train")
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 6, 28, 28) + images.tobytes()))
    with pytest.raises(ValueError, match=r"\(6, 28, 28\) = 4704 bytes, but 3920 follow"):
        sources.load(data, "train")
    write_idx(path, images)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a complete gzip file"):
        sources.load(data, "train")
    write_idx(path, images[:4])
    with pytest.raises(ValueError, match="4 images.*5 labels"):
        sources.load(data, "train")
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels + np.uint8(1))
    with pytest.raises(
        ValueError, match=r"image 0 of fashion_mnist, test has label 10, which is outside 0\.\.9"
    ):
        sources.load(data, "test")


def test_fashion_mnist_missing_names_the_three_ways(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="apt-get install dataset-fashion-mnist.*data.data_dir.*ssljax prepare fashion_mnist",
    ):
        sources.load(data_of("fashion_mnist", data_dir=str(tmp_path)), "train")


def test_folder_in_memory_reads_every_kind_of_image(folder):
    source = sources.load(data_of(f"folder:{folder}", channels=3), "train")
    assert source.images.shape == (12, 8, 8, 3)
    assert source.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    assert [source.describe(i).rsplit("/", 2)[1:] for i in (0, 7)] == [["cat", "0.jpeg"], ["dog", "1.jpeg"]]
    means = source.images.mean((1, 2, 3))  # the grey level plus the noise's mean, whatever the mode
    np.testing.assert_allclose(means, [100 * c + 10 * i + 19.5 for c in (0, 1) for i in range(6)], atol=6)
    assert sources.load(data_of(f"folder:{folder}", channels=1), "train").images.shape == (12, 8, 8, 1)


def test_folder_pixels_are_the_central_square_resized(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "0.png")
    encoded = (tmp_path / "train" / "a" / "0.png").read_bytes()
    expected = Image.fromarray(pixels[1:11]).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decode.decode(encoded, 8, 3), np.asarray(expected))


def test_16_bit_grey_keeps_its_scale(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "deep.png")
    assert np.unique(decode.decode((tmp_path / "deep.png").read_bytes(), 8, 3)).tolist() == [40_000 >> 8]


def test_small_images_are_decoded_by_two_threads_and_large_ones_by_all(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 240)

    def missing(i):
        raise OSError("no such file")

    assert decode.threads_for(lambda i: b"x" * 900, 10) == 2
    assert decode.threads_for(lambda i: b"x" * 5_000, 10) == 240
    assert decode.threads_for(missing, 10) == 240
    assert decode.threads_for(missing, 0) == 240
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert decode.threads_for(lambda i: b"x" * 900, 10) == 1


def test_folder_on_host_gives_the_files_bytes(folder):
    source = sources.load(data_of(f"folder:{folder}", crop_on="host"), "test").select([3, 1])
    assert source.images is None
    assert source.read([1, 0]) == [
        (folder / "test" / "cat" / "1.png").read_bytes(),
        (folder / "test" / "dog" / "1.png").read_bytes(),
    ]


@pytest.mark.parametrize("inner", ["", "train"])
def test_holdout_is_deterministic_disjoint_and_per_class(tmp_path, inner):
    for name, n in (("a", 10), ("b", 4)):
        for i in range(n):
            save(tmp_path / inner / name / f"{i}.png", i, "PNG")
    data = data_of(f"folder:{tmp_path}", holdout=0.3, crop_on="host")
    train = sources.load(data, "train")
    test = sources.load(data, "test")
    assert np.bincount(train.labels).tolist() == [7, 3] and np.bincount(test.labels).tolist() == [3, 1]
    files = [{s.describe(i) for i in range(len(s))} for s in (train, test)]
    assert len(files[0] | files[1]) == 14
    again = sources.load(data, "test")
    assert {again.describe(i) for i in range(4)} == files[1] and again.checksum == test.checksum
    data.holdout = 0.0
    with pytest.raises(ValueError, match="data.holdout=0.0"):
        sources.load(data, "train")


def test_path_that_does_not_exist_gets_the_nearest_name(folder):
    with pytest.raises(FileNotFoundError, match=f"no folder.*did you mean {folder}\\?"):
        sources.load(data_of(f"folder:{folder.parent}/pts"), "train")


def test_unknown_source_and_split():
    with pytest.raises(ValueError, match="data.source='digit' is unknown.*did you mean 'digits'"):
        sources.load(data_of("digit"), "train")
    with pytest.raises(ValueError, match="'validation' is neither"):
        sources.load(data_of("digits"), "validation")


def test_folder_without_images(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds no images .*cat"):
        sources.load(data_of(f"folder:{tmp_path}"), "train")
    with pytest.raises(FileNotFoundError, match="train and its sub-folders hold no images"):
        sources.load(data_of(f"folder:{tmp_path}", labels="none"), "train")


def names(source):
    return [source.describe(i).rsplit("/", 1)[1] for i in range(len(source))]


@pytest.fixture
def photographs(tmp_path):
    """Ten unlabelled photographs, two of them in sub-folders, beside a hidden file and a hidden folder."""
    root = tmp_path / "photographs"
    for i in range(10):
        save(root / {3: "2019/summer", 7: "2020"}.get(i, "") / f"{i}.png", 10 * i, "PNG")
    save(root / ".thumbnails" / "0.png", 9, "PNG")
    save(root / ".hidden.png", 9, "PNG")
    return root


@pytest.mark.parametrize("crop_on", ["device", "host"])
def test_every_image_of_a_nested_folder_is_an_example_without_a_label(photographs, crop_on):
    data = data_of(f"folder:{photographs}", labels="none", holdout=0.3, channels=3, crop_on=crop_on)
    train = sources.load(data, "train")
    test = sources.load(data, "test")
    assert (len(train), len(test)) == (7, 3)  # a share of all images, not one of each sub-folder
    assert sorted(names(train) + names(test)) == [f"{i}.png" for i in range(10)]
    for source in (train, test):
        assert (source.labels == -1).all() and source.labels.dtype == np.int32
        assert not source.labelled.any() and source.num_classes == 0 and source.class_names == ()
        assert source.index.tolist() == list(range(len(source)))
    again = sources.load(data, "test")
    assert names(again) == names(test) and again.checksum == test.checksum != train.checksum
    if crop_on == "device":
        grey = [10 * int(name[0]) + 19.5 for name in names(train)]
        np.testing.assert_allclose(train.images.mean((1, 2, 3)), grey, atol=6)
    else:
        assert train.read([0])[0] == (photographs / names(train)[0]).read_bytes()


def test_unlabelled_images_in_train_and_test_folders_are_all_used(tmp_path):
    for split, n in (("train", 4), ("val", 3)):
        for i in range(n):
            save(tmp_path / split / "abc"[i % 3] / f"{split}{i}.png", i, "PNG")
    data = data_of(f"folder:{tmp_path}", labels="none")
    assert sorted(names(sources.load(data, "train"))) == [f"train{i}.png" for i in range(4)]
    assert sorted(names(sources.load(data, "test"))) == [f"val{i}.png" for i in range(3)]


def test_loose_images_have_no_labels_and_a_warning_says_so(tmp_path, caplog):
    for i in range(5):
        save(tmp_path / f"{i}.png", i, "PNG")
    (tmp_path / "notes").mkdir()  # a folder without images is not a class
    source = sources.load(data_of(f"folder:{tmp_path}"), "train")
    assert len(source) == 4 and not source.labelled.any()
    assert f"{tmp_path} has images but no class folders: the images have no labels" in caplog.text
    data = data_of(f"folder:{tmp_path}", holdout=0.0)
    with pytest.raises(ValueError, match="data.holdout=0.0"):
        sources.load(data, "train")
    for i in range(1, 5):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(
        ValueError, match=f"{tmp_path} has 1 image: there is no test folder, so at least 2 are"
    ):
        sources.load(data_of(f"folder:{tmp_path}"), "train")


def test_loose_images_beside_class_folders_are_refused_with_both_fixes(folder):
    save(folder / "train" / "stray.jpg", 3)
    stray = folder / "train" / "stray.jpg"
    with pytest.raises(
        ValueError,
        match=f"{stray} lies loose beside class folders such as .*/train/cat .*move it.*data.labels='none'",
    ):
        sources.load(data_of(f"folder:{folder}"), "train")
    assert len(sources.load(data_of(f"folder:{folder}", labels="none"), "train")) == 13


@pytest.mark.parametrize("sorted_split, loose", [("test", "train"), ("train", "test")])
def test_only_one_split_with_class_folders(tmp_path, sorted_split, loose):
    save(tmp_path / sorted_split / "cat" / "0.png", 3, "PNG")
    save(tmp_path / loose / "0.png", 3, "PNG")
    with pytest.raises(
        ValueError,
        match=f"/{sorted_split} has class folders .cat.*images in .*/{loose} lie loose.*data.labels='none'",
    ):
        sources.load(data_of(f"folder:{tmp_path}"), "train")


@pytest.mark.parametrize("where", ["digits", "folder"])
def test_labels_can_be_removed_and_nothing_else_changes(folder, where):
    source = "digits" if where == "digits" else f"folder:{folder}"
    with_them = sources.load(data_of(source, labels="folders"), "train")
    without = sources.load(data_of(source, labels="none"), "train")
    assert (without.labels == -1).all() and without.class_names == () and without.num_classes == 0
    np.testing.assert_array_equal(without.images, with_them.images)
    np.testing.assert_array_equal(without.index, with_them.index)
    with pytest.raises(ValueError, match="data.labels='flat' is unknown: use 'folders'.*'none'"):
        sources.load(data_of(source, labels="flat"), "train")


@pytest.mark.parametrize(
    "asked, value", [("train_per_class", 2), ("labels_per_class", 2), ("label_fraction", 0.5)]
)
@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_subset_by_label_of_unlabelled_images_is_refused_by_name(folder, asked, value, on_bad_image):
    data = data_of(f"folder:{folder}", labels="none", on_bad_image=on_bad_image, **{asked: value})
    with pytest.raises(
        ValueError,
        match=f"data.{asked}={value} needs labels, and 12 of 12 train images of folder:.*pets have none "
        "\\(first: .*/cat/0.jpeg\\).*data.labels='folders'.*simclr",
    ):
        sources.load(data, "train")
    assert len(sources.load(data, "test")) == 4


def test_a_source_may_be_partly_labelled():
    """-1 means no label. Any other value outside the classes is an error in the data."""
    source = sources.load(data_of("digits"), "train")
    labels = source.labels.copy()
    labels[[3, 8]] = -1
    part = dataclasses.replace(source, labels=labels)
    sources.check_labels(part)
    assert np.flatnonzero(~part.labelled).tolist() == [3, 8] and part.num_classes == 10
    assert part.with_labels("a probe").index.tolist() == np.delete(source.index, [3, 8]).tolist()
    assert source.with_labels("a probe") is source
    with pytest.raises(
        ValueError, match="a probe needs labels, and 2 of 2 train images.*first: image 3 of digits, train"
    ):
        part.select([3, 8]).with_labels("a probe")
    with pytest.raises(ValueError, match="a probe needs labels, and 2 of 1500"):
        part.require_labels("a probe")
    none = np.full(1500, -1, np.int32)
    many = dataclasses.replace(source, labels=none, targets={"labels": np.ones((1500, 3), np.int8)})
    many.require_labels("a probe", several=True)
    with pytest.raises(ValueError, match="a probe needs one label per image, and the train images of digits"):
        many.require_labels("a probe")
    with pytest.raises(ValueError, match="a probe needs labels, and 2 of 1500"):
        part.require_labels("a probe", several=True)
    for wrong in (-2, 10):
        labels[5] = wrong
        with pytest.raises(
            ValueError,
            match=f"image 5 of digits, train has label {wrong}, which is outside 0..9 and not -1 .*1 such",
        ):
            sources.check_labels(part)


def test_select_keeps_targets_with_their_examples():
    source = sources.load(data_of("digits"), "train")
    source = dataclasses.replace(
        source, targets={"tags": np.arange(3000).reshape(1500, 2), "weight": source.index * 0.5}
    )
    some = source.select([7, 2, 7]).select([2, 1])
    assert some.targets["tags"].tolist() == [[14, 15], [4, 5]]
    assert some.targets["weight"].tolist() == [3.5, 1.0]
    assert some.index.tolist() == [7, 2] and source.select([1]).targets.keys() == {"tags", "weight"}


def test_empty_class_folder(folder):
    (folder / "train" / "eel").mkdir()
    (folder / "test" / "eel").mkdir()
    with pytest.raises(ValueError, match="class folder .*train/eel has no images"):
        sources.load(data_of(f"folder:{folder}"), "train")


def test_different_classes_in_train_and_test(folder):
    save(folder / "test" / "eel" / "0.png", 3, "PNG")
    with pytest.raises(ValueError, match="2 classes.*3; only one of them has eel"):
        sources.load(data_of(f"folder:{folder}"), "train")


@pytest.mark.parametrize("crop_on", ["device", "host"])
@pytest.mark.parametrize("how", ["truncated", "text"])
def test_unreadable_image_is_named_or_skipped_and_counted(folder, crop_on, how, caplog):
    bad = folder / "train" / "cat" / "0.jpeg"
    bad.write_bytes(b"not an image" if how == "text" else bad.read_bytes()[:-80])
    data = data_of(f"folder:{folder}", channels=3, crop_on=crop_on)
    with pytest.raises(
        ValueError, match=f"{bad} cannot be read as an image.*--config.data.on_bad_image=skip"
    ):
        sources.load(data, "train")
    data.on_bad_image = "skip"
    source = sources.load(data, "train")
    assert source.skipped == (str(bad),) and len(source) == 11 and source.labels.tolist() == [0] * 5 + [1] * 6
    assert source.describe(0).endswith("cat/1.jpeg") and source.index.tolist() == list(range(11))
    assert f"1 unreadable image left out: {bad}" in caplog.text
    if crop_on == "host":
        assert source.read([0])[0] == (folder / "train" / "cat" / "1.jpeg").read_bytes()


@pytest.mark.parametrize("crop_on", ["device", "host"])
def test_what_is_no_file_is_named_and_neither_hangs_nor_passes_in_silence(folder, crop_on):
    """A pipe hung the run, a folder with the name of an image was left out without a word."""
    cat = folder / "train" / "cat"
    (cat / "a folder.jpg").mkdir()
    (cat / "link.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(cat / "pipe.jpg")
    (cat / "holiday.jpg").mkdir()
    save(cat / "holiday.jpg" / "beach.jpg", 3)  # a folder of images may have any name
    data = data_of(f"folder:{folder}", channels=3, crop_on=crop_on)
    with pytest.raises(ValueError, match=r"a folder.jpg cannot be read as an image \(it is a folder\)"):
        sources.load(data, "train")
    data.on_bad_image = "skip"
    source = sources.load(data, "train")
    assert [name.rsplit("/", 1)[1] for name in source.skipped] == ["a folder.jpg", "link.jpg", "pipe.jpg"]
    assert len(source) == 13 and any("beach" in source.describe(i) for i in range(13))


def test_a_loose_link_or_pipe_is_not_passed_over(folder):
    (folder / "train" / "stray.jpg").symlink_to("/nowhere.jpg")
    with pytest.raises(ValueError, match="stray.jpg lies loose beside class folders"):
        sources.load(data_of(f"folder:{folder}"), "train")


def test_bad_value_of_on_bad_image(folder):
    with pytest.raises(ValueError, match="on_bad_image='ignore'"):
        sources.load(data_of(f"folder:{folder}", on_bad_image="ignore"), "train")


def test_memory_limit(folder, monkeypatch):
    monkeypatch.setattr(decode, "MEMORY_LIMIT", 12 * 8 * 8 * 3 - 1)
    with pytest.raises(MemoryError, match="12 decoded images of 8x8x3.*data.crop_on='host'"):
        sources.load(data_of(f"folder:{folder}", channels=3), "train")


def test_train_per_class_decodes_no_more_than_it_uses(folder):
    (folder / "train" / "dog" / "5.png").write_bytes(b"never read")
    source = sources.load(data_of(f"folder:{folder}", channels=3, train_per_class=2), "train")
    assert source.labels.tolist() == [0, 0, 1, 1] and source.describe(2).endswith("dog/0.jpeg")
