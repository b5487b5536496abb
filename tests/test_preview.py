"""The contact sheet shows the views of the run's first step, each under the parameters drawn for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cpc, deit, simclr
from ssljax import preview
from ssljax.data import augment, loader, policies, sources, views

pytestmark = pytest.mark.slow


def test_preview_writes_a_picture(tmp_path, capsys):
    from PIL import Image

    preview.main(["--config", "configs/simclr.py:digits", "--workdir", str(tmp_path / "run")])
    path = tmp_path / "run" / "preview.png"
    assert capsys.readouterr().out.strip() == str(path)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1000
    # Black backgrounds and many greys: the page shows digits.
    tiles = pixels[::4, ::4]
    assert (tiles < 20).mean() > 0.2
    assert len(np.unique(tiles)) > 100


@functools.cache
def both():
    """The contents of the sheet for two views."""
    return preview.examples(simclr.get_config("digits"))


def test_views_are_those_of_the_first_step():
    config = simclr.get_config("digits")
    originals, columns, labels = both()
    source = sources.load(config.data, "train")
    batch = next(loader.train_batches(source, config))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    first = jax.device_get(jax.jit(lambda batch: views.stacked(batch, key, config))(batch))
    for v in range(2):
        np.testing.assert_allclose(columns[v].images, first[: preview.ROWS, v], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(np.stack(originals), batch["image"][: preview.ROWS])
    assert labels == [source.class_names[i] for i in batch["label"][: preview.ROWS]]
    assert [column.name for column in columns] == ["one, 16 px", "two, 16 px"] * 3
    assert all(len(column.captions) == preview.ROWS for column in columns)
    assert len({column.images.tobytes() for column in columns}) == preview.VIEWS


def test_one_named_view_is_drawn_six_times_without_a_heading():
    config = simclr.get_config("digits").unlock()
    config.views = dict(one=dict())
    columns = preview.examples(config)[1]
    assert [column.name for column in columns] == [""] * preview.VIEWS
    for found, expected in zip(columns, both()[1], strict=True):  # numbers 0 to 5 in both cases
        np.testing.assert_allclose(found.images, expected.images, rtol=0, atol=2e-6)
        assert found.captions == expected.captions


def test_each_view_has_its_size_and_is_beside_its_partner(tmp_path):
    """Two large views, a smaller one of another recipe, and the large ones again at half their side."""
    config = simclr.get_config("digits").unlock()
    config.augment.update(rotate=0.0, shift=0.0, zoom=0.0, shear=0.0, jitter_probability=0.0)
    config.views = dict(
        large=dict(count=2),
        other=dict(size=12, solarize_probability=1.0, solarize_threshold=0.0),
        half=dict(of="large", count=2, size=8),
    )
    originals, columns, labels = preview.examples(config)
    assert [column.name for column in columns] == [
        "large 1, 16 px",
        "half 1, 8 px",
        "large 2, 16 px",
        "half 2, 8 px",
        "other, 12 px",
    ]
    assert [column.images.shape[1] for column in columns] == [16, 8, 16, 8, 12]
    assert columns[4].captions == ["solarize"] * preview.ROWS
    assert columns[0].captions == ["affine only"] * preview.ROWS
    # Nothing is random in these views.
    np.testing.assert_allclose(columns[0].images, np.stack(originals) / 255, atol=1e-5)
    assert "other: size 12, solarize_probability 1.0, solarize_threshold 0.0" in preview.title(config)
    preview.sheet(tmp_path / "sheet.png", preview.title(config), originals, columns, labels)
    assert (tmp_path / "sheet.png").stat().st_size > 10_000


def test_patches_that_are_changed_for_themselves_are_beside_their_view():
    config = cpc.get_config("digits").unlock()
    config.patches.update(dict.fromkeys(("deform_probability", "histogram_probability"), 0.0))
    config.patches.update(dict.fromkeys(("color_probability", "grayscale_probability"), 0.0))
    _, (view, *_, patches), _ = preview.examples(config)
    assert (patches.name, patches.captions[0]) == ("patches", "36 patches of 6 px")
    assert patches.images.shape == (preview.ROWS, 41, 41, 1)  # six of 6 pixels, five gaps of one
    # The second row and the third column, two pixels apart in the view.
    np.testing.assert_allclose(patches.images[:, 7:13, 14:20], view.images[:, 2:8, 4:10], atol=1e-6)
    assert patches.images[:, 6].min() == 1.0


def test_an_image_without_a_label_is_shown_without_a_name():
    config = simclr.get_config("digits").unlock()
    config.data.labels = "none"
    assert preview.examples(config)[2] == [""] * preview.ROWS


def test_mixtures_show_the_weights_of_their_labels():
    """With a black and a white image, the brightness of a mixture must agree with its caption."""
    config = deit.get_config("digits").student
    images = jnp.stack([jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))])
    config = config.copy_and_resolve_references().unlock()
    config.augment.update(mean=(0.0,), std=(1.0,))
    mixup, cutmix = preview.mixtures(images, np.array([0, 2]), ("a", "b", "c"), jax.random.key(3), config)
    for column in (mixup, cutmix):
        for image, caption, own in zip(column.images, column.captions, "ac", strict=True):
            weights = {}
            for text in caption.split("\n"):
                weight, name = text.split()
                weights[name] = float(weight)
            share = float(image.mean())  # of the white image, in either mixture
            assert weights.get("c", 0.0) == pytest.approx(share, abs=0.006)
            assert weights.get("a", 0.0) == pytest.approx(1 - share, abs=0.006), own
            assert "b" not in weights
    np.testing.assert_array_equal(np.unique(cutmix.images), [0.0, 1.0])
    assert not set(np.unique(mixup.images)) & {0.0, 1.0}


def test_caption_names_what_was_drawn():
    recipe = simclr.get_config("cifar10_r18").augment
    jitter = augment.Jitter(
        np.float32(1.5), np.float32(0.5), np.float32(1.2), np.float32(-0.1), np.array([2, 0, 3, 1])
    )
    yes = np.bool_(True)
    no = np.bool_(False)
    drawn = views.Draw(jitter, yes, yes, yes, np.float32(1.25), yes)
    assert preview.caption(drawn, recipe, 3) == "c0.50 h-0.10 b1.50 s1.20\ngrey blur 1.2 solarize"
    nothing = views.Draw(jitter, no, no, no, np.float32(1.25), no)
    assert preview.caption(nothing, recipe, 3) == "crop only"
    steps = [policies.Step("Equalize", 0.0), policies.Step("Rotate", -27.25)]
    assert preview.caption(nothing, recipe, 3, steps) == "Equalize 0\nRotate -27.2"
    assert preview.caption(drawn._replace(apply_blur=no, apply_solarize=no), recipe, 1) == "c0.50 b1.50"


def test_a_network_with_a_sobel_filter_has_a_column_of_edges():
    config = simclr.get_config("digits").unlock()
    config.model.sobel = True
    *_, last = preview.examples(config)[1]
    assert last.name == "edges" and 0.0 <= last.images.min() < last.images.max() == 1.0

    step = np.zeros((1, 6, 6, 3), np.float32)
    step[:, :, 3:] = 2.0
    column = preview.edges(jnp.asarray(step))
    assert column.images.shape == (1, 6, 6, 1)
    # Dark where it is steep: at the step, and weaker at the border, which the filter pads with zeros.
    np.testing.assert_allclose(column.images[0, 2, :, 0], [1.0, 1.0, 0.0, 0.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(preview.edges(jnp.zeros((1, 4, 4, 3))).images, 1.0)
