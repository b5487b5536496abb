"""What a decoder finds in mid-training: named, or replaced by the next readable image."""

import dataclasses
import itertools

import numpy as np
import pytest

from configs.simclr import get_config
from ssljax.data import loader, reading, sources
from tests.data.test_damage import cut, holed, picture

pytestmark = pytest.mark.slow

BAD = (4, 5, 11)  # positions in the train split of `folder`; 11 is the last, so position 0 stands in for it
REPLACED = {4: 6, 5: 6, 11: 0}


@pytest.fixture
def folder(tmp_path):
    """12 images of two classes to train on and 4 to test; those of BAD look whole from outside."""
    for split, count in (("train", 6), ("test", 2)):
        for i in range(2 * count):
            path = tmp_path / split / "ab"[i // count] / f"{i:02}.{'png' if i % 3 == 0 else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = picture(size=(60 + i, 50))
            image.paste((20 * i, 255 - 20 * i, 10 * i), (0, 0, 40, 40))
            image.save(path)
    for i in BAD:
        path = next((tmp_path / "train").glob(f"*/{i:02}.*"))
        spoiled = holed if path.suffix == ".png" else cut
        path.write_bytes(spoiled(path.read_bytes()))
    return tmp_path


def opened(folder, on_bad_image="skip", split="train"):
    config = get_config("folder").unlock()
    config.data.update(source=f"folder:{folder}", image_size=16, on_bad_image=on_bad_image)
    config.update(batch_size=4, seed=5)
    reading.NAMED.clear()
    return sources.load(config.data, split), config


def take(batches, n):
    out = list(itertools.islice(batches, n))
    batches.close()
    return out


def with_stand_ins(source):
    """The same stream without damage: the replaced images are copies of those in their place."""

    index = np.array([REPLACED.get(i, i) for i in range(len(source))], np.int32)
    return dataclasses.replace(source, labels=source.labels[index], index=index)


@pytest.mark.parametrize("start", [0, 2, 7])
def test_the_next_readable_image_takes_the_place_with_its_own_label_and_id(folder, start, caplog):
    source, config = opened(folder)
    assert len(source) == 12 and source.skipped == ()  # nothing shows from outside
    found = take(loader.train_batches(source, config, start_step=start), 9 - start)
    expected = take(loader.train_batches(with_stand_ins(source), config, start_step=start), 9 - start)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        assert (one["label"] == one["index"] // 6).all() and not set(one["index"]) & set(BAD)
    said = [record.getMessage() for record in caplog.records if "takes its place" in record.getMessage()]
    if start == 7:  # part of an epoch
        return
    assert len(said) == 3 and said[-1].endswith("(unreadable so far: 3)")  # each once, not once an epoch
    by_name = {message.split(" cannot")[0]: message for message in said}
    assert f"{source.describe(6)} takes its place" in by_name[source.describe(4)]
    assert "its data end before the last pixel" in by_name[source.describe(4)]


def test_every_host_replaces_alike(folder):
    source, config = opened(folder)
    whole = take(loader.train_batches(source, config), 6)
    parts = [
        take(loader.train_batches(source, config, process_index=p, process_count=2), 6) for p in range(2)
    ]
    for step, batch in enumerate(whole):
        for name, values in batch.items():
            both = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(values, both)


def test_without_skip_the_image_is_named_with_the_way_out_and_the_stream_before_it_is_the_same(folder):
    source, config = opened(folder, "error")
    before = []
    with pytest.raises(
        ValueError,
        match=r"/(04|05|11)\.jpg cannot be read as an image \(its data end before the last pixel, the rest "
        r"would be grey\).*--config.data.on_bad_image=skip to go on without it",
    ):
        before.extend(loader.train_batches(source, config))  # fails in the first epoch
    assert len(before) < 3
    skipping, config = opened(folder)
    for one, other in zip(before, loader.train_batches(skipping, config), strict=False):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_undamaged_images_are_read_without_stand_ins(folder, monkeypatch):
    monkeypatch.setattr(reading, "stand_in_of", lambda *_: pytest.fail("nothing is damaged"))
    source, config = opened(folder, split="test")
    take(loader.train_batches(source, config), 3)


def test_evaluation_masks_a_replaced_image_and_a_refresh_sees_the_one_in_its_place(folder):
    source, config = opened(folder)
    rows = np.array([3, 4, 11, 4, 0])
    batches = list(loader.eval_batches(source, config, batch_size=3, positions=rows))
    image, index, mask = (
        np.concatenate([batch[name] for batch in batches]) for name in ("image", "index", "mask")
    )
    assert mask.tolist() == [True, False, False, False, True, False]
    assert index.tolist() == [3, 4, 11, 4, 0, 0]
    other = list(loader.eval_batches(source, config, batch_size=3, positions=np.array([3, 6, 0, 6, 0])))
    np.testing.assert_array_equal(image, np.concatenate([batch["image"] for batch in other]))


def test_evaluation_can_leave_out_what_cannot_be_decoded(folder):
    source, config = opened(folder)
    kept = reading.readable(source, config.data)
    assert kept.index.tolist() == [i for i in range(12) if i not in BAD]
    assert [name[-6:] for name in kept.skipped] == ["04.jpg", "05.jpg", "11.jpg"]
    assert kept.labels.tolist() == [i // 6 for i in kept.index] and kept.checksum != source.checksum
    config.data.on_bad_image = "error"
    assert reading.readable(source, config.data) is source


def test_no_readable_image_at_all(folder):
    source, config = opened(folder)
    with pytest.raises(ValueError, match="none of the 2 images of folder:.* can be decoded"):
        list(loader.eval_batches(source.select([4, 5]), config, batch_size=2))


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_a_file_that_is_gone_stops_the_run_also_with_skip(folder, on_bad_image):
    source, config = opened(folder, on_bad_image, split="test")
    (folder / "test" / "a" / "01.jpg").unlink()
    with pytest.raises(
        ValueError, match="01.jpg cannot be read any more .there is no such file.: bring it back"
    ):
        take(loader.train_batches(source, config), 2)
