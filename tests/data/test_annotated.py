"""Boxes and masks move with their images, and every image comes once per pass, in batches of its shape."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from ssljax import config
from ssljax.data import annotate, annotated, loader, sampler, sources
from ssljax.data import annotated_geometry as geometry
from tests import scenes


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return scenes.coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return scenes.voc(tmp_path_factory.mktemp("voc"))


def recipe(source, what, **sizes):
    c = config.base()
    config.annotated(c, what)
    c.data.source = source
    c.batch_size = 2
    c = config.resolve(c)
    c.annotated.update(sizes)
    return c


def boxes_of(root, **sizes):
    """Of the COCO scenes: shorter sides 32 or 48, longer at most 96."""
    return recipe(
        f"coco:{root}", "boxes", **dict(short_sides=(32, 48), test_short_side=48, long_side=96) | sizes
    )


def white(image):
    """The box around the white pixels of an image, x1, y1, x2, y2."""
    rows, columns = np.nonzero(image[..., 0] > 127)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


# ------------------------------------------------------------------------------------------------- geometry


def test_sizes_pixels_and_boxes_are_those_of_detectron2(golden):
    g = golden("preprocess")
    for height, width, short, longest, *new in g["shapes"].tolist():
        assert geometry.shortest_edge((height, width), short, longest) == tuple(new)
    image, boxes = g["image"], g["boxes"]
    for case, rows in (("up", np.s_[::4]), ("down", np.s_[:])):
        size = {"up": (59, 84), "down": (19, 27)}[case]
        found = geometry.resized(image, size)[rows].astype(int)
        assert np.abs(found - g[f"{case}/image"]).max() <= 1
        np.testing.assert_allclose(
            geometry.resized_boxes(boxes, image.shape[:2], size), g[f"{case}/boxes"], atol=1e-5
        )
    np.testing.assert_array_equal(geometry.mirrored_boxes(boxes, image.shape[1]), g["flip/boxes"])


def test_boxes_end_where_the_image_ends():
    cut = geometry.resized_boxes(np.array([[-1.0, 2.0, 11.0, 21.0]]), (20, 10), (40, 30))
    assert cut.tolist() == [[0.0, 4.0, 30.0, 40.0]] and cut.dtype == np.float32


def test_buckets_hold_every_image():
    assert geometry.bucket(800, 1333, False) == (800, 1344)
    assert geometry.bucket(800, 1333, True) == (1344, 800)
    assert geometry.bucket(256, 256, False) == geometry.bucket(256, 256, True) == (256, 256)
    assert geometry.bucket(300, 200, False) == (224, 224)  # no side is above 200
    sizes = np.array([[40, 60], [60, 40], [40, 40]])
    assert geometry.is_portrait(sizes).tolist() == [False, True, True]  # landscapes are wider than high
    for height, width in itertools.product((30, 41, 97, 500), repeat=2):
        for short in (480, 800):
            new = geometry.shortest_edge((height, width), short, 1333)
            room = geometry.bucket(short, 1333, bool(geometry.is_portrait(np.array([[height, width]]))[0]))
            assert new[0] <= room[0] and new[1] <= room[1]


def test_masks_keep_their_classes_and_squares_are_filled():
    mask = np.array([[3, 3, 7], [3, 255, 7]], np.uint8)
    larger = geometry.resized_mask(mask, (8, 12))
    np.testing.assert_array_equal(larger, mask.repeat(4, 0).repeat(4, 1))
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    fill = np.array([9, 8, 7], np.uint8)
    square, labels = geometry.cropped(image, np.zeros((2, 4), np.uint8), 3, (0.99, 0.99), fill)
    np.testing.assert_array_equal(square[:2], image[:, 1:])  # the last of two places
    assert (square[2] == fill).all()
    assert labels.tolist() == [[0, 0, 0], [0, 0, 0], [255, 255, 255]]
    first, _ = geometry.cropped(image, np.zeros((2, 4), np.uint8), 3, (0.0, 0.49), fill)
    np.testing.assert_array_equal(first[:2], image[:, :3])


# -------------------------------------------------------------------------------------------------- sampler


def test_portraits_have_batches_of_their_own_as_if_images_were_grouped_one_by_one():
    portrait = np.random.default_rng(0).uniform(size=23) < 0.3
    stream = (
        (int(i), number) for number in itertools.count() for i in sampler.order(5, number, len(portrait))
    )
    waiting = {False: [], True: []}
    for step in range(60):
        while all(len(group) < 4 for group in waiting.values()):
            i, number = next(stream)
            waiting[bool(portrait[i])].append((i, number))
        kind = next(kind for kind, group in waiting.items() if len(group) == 4)
        found = sampler.oriented(5, step, portrait, batch_size=4)
        assert list(zip(*(each.tolist() for each in found), strict=True)) == waiting[kind]
        waiting[kind] = []


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_every_image_comes_once_in_every_pass(share):
    portrait = np.arange(30) < 30 * share
    drawn = np.concatenate(
        [np.stack(sampler.oriented(1, step, portrait, batch_size=8)) for step in range(60)], axis=1
    )
    images, passes = drawn
    for number in range(int(passes.max()) - 3):
        assert sorted(images[passes == number]) == list(range(30))


# -------------------------------------------------------------------------------------------------- sources


def test_coco_has_its_categories_by_id_and_its_images_by_id(coco):
    c = boxes_of(coco)
    train, test = (sources.load(c.data, split) for split in ("train", "test"))
    assert train.class_names == ("cat", "dog", "bus")
    assert [name.rpartition("/")[2][:6] for name in map(train.describe, range(len(train)))] == [
        "000074", "000085", "000033", "000077", "000014",
    ]  # fmt: skip
    # Images with nothing but a crowd are no images to train on; to test on they are.
    assert len(test) == 7
    assert train.facts == (5, 3, 5, 0)
    assert train.targets["classes"].tolist() == [[1], [0], [2], [1], [0]]
    assert test.targets["classes"].tolist() == [[1, -1], [0, 1], [2, -1], [1, -1], [-1, -1], [1, -1], [0, -1]]
    assert test.targets["difficult"].tolist()[1] == [False, True]
    np.testing.assert_array_equal(test.targets["boxes"][1], [[0, 0, 16, 48], [40, 10, 60, 22]])
    np.testing.assert_array_equal(test.targets["size"][:2], [[64, 40], [48, 64]])
    assert test.targets["area"][0].tolist() == [20 * 28 - 5, 0]
    c.data.categories = ("bus", "cat")
    few = sources.load(c.data, "train")
    assert few.class_names == ("bus", "cat") and few.targets["classes"].tolist() == [[1], [0], [1]]
    assert few.checksum != train.checksum
    c.data.train_split = "val[:3]"
    assert len(sources.load(c.data, "train")) == 2


def test_boxes_of_coco_without_area_are_counted_and_left_out(tmp_path, caplog):
    file = scenes.coco(tmp_path, ("train",)) / "instances_train.json"
    records = json.loads(file.read_text())
    records["annotations"][0]["bbox"] = [10.5, 8.25, 1.03, 0.0]
    records["annotations"][2]["bbox"] = [0, 0, 0.0, 48]
    file.write_text(json.dumps(records))
    assert sources.load(boxes_of(tmp_path).data, "train").targets["classes"].tolist() == [[1], [1], [0]]
    assert "left out: 2, first that of annotation 1 of image 9" in caplog.text


def test_the_official_layout_of_coco_is_found(coco, tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        text = (coco / f"instances_{split}.json").read_text().replace(f'"{split}/', '"')
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(text)
        (tmp_path / f"{split}2017").symlink_to(coco / "images" / split)
    c = boxes_of(tmp_path)
    assert sources.load(c.data, "test").describe(0) == f"{tmp_path}/val2017/000074.png"
    c.data.train_split = "train2017"
    assert len(sources.load(c.data, "train")) == 5


def test_voc_counts_from_one_and_trains_on_difficult_objects(voc):
    c = recipe(f"voc:{voc}", "boxes")
    c.data.update(train_split="2007/trainval+2012/trainval", test_split="2007/test")
    train, test = (sources.load(c.data, split) for split in ("train", "test"))
    assert train.class_names[:2] == ("aeroplane", "bicycle") and train.num_classes == 20
    assert train.targets["classes"].tolist() == [[12, 14], [0, -1], [19, -1]]
    np.testing.assert_array_equal(train.targets["boxes"][0], [[10, 4, 40, 30], [0, 0, 20, 40]])
    assert train.targets["difficult"].tolist()[0] == [False, True]
    assert test.targets["difficult"].tolist() == [[True]]
    assert train.targets["area"][0].tolist() == [30 * 26, 20 * 40]
    # What is in the record is where the white pixels are.
    image = annotated.pixels(train, 2)
    np.testing.assert_array_equal(white(image), train.targets["boxes"][2, 0])
    alone = recipe(f"voc:{voc}/VOC2012", "boxes")
    alone.data.train_split = "trainval"
    assert sources.load(alone.data, "train").describe(0).endswith("VOC2012/JPEGImages/2008_000002.jpg")


def test_masks_are_numbers_and_not_colours(voc, coco):
    c = recipe(f"voc:{voc}", "masks")
    c.data.update(train_split="2007/trainval", test_split="2007/test")
    train = sources.load(c.data, "train")
    assert train.num_classes == 21 and train.class_names[0] == "background"
    mask = train.mask_of(1)
    assert mask.shape == (50, 40) and mask[9, 2] == 255 and mask[10, 3] == 1 and mask[0, 0] == 0
    c.data.categories = ("person", "horse")
    few = sources.load(c.data, "train")
    assert few.class_names == ("background", "person", "horse")
    assert few.mask_of(0)[20, 30] == 2 and few.mask_of(1)[20, 20] == 0  # an aeroplane is background now

    stuff = sources.load(recipe(f"coco:{coco}", "masks").data, "train")
    assert stuff.class_names == ("background", "cat", "dog", "bus") and len(stuff) == 7
    mask = stuff.mask_of(2)  # of the bus
    assert mask[10, 15] == 3 and mask[0, 0] == 0 and (mask[-2:] == 255).all()


def test_masks_of_sbd_lie_in_a_folder_of_their_own(tmp_path):
    year = tmp_path / "VOC2012"
    scenes.voc_image(year, "2008_1", 40, 30, [("cat", 8, 5, 5, 20, 20, 0)])
    scenes.voc_image(year, "2008_2", 40, 30, [("dog", 12, 5, 5, 20, 20, 0)])
    (year / "SegmentationClassAug").mkdir()
    (year / "SegmentationClass" / "2008_2.png").rename(year / "SegmentationClassAug" / "2008_2.png")
    (year / "ImageSets" / "Segmentation").mkdir(parents=True)
    lines = [f"/JPEGImages/2008_{i}.jpg /SegmentationClassAug/2008_{i}.png\n" for i in (1, 2)]
    (year / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("".join(lines))
    c = recipe(f"voc:{tmp_path}", "masks")
    c.data.train_split = "2012/train_aug"
    source = sources.load(c.data, "train")
    assert [int(source.mask_of(i)[10, 10]) for i in range(2)] == [8, 12]


# -------------------------------------------------------------------------------------------------- batches


def test_boxes_lie_where_the_object_is_in_every_batch(coco):
    c = boxes_of(coco)
    source = sources.load(c.data, "train")
    shorts, flips = set(), 0
    for batch in itertools.islice(loader.train_batches(source, c), 12):
        for row in range(2):
            h, w = batch["size"][row]
            image = batch["image"][row]
            assert not image[h:].any() and not image[:, w:].any()
            assert batch["classes"][row, 0] >= 0
            np.testing.assert_allclose(batch["boxes"][row, 0], white(image), atol=0.51)
            shorts.add(int(min(h, w)))
            position = int(batch["index"][row])
            stored = source.targets["boxes"][position, 0]
            straight = stored[0] * w / batch["original"][row, 1]
            flips += abs(straight - batch["boxes"][row, 0, 0]) > 0.01
            np.testing.assert_array_equal(batch["original"][row], source.targets["size"][position])
    assert shorts >= {32, 48} and 4 < flips < 20


def test_landscapes_and_portraits_never_share_a_batch(coco):
    c = boxes_of(coco)
    source = sources.load(c.data, "train")
    shapes = set()
    for batch in itertools.islice(loader.train_batches(source, c), 10):
        tall = batch["size"][:, 0] >= batch["size"][:, 1]
        assert tall.all() or not tall.any()
        shapes.add(batch["image"].shape[1:])
    stated = [fields["image"][0] for fields in annotated.shapes(c, 1)]
    assert shapes == {(64, 96, 3), (96, 64, 3)} == set(stated)  # 48 is rounded up to 64
    c.annotated.long_side = 48
    shapes = {batch["image"].shape[1:] for batch in itertools.islice(loader.train_batches(source, c), 10)}
    assert shapes == {(64, 64, 3)}


def test_the_stream_is_the_same_after_a_resume_and_on_two_hosts(coco):
    for what, sizes in (("boxes", {}), ("masks", dict(crop=32))):
        c = boxes_of(coco) if what == "boxes" else recipe(f"coco:{coco}", what, **sizes)
        source = sources.load(c.data, "train")
        whole = list(itertools.islice(loader.train_batches(source, c), 7))
        later = next(loader.train_batches(source, c, start_step=5))
        halves = [
            next(loader.train_batches(source, c, start_step=5, process_index=p, process_count=2))
            for p in range(2)
        ]
        for name, values in whole[5].items():
            np.testing.assert_array_equal(values, later[name])
            np.testing.assert_array_equal(values, np.concatenate([half[name] for half in halves]))
        c.seed = 1
        assert not np.array_equal(next(loader.train_batches(source, c))["image"], whole[0]["image"])


def test_a_mask_moves_with_its_image(coco):
    c = recipe(f"coco:{coco}", "masks", crop=48, scales=(0.5, 1.5))
    c.augment.mean = (0.5, 0.25, 0.125)
    source = sources.load(c.data, "train")
    there = 0
    for batch in itertools.islice(loader.train_batches(source, c), 20):
        assert batch["image"].shape == (2, 48, 48, 3) and (batch["size"] == 48).all()
        for image, mask in zip(batch["image"], batch["mask"], strict=True):
            object_ = (mask > 0) & (mask < 255)
            grey = (image == [128, 64, 32]).all(-1)  # beyond the image
            assert (mask[grey] == 255).all()
            inside = image[mask < 255][:, 0] > 127
            assert (inside != object_[mask < 255]).mean() < 0.06  # the edges, within a pixel
            there += object_.any()
    assert there > 10


def test_a_longest_side_shrinks_masks_in_training_as_in_evaluation(coco):
    """Without a random scale, and with squares of that side, the two see the same pixels and classes."""
    c = recipe(f"coco:{coco}", "masks", long_side=24, scales=(1.0, 1.0), crop=24, test_side=24)
    c.augment.flip = False
    source = sources.load(c.data, "test")
    for position in range(len(source)):
        ((batch, _),) = annotated.eval_batches(source.select([position]), c, batch_size=1)
        height, width = batch["size"][0]
        assert max(height, width) == 24 < batch["original"].max()
        image, mask = annotated.with_mask(source, position)
        np.testing.assert_array_equal(
            batch["mask"][0, :height, :width], geometry.resized_mask(mask, (height, width))
        )
        example = annotated.training_example(source, position, c, 0)
        np.testing.assert_array_equal(
            np.sort(example["mask"][example["mask"] != 255]),
            np.sort(batch["mask"][0][batch["mask"][0] != 255]),
        )


def test_evaluation_sees_every_image_once_and_repeats_fill_the_last_batch(coco):
    c = boxes_of(coco, test_short_side=32)
    source = sources.load(c.data, "test")
    seen = []
    for batch, count in annotated.eval_batches(source, c, batch_size=3):
        assert batch["image"].shape[0] == 3
        assert batch["size"].min(axis=1).max() <= 32
        seen += batch["index"][:count].tolist()
        assert (batch["index"][count:] == batch["index"][count - 1]).all()
    assert seen == [1, 2, 3, 4, 5, 0, 6]  # landscapes, then portraits

    c.annotated.test_long_side = 40
    for batch, _ in annotated.eval_batches(source, c, batch_size=3):
        assert sorted(batch["image"].shape[1:3]) == [32, 64] and batch["size"].max() <= 40

    c = recipe(f"coco:{coco}", "masks", test_side=70)
    for batch, _ in annotated.eval_batches(sources.load(c.data, "test"), c, batch_size=4):
        h, w = batch["size"][0]
        assert batch["image"].shape[1:] == (70, 70, 3)
        np.testing.assert_array_equal(batch["size"], batch["original"])
        assert (batch["mask"][0, h:] == 255).all() and (batch["mask"][0, :, w:] == 255).all()
        assert not batch["image"][0, h:].any()


def test_draws_are_uniform_and_differ_by_seed_pass_and_image():
    found = np.array([annotated.draws(s, n, i) for s in range(4) for n in range(25) for i in range(25)])
    assert len(np.unique(found)) == found.size and found.min() >= 0 and found.max() < 1
    assert np.abs(found.mean(axis=0) - 0.5).max() < 0.03  # 5 standard deviations
    words = np.random.Philox(key=[3, 1], counter=[0, 8, 0, 0]).random_raw(4)
    np.testing.assert_array_equal(annotated.draws(3, 1, 7), (words >> 11) / 2**53)


# --------------------------------------------------------------------------------------------------- errors


def one(box, **changed):
    return annotate.Picture("a.jpg", "records.json", (40, 60), (annotate.Object("cat", box, False, 1.0),))


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((5, 5, 5, 20), "has no area"),
        ((9, 20, 30, 12), "has no area"),
        ((5, 5, 62, 20), "outside of the image, which is 60 wide and 40 high"),
        ((-65536, 5, 20, 20), "outside"),
        ((5, 5, float("nan"), 20), "has no area"),
    ],
)
def test_a_bad_box_is_named_or_left_out_on_request(box, words, caplog):
    assert annotate._sound(annotate.Object("cat", (-0.5, 0, 60.5, 40), False, 1.0), one(box), "error")
    with pytest.raises(ValueError, match=rf"records.json: the box .* \(cat\) of a.jpg .*{words}.*skip"):
        annotate._sound(one(box).objects[0], one(box), "error")
    assert not annotate._sound(one(box).objects[0], one(box), "skip")
    assert words in caplog.text


def test_unreadable_images_are_left_out_on_request(tmp_path):
    root = scenes.voc(tmp_path)
    file = root / "VOC2007" / "JPEGImages" / "000012.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[:400] + bytes(len(whole) - 402) + whole[-2:])  # its ends look complete
    for what in ("boxes", "masks"):
        c = recipe(f"voc:{root}", what)
        c.data.train_split = "2007/trainval"
        c.batch_size = 1
        with pytest.raises(ValueError, match="000012.jpg cannot be read as an image.*on_bad_image=skip"):
            list(itertools.islice(loader.train_batches(sources.load(c.data, "train"), c), 2))
        c.data.on_bad_image = "skip"
        source = sources.load(c.data, "train")
        assert len(source) == 1 and source.skipped == (str(file),)
        batch = next(loader.train_batches(source, c))
        assert batch["original"].tolist() == [[50, 40]]
        assert what == "masks" or batch["classes"].tolist() == [[0]]


def test_what_is_wrong_with_the_data_is_named(coco, voc, tmp_path):
    def refused(c, match, error=ValueError, split="train"):
        with pytest.raises(error, match=match):
            source = sources.load(c.data, split)
            next(loader.train_batches(source, c))

    c = boxes_of(coco)
    c.data.categories = ("cats",)
    refused(c, "no class 'cats'; did you mean 'cat'")
    c = boxes_of(coco)
    c.data.crop_on = "device"
    refused(c, "crop_on='host'")
    c = boxes_of(coco)
    c.data.test_split = "minival"
    refused(c, "there: instances_train.json, instances_val.json", FileNotFoundError, "test")
    c = boxes_of(coco)
    c.augment.jitter_probability = 0.8
    refused(c, "augment.jitter_probability=0.8.*must be 0.0")
    c = boxes_of(coco)
    c.data.source = "fashion_mnist"
    refused(c, "data.annotations='boxes' needs images with boxes.*use coco:PATH, voc:PATH or digits")
    c.data.update(source="digits", categories=("7",))
    refused(c, "data.categories=\\('7',\\) does not go with data.source=digits: leave it out")
    c.data.update(categories=(), crop_on="device")
    refused(c, "crop_on='host'")
    c = boxes_of(coco)
    c.data.annotations = ""
    refused(c, "set data.annotations='boxes' or 'masks'")
    refused(recipe(f"voc:{voc}", "boxes"), "there: VOC2007, VOC2012.*2007/trainval", FileNotFoundError)
    c = recipe(f"coco:{coco}", "masks", test_side=48)
    with pytest.raises(ValueError, match="64 high.*annotated.test_side=64"):
        next(annotated.eval_batches(sources.load(c.data, "test"), c, batch_size=2))

    root = scenes.coco(tmp_path / "coco")
    text = (root / "instances_train.json").read_text()
    for old, new, words in (
        (
            '"category_id": 90',
            '"category_id": 91',
            "annotation 1 has category_id=91, which the file does not",
        ),
        ('"image_id": 9,', '"image_id": 8,', "annotation 1 has image_id=8"),
        ('"bbox": [10, 8, 30, 20]', '"bbox": [10, 8]', "annotation 1 has no bbox of four numbers"),
        ('"bbox": [10, 8, 30, 20]', '"bbox": [10, 8, 30, -2]', r"box x1, y1, x2, y2 = 10, 8, 40, 6 \(bus\)"),
        ('"categories"', '"kinds"', "has no categories"),
    ):
        assert old in text
        (root / "instances_train.json").write_text(text.replace(old, new))
        refused(boxes_of(root), f"instances_train.json.*{words}")

    root = scenes.voc(tmp_path / "voc")
    record = root / "VOC2007" / "Annotations" / "000012.xml"
    mask = root / "VOC2007" / "SegmentationClass" / "000012.png"
    text = record.read_text()
    c = recipe(f"voc:{root}", "boxes")
    c.data.train_split = "2007/trainval"
    c.batch_size = 1
    record.write_text(text.replace("<width>60</width><height>40<", "<width>40</width><height>60<"))
    refused(c, "000012.jpg is 60 wide and 40 high, and its record says 40 and 60")
    record.write_text(text.replace("<xmin>11</xmin>", ""))
    refused(c, "000012.xml cannot be read.*no bndbox/xmin")
    record.write_text(text.replace("horse", "unicorn"))
    refused(c, "000012.xml has an object 'unicorn'")
    c.data.annotations = "masks"
    c = config.resolve(c)
    Image.fromarray(np.full((40, 60), 77, np.uint8)).save(mask)
    refused(c, "000012.png has the value 77, which is no class")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(mask)
    refused(c, "000012.png is a picture in colours")
    Image.fromarray(np.zeros((60, 40), np.uint8)).save(mask)
    refused(c, "mask of .*000012.jpg is 40 wide and 60 high, and the image 60 and 40")
    mask.unlink()
    refused(c, "has no mask", FileNotFoundError)
