"""The contact sheet shows the views of the run's first step, each under what was drawn for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import deit, simclr
from ssljax import preview
from ssljax.data import augment, loader, policies, sources, views


def test_preview_writes_a_picture(tmp_path, capsys):
    from PIL import Image
    preview.main(["--config", "configs/simclr.py:digits", "--workdir", str(tmp_path / "run")])
    path = tmp_path / "run" / "preview.png"
    assert capsys.readouterr().out.strip() == str(path)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1000
    tiles = pixels[::4, ::4]
    assert (tiles < 20).mean() > 0.2 and len(np.unique(tiles)) > 100          # black backgrounds, many greys: digits, not an empty page


def test_views_are_those_of_the_first_step():
    config = simclr.get_config("digits")
    originals, made, captions, labels = preview.examples(config)
    source = sources.load(config.data, "train")
    batch = next(loader.train_batches(source, config))
    first = views.random_views(jnp.asarray(batch["image"]), jnp.asarray(batch["index"]), jax.random.fold_in(jax.random.key(config.seed), 0),
                          config.augment, size=config.data.image_size, num_views=2)
    np.testing.assert_allclose(made[:, :2], first[:preview.ROWS], rtol=0, atol=2e-6)
    np.testing.assert_array_equal(np.stack(originals), batch["image"][:preview.ROWS])
    assert labels == [source.class_names[i] for i in batch["label"][:preview.ROWS]]
    assert len(captions) == preview.ROWS and all(len(row) == preview.VIEWS for row in captions)


def test_an_image_without_a_label_stands_there_without_a_name():
    config = simclr.get_config("digits").unlock()
    config.data.labels = "none"
    assert preview.examples(config)[3] == [""] * preview.ROWS


def test_mixtures_show_the_weights_of_their_labels():
    """A black and a white image: how white a mixture is stands in its caption."""
    config = deit.get_config("digits").student
    images = jnp.stack([jnp.zeros((8, 8, 1)), jnp.ones((8, 8, 1))])
    (mixup, cutmix), captions = preview.mixtures(images, np.array([0, 2]), ("a", "b", "c"), jax.random.key(3), config)
    for image, caption in ((mixup, captions[0]), (cutmix, captions[1])):
        weights = [{name: float(share) for share, name in (line.split() for line in row.split("\n"))} for row in caption]
        for row, own in enumerate("ac"):
            share = float(image[row].mean())                               # of the second image, in either mixture
            assert weights[row].get("c", 0.0) == pytest.approx(share, abs=0.006) and "b" not in weights[row]
            assert weights[row].get("a", 0.0) == pytest.approx(1 - share, abs=0.006), own
    np.testing.assert_array_equal(np.unique(cutmix), [0.0, 1.0])
    assert not set(np.unique(mixup)) & {0.0, 1.0}


def test_caption_names_what_was_drawn():
    config = simclr.get_config("cifar10_r18")
    jitter = augment.Jitter(np.float32(1.5), np.float32(0.5), np.float32(1.2), np.float32(-0.1), np.array([2, 0, 3, 1]))
    drawn = views.Draw(jitter, np.bool_(True), np.bool_(True), np.bool_(True), np.float32(1.25))
    assert preview.caption(drawn, config) == "c0.50 h-0.10 b1.50 s1.20\ngrey blur 1.2"
    nothing = drawn._replace(apply_jitter=np.bool_(False), apply_grayscale=np.bool_(False), apply_blur=np.bool_(False))
    assert preview.caption(nothing, config) == "crop only"
    steps = [policies.Step("Equalize", 0.0), policies.Step("Rotate", -27.25)]
    assert preview.caption(nothing, config, steps) == "Equalize 0\nRotate -27.2"
    grey = simclr.get_config("digits")
    assert preview.caption(drawn._replace(apply_blur=np.bool_(False)), grey) == "c0.50 b1.50"


def test_draws_are_those_of_the_views():
    """An image cropped on the host, coloured with what `draws` says, is what `views` returns."""
    config = simclr.get_config("imagenet_r50").augment
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 2, 12, 12, 3)), jnp.uint8)
    index, key = jnp.asarray([5, 9], jnp.int32), jax.random.key(2)
    made = views.random_views(images, index, key, config, size=12, num_views=2)
    drawn = views.draws(index, key, config, 2)
    colored = jax.vmap(jax.vmap(lambda x, d: views.color(augment.to_float(x), d, config)))(images, drawn)
    np.testing.assert_allclose(made, colored, rtol=0, atol=2e-6)
