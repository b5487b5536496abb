"""DALL-E's discrete VAE against its released code, and what its parts promise."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.convert import dalle
from ssljax.models import dvae
from ssljax.models.dvae import Decoder, Encoder, gumbel_softmax, map_pixels, unmap_pixels

COUNTS = json.loads((Path(__file__).parent.parent / "golden" / "param_counts.json").read_text())
CLOSE = dict(rtol=1e-4, atol=1e-4)


def channels_last(array):
    return np.moveaxis(array, 1, -1)


def networks(g):
    sizes = {name: int(g[name]) for name in ("group_count", "n_hid", "n_blk_per_group", "vocab_size")}
    return Encoder(**sizes), Decoder(**sizes, n_init=int(g["n_init"]), output_channels=3)


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_the_released_encoder_and_decoder(golden):
    g = golden("dalle_dvae")
    encoder, decoder = networks(g)
    weights = {"params": dalle.encoder(g.under("encoder"))}
    encode = jax.jit(lambda weights, image: encoder.apply(weights, map_pixels(image)))
    logits = np.asarray(encode(weights, channels_last(g["image"])))
    np.testing.assert_allclose(logits, channels_last(g["enc_logits"]), **CLOSE)
    np.testing.assert_array_equal(np.argmax(logits, -1), g["codes"])
    weights = {"params": dalle.decoder(g.under("decoder"))}
    one_hot = np.eye(logits.shape[-1], dtype=np.float32)[g["codes"]]
    decode = jax.jit(decoder.apply)
    stats = decode(weights, one_hot)
    np.testing.assert_allclose(stats, channels_last(g["dec_stats"]), **CLOSE)
    np.testing.assert_allclose(decode(weights, jnp.asarray(g["codes"])), stats, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(dvae.image_of)(stats), channels_last(g["reconstruction"]), **CLOSE)


def test_a_foreign_name_is_refused():
    with pytest.raises(ValueError, match="'blocks.input.x' is no name of DALL-E's"):
        dalle.encoder({"blocks.input.x": np.zeros(3)})


def test_the_pixel_map_and_its_inverse(golden):
    g = golden("dalle_dvae")
    np.testing.assert_allclose(unmap_pixels(jnp.asarray(g["unmap_in"])), g["unmap_out"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(map_pixels(jnp.float32([0.0, 0.5, 1.0])), [0.1, 0.5, 0.9], rtol=1e-6)
    grey = jnp.arange(256, dtype=jnp.float32) / 255
    np.testing.assert_allclose(unmap_pixels(map_pixels(grey)), grey, atol=1e-6)


def test_the_relaxed_sample_is_that_of_torch_and_not_one_hot(golden):
    g = golden("dalle_dvae").under("gumbel")
    logits, noise = channels_last(g["logits"]), channels_last(g["noise"])
    soft = gumbel_softmax(logits, noise, float(g["tau"]))
    np.testing.assert_allclose(soft, channels_last(g["soft"]), rtol=1e-5, atol=1e-6)
    assert np.asarray(soft).max() < 0.999
    cold = gumbel_softmax(logits, noise, 1e-4)
    np.testing.assert_allclose(cold, channels_last(g["hard"]), atol=1e-3)


def test_parameter_counts_of_the_released_networks_and_their_grid():
    encoder = jax.eval_shape(Encoder().init, jax.random.key(0), jnp.zeros((1, 112, 112, 3), jnp.float32))
    assert size_of(encoder) == COUNTS["dalle_official"]["encoder_default"]["total"] == 53_786_240
    image = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)
    logits = jax.eval_shape(Encoder().apply, encoder, image)
    assert logits.shape == (1, 14, 14, 8192)
    decoder = jax.eval_shape(Decoder().init, jax.random.key(0), logits)
    assert size_of(decoder) == COUNTS["dalle_official"]["decoder_default"]["total"] == 43_829_766
    assert jax.eval_shape(Decoder().apply, decoder, logits).shape == (1, 112, 112, 6)


@pytest.mark.slow
def test_blocks_start_near_the_identity_and_may_be_negative():
    """The gain is 1 / 8^2, and no ReLU follows the sum."""
    encoder = Encoder(n_hid=32, vocab_size=16)
    x = map_pixels(jax.random.uniform(jax.random.key(1), (2, 32, 32, 3)))
    variables = jax.jit(encoder.init)(jax.random.key(0), x)
    residual = lambda module, _: isinstance(module, dvae.Residual)
    _, found = jax.jit(partial(encoder.apply, capture_intermediates=residual, mutable=True))(variables, x)
    inside = found["intermediates"]
    first = np.asarray(inside["group1_1"]["__call__"][0])
    second = np.asarray(inside["group1_2"]["__call__"][0])
    assert first.min() < 0
    share = (second - first).std() / first.std()
    assert 1e-3 < share < 0.1


def test_upsampling_repeats_pixels_and_odd_images_are_refused():
    x = jnp.arange(4, dtype=jnp.float32).reshape(1, 2, 2, 1)
    expected = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(dvae.upsample(x)[0, :, :, 0], expected)
    with pytest.raises(ValueError, match="no multiple of 8"):
        Encoder(n_hid=4, vocab_size=8).init(jax.random.key(0), jnp.zeros((1, 28, 28, 3), jnp.float32))


def test_perplexity_and_usage_by_hand():
    codes = jnp.array([[0, 0, 1, 1]])
    value, usage = dvae.perplexity(codes, 8)
    np.testing.assert_allclose([value, usage], [2.0, 0.25], rtol=1e-6)
