"""`hf:NAME`: what `datasets` writes is read by index, with pyarrow alone."""

import io
import json
import shutil
import sys

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from configs.simclr import get_config
from ssljax import prepare
from ssljax.config import resolve
from ssljax.data import arrow, decode, sources
from tests.conftest import GOLDEN

SAVED = GOLDEN / "hf_tiny"  # DatasetDict.save_to_disk of datasets 5.2.0


def data_of(source, **settings):
    config = get_config("digits").unlock()
    config.data.update(source=source, image_size=8, channels=3, **settings)
    return resolve(config).data


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)


def png(seed):
    out = io.BytesIO()
    Image.fromarray(pixels(seed)).save(out, "PNG")
    return out.getvalue()


def table(seeds, labels, stated, image="image", label="label"):
    """A table as `datasets` makes it, with the types of its columns in its metadata."""
    columns = {image: [{"bytes": png(seed), "path": None} for seed in seeds], label: labels}
    made = pyarrow.table(columns)
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": stated}})})


CAT_DOG = {"_type": "ClassLabel", "names": ["cat", "dog"]}
USUAL = {"image": {"_type": "Image"}, "label": CAT_DOG}


def test_what_save_to_disk_wrote_is_read_by_index_with_fine_labels():
    train = sources.load(data_of(f"hf:{SAVED}", crop_on="host"), "train")
    test = sources.load(data_of(f"hf:{SAVED}", crop_on="host"), "test")
    assert train.class_names == ("cat", "dog") and train.images is None
    assert train.labels.tolist() == [0, 1, 0, 1] and test.labels.tolist() == [0, 1]
    for source, first in ((train, 0), (test, 10)):
        order = list(range(len(source)))[::-1]
        for i, encoded in zip(order, source.read(order), strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), pixels(first + i))
    assert train.checksum != test.checksum and "image 3 of hf:" in train.describe(3)
    assert not {"datasets", "pandas"} & set(sys.modules)


def test_into_memory_it_decodes_as_a_folder_does():
    train = sources.load(data_of(f"hf:{SAVED}"), "train")
    expected = np.stack([decode.decode(png(seed), 8, 3) for seed in range(4)])
    np.testing.assert_array_equal(train.images, expected)


def test_parquet_files_are_the_same_data_and_null_is_no_label(tmp_path):
    (tmp_path / "data").mkdir()
    for part, seeds in enumerate(([0, 1], [2, 3])):
        labels = [None, 1] if part else [0, 1]
        file = tmp_path / "data" / f"train-0000{part}-of-00002.parquet"
        parquet.write_table(table(seeds, labels, USUAL), file)
    parquet.write_table(table([10], [0], USUAL), tmp_path / "data" / "validation-00000-of-00001.parquet")
    train = sources.load(data_of(f"hf:{tmp_path}"), "train")
    assert train.labels.tolist() == [0, 1, -1, 1]
    expected = sources.load(data_of(f"hf:{SAVED}"), "train")
    np.testing.assert_array_equal(train.images, expected.images)
    assert len(sources.load(data_of(f"hf:{tmp_path}"), "test")) == 1


def test_without_a_test_split_a_share_of_every_class_is_held_out(tmp_path):
    file = tmp_path / "anything.parquet"
    parquet.write_table(table(range(12), [0, 1, 1] * 4, USUAL, image="image"), file)
    splits = [sources.load(data_of(f"hf:{tmp_path}", holdout=0.25), split) for split in ("train", "test")]
    assert [np.bincount(split.labels).tolist() for split in splits] == [[3, 6], [1, 2]]
    seen = np.concatenate([split.images for split in splits]).reshape(12, -1)
    assert len(np.unique(seen, axis=0)) == 12
    unlabelled = sources.load(data_of(f"hf:{tmp_path}", holdout=0.25, labels="none"), "test")
    assert unlabelled.labels.tolist() == [-1] * 3 and unlabelled.class_names == ()


def test_its_images_may_follow_labelled_ones_without_their_labels():
    hf = f"hf:{SAVED}"
    both = sources.load(data_of(hf, unlabelled=hf, unlabelled_split="validation"), "train")
    assert both.labels.tolist() == [0, 1, 0, 1, -1, -1] and both.index.tolist() == list(range(6))
    expected = [decode.decode(png(seed), 8, 3) for seed in (0, 1, 2, 3, 10, 11)]
    np.testing.assert_array_equal(both.images, expected)


def test_an_unreadable_image_is_named_or_left_out(tmp_path):
    made = table([0, 1, 2], [0, 1, 0], USUAL)
    rows = made["image"].to_pylist()
    rows[1]["bytes"] = rows[1]["bytes"][:40]
    made = made.set_column(0, made.schema.field("image"), pyarrow.array(rows, made["image"].type))
    parquet.write_table(made, tmp_path / "train.parquet")
    parquet.write_table(made, tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="image 1 of hf:.*, train .* cannot be read as an image"):
        sources.load(data_of(f"hf:{tmp_path}"), "train")
    rest = sources.load(data_of(f"hf:{tmp_path}", on_bad_image="skip"), "train")
    assert rest.labels.tolist() == [0, 0] and len(rest.skipped) == 1
    assert "image 2 of hf:" in rest.describe(1)


@pytest.mark.parametrize(
    "stated, message",
    [
        ({"label": CAT_DOG}, r"has 0 columns of type Image.*its columns: label \(ClassLabel\)"),
        ({"image": {"_type": "Image"}}, "has 0 columns of type ClassLabel.*Set data.labels='none'"),
        ({"a": {"_type": "Image"}, "b": {"_type": "Image"}}, "2 columns of type Image.*image or img"),
        ({}, "without types, so no file of `datasets`"),
    ],
)
def test_columns_that_are_not_there_or_not_clear_are_said(tmp_path, stated, message):
    parquet.write_table(table([0, 1], [0, 1], stated), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=message):
        sources.load(data_of(f"hf:{tmp_path}"), "train")


def test_what_is_not_there_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="ssljax prepare hf:own/pets --data_dir .*never downloads"):
        sources.load(data_of("hf:own/pets", data_dir=str(tmp_path)), "train")
    with pytest.raises(FileNotFoundError, match="neither dataset_dict.json nor .arrow"):
        sources.load(data_of(f"hf:{tmp_path}"), "train")
    shutil.copytree(SAVED, tmp_path / "own" / "pets--small")
    prepared = data_of("hf:own/pets:small", data_dir=str(tmp_path))
    assert len(sources.load(prepared, "train")) == 4
    said = prepare.prepare_hf("own/pets:small", str(tmp_path))
    assert said.startswith("hf:own/pets:small: train, validation in ") and "--config.data.data_dir=" in said
    (tmp_path / "own" / "pets--small" / "train" / "data-00000-of-00001.arrow").write_bytes(b"no table")
    with pytest.raises(ValueError, match="data-00000-of-00001.arrow is damaged, or no file of `datasets`"):
        sources.load(prepared, "train")
    with pytest.raises(FileNotFoundError, match="no split 'learn'.*it has train, validation"):
        arrow.load(data_of(f"hf:{SAVED}", train_split="learn"), str(SAVED), "train")
