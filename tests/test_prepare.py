"""Prepared data sets are read by index in both formats and converted. No test needs a network."""

import numpy as np
import pytest

from configs.simclr import get_config
from ssljax import prepare
from ssljax.data import change, crops, decode, loader, records, sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3)).astype(np.uint8)


def store(images, data_dir, file_format, name="tiny", version="1.0.0", labelled=True):
    """Store 30 noise images as a prepared data set: 20 train, 10 test, label = number % 4."""
    crops.tensorflow()
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["a", "b", "c", "d"]),
    }
    kept = ("image", "label") if labelled else ("image",)
    features = tfds.features.FeaturesDict({key: features[key] for key in kept})
    whole = [{"image": image, "label": i % 4} for i, image in enumerate(images)]
    examples = [(i, {key: example[key] for key in kept}) for i, example in enumerate(whole)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        version=version,
        features=features,
        data_dir=data_dir,
        file_format=file_format,
        split_datasets={"train": examples[:20], "test": examples[20:]},
        disable_shuffling=True,
    )


@pytest.fixture(scope="module")
def stored(images, tmp_path_factory):
    places = {f: str(tmp_path_factory.mktemp(f)) for f in ("array_record", "tfrecord")}
    for file_format, place in places.items():
        store(images, place, file_format)
    return places


def config_of(data_dir, **settings):
    config = get_config("cifar10_r18").unlock()
    config.data.update(source="tfds:tiny", data_dir=data_dir, image_size=8, num_classes=4, **settings)
    config.batch_size = 5
    return config


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_records_are_read_by_index(stored, images, file_format):
    data = config_of(stored[file_format]).data
    train = sources.load(data, "train")
    test = sources.load(data, "test")
    np.testing.assert_array_equal(train.images, images[:20])
    np.testing.assert_array_equal(test.images, images[20:])
    assert train.labels.tolist() == [i % 4 for i in range(20)] and train.class_names == ("a", "b", "c", "d")
    assert train.checksum != test.checksum and train.describe(3).startswith("record 3 of tfds:tiny, train")
    data.crop_on = "host"
    source = sources.load(data, "train").select([7, 2])
    np.testing.assert_array_equal([decode.decode(b, 8, 3) for b in source.read([1, 0])], images[[2, 7]])
    data.train_split = "train[5:15]"
    assert sources.load(data, "train").labels.tolist() == [i % 4 for i in range(5, 15)]


@pytest.mark.parametrize(
    "crop_on, said",
    [("device", "class a has 5 images as before, but others"), ("host", "the checksum of the 20 images was")],
)
def test_a_run_notices_that_a_set_was_prepared_anew_with_other_images(
    stored, images, tmp_path, crop_on, said
):
    store(images[1:], str(tmp_path), "array_record")
    places = stored["array_record"], str(tmp_path)
    before, now, again = (
        change.describe(sources.load(config_of(place, crop_on=crop_on).data, "train"))
        for place in (*places, places[0])
    )
    assert change.difference(before, now).startswith(said)
    assert change.difference(before, again) == ""


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_images_of_a_set_that_has_no_labels(images, tmp_path, file_format):
    store(images, str(tmp_path), file_format, labelled=False)
    with pytest.raises(ValueError, match="a class `label` are needed. Set data.labels='none'"):
        sources.load(config_of(str(tmp_path)).data, "train")
    source = sources.load(config_of(str(tmp_path), labels="none").data, "train")
    np.testing.assert_array_equal(source.images, images[:20])
    assert source.labels.tolist() == [-1] * 20 and source.num_classes == 0
    assert not list(tmp_path.rglob("ssljax-labels*"))  # a labelled set would read such a file


def test_both_formats_give_the_same_batches(stored):
    configs = [config_of(stored[f], crop_on="host") for f in ("array_record", "tfrecord")]
    streams = [loader.train_batches(sources.load(c.data, "train"), c) for c in configs]
    for _ in range(6):  # past the end of the epoch
        a = next(streams[0])
        b = next(streams[1])
        assert all(np.array_equal(a[k], b[k]) for k in a) and a["image"].shape == (5, 2, 8, 8, 3)


def test_labels_are_stored_beside_the_data(images, tmp_path):
    store(images, str(tmp_path), "array_record")
    data = config_of(str(tmp_path)).data
    first = sources.load(data, "train")
    kept = tmp_path / "tiny" / "1.0.0" / "ssljax-labels-train-20.npy"
    assert np.load(kept).tolist() == first.labels.tolist()
    np.save(kept, np.full(20, 3, np.int32))  # the next load reads this file
    assert sources.load(data, "train").labels.tolist() == [3] * 20


@pytest.mark.parametrize("first, second", [("train[:50%]", "train[50%:]"), ("train[:-10]", "train[-10:]")])
def test_two_parts_of_a_split_have_labels_of_their_own(images, tmp_path, first, second):
    """Held-out images, such as BYOL's last 10,009. Both parts have ten images here."""
    store(images, str(tmp_path), "array_record")
    parts = config_of(str(tmp_path), train_split=first, test_split=second).data
    for _ in range(2):  # the second time from the stored labels
        assert sources.load(parts, "train").labels.tolist() == [i % 4 for i in range(10)]
        assert sources.load(parts, "test").labels.tolist() == [i % 4 for i in range(10, 20)]


def test_prepare_converts_tfrecord_in_place(images, tmp_path, capsys, monkeypatch):
    store(images, str(tmp_path), "tfrecord")
    prepare.main(["tfds:tiny", "--data_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "train 20, test 10" in printed
    assert f"--config.data.source=tfds:tiny --config.data.data_dir={tmp_path}" in printed
    monkeypatch.setattr(records, "_into_memory", None)  # random access from now on
    data = config_of(str(tmp_path), crop_on="host").data
    source = sources.load(data, "train")
    np.testing.assert_array_equal([decode.decode(b, 8, 3) for b in source.read([13, 4])], images[[13, 4]])
    prepare.main(["tfds:tiny", "--data_dir", str(tmp_path)])  # again: nothing to do


def test_tfrecord_too_large_for_memory_says_how_to_convert(stored, monkeypatch):
    monkeypatch.setattr(decode, "MEMORY_LIMIT", 1000)
    with pytest.raises(
        MemoryError, match="stored as tfrecord.*ssljax prepare tfds:tiny --file_format array_record"
    ):
        sources.load(config_of(stored["tfrecord"], crop_on="host").data, "train")


def test_unprepared_names_the_command(tmp_path):
    data = config_of(str(tmp_path)).data
    data.source = "tfds:cifar10"
    with pytest.raises(
        FileNotFoundError,
        match=f"not prepared in {tmp_path}: run `ssljax prepare tfds:cifar10 --data_dir {tmp_path}`",
    ):
        sources.load(data, "train")
    data.source = "tfds:cifar11"
    with pytest.raises(FileNotFoundError, match="did you mean .*cifar10"):
        sources.load(data, "train")


def test_missing_split_lists_the_existing_ones(stored):
    data = config_of(stored["array_record"]).data
    data.test_split = "validation"
    with pytest.raises(FileNotFoundError, match="no split 'validation'; it has train, test"):
        sources.load(data, "test")


def test_a_set_without_labels_is_refused(images, tmp_path):
    crops.tensorflow()
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(8, 8, 3))})
    tfds.dataset_builders.store_as_tfds_dataset(
        "bare",
        version="1.0.0",
        features=features,
        data_dir=str(tmp_path),
        split_datasets={"train": [(0, {"image": images[0]})]},
        file_format="array_record",
    )
    data = config_of(str(tmp_path)).data
    data.source = "tfds:bare"
    with pytest.raises(
        ValueError, match="tfds:bare has features image; an `image` and a class `label` are needed"
    ):
        sources.load(data, "train")


def test_fashion_mnist_falls_back_to_a_prepared_copy(images, tmp_path):
    store(images, str(tmp_path), "array_record", name="fashion_mnist", version="3.0.1")
    data = config_of(str(tmp_path), crop_on="host").data
    data.source = "fashion_mnist"
    np.testing.assert_array_equal(sources.load(data, "train").images, images[:20])


def test_prepare_of_an_unknown_set_names_the_nearest(tmp_path):
    with pytest.raises(SystemExit, match="no data set 'cifar11'; did you mean .*cifar10"):
        prepare.main(["cifar11", "--data_dir", str(tmp_path)])


def test_prepare_asks_for_archives_that_need_a_registration(tmp_path):
    with pytest.raises(
        SystemExit, match="(?s)imagenet2012 cannot be downloaded automatically.*ILSVRC2012_img_train.tar"
    ):
        prepare.main(["tfds:imagenet2012", "--data_dir", str(tmp_path)])


def test_prepare_without_a_network_says_so(tmp_path, monkeypatch):
    """Every connection is refused. The error comes from TFDS's own downloader."""
    from urllib3.util import connection

    def refuse(*_, **__):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(connection, "create_connection", refuse)
    monkeypatch.setattr(prepare, "RETRIES", 0)
    with pytest.raises(SystemExit, match="cifar10 could not be downloaded .*copy the folder cifar10 into"):
        prepare.main(["cifar10", "--data_dir", str(tmp_path)])
