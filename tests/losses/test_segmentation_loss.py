"""Cross entropy of pixels against PyTorch, and what is ignored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.segmentation import pixel_accuracy, pixel_cross_entropy


def test_the_mean_and_its_gradient_equal_pytorch(golden):
    g = golden("segmentation")
    logits = jnp.asarray(g["ce/logits_nchw"].transpose(0, 2, 3, 1))
    labels = jnp.asarray(g["ce/labels"])
    mean = lambda logits: jnp.mean(pixel_cross_entropy(logits, labels))
    value, grad = jax.jit(jax.value_and_grad(mean))(logits)
    np.testing.assert_allclose(value, g["ce/mean_over_valid"], rtol=1e-5)
    np.testing.assert_allclose(grad.transpose(0, 3, 1, 2), g["ce/grad"], rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_pixels_of_all_images_weigh_alike_or_images_do():
    """Three pixels of class 0 with the losses 1, 1 and 4, in an image of one pixel and an image of two."""
    losses = jnp.array([1.0, 1.0, 4.0])
    labels = jnp.array([[[0, 255]], [[0, 0]]])
    chance = jnp.exp(-losses)
    pixels = jnp.stack([jnp.log(chance), jnp.log(1 - chance)], axis=-1)
    logits = jnp.stack([jnp.stack([pixels[0], pixels[1] + 7.0]), pixels[1:]])[:, None]
    np.testing.assert_allclose(jnp.mean(pixel_cross_entropy(logits, labels)), 2.0, rtol=1e-5)
    rows = pixel_cross_entropy(logits, labels, per_image=True)
    np.testing.assert_allclose(rows, [1.0, 2.5], rtol=1e-5)
    nothing = jnp.full_like(labels, 255)
    np.testing.assert_array_equal(pixel_cross_entropy(logits, nothing), 0.0)
    np.testing.assert_array_equal(pixel_cross_entropy(logits, nothing, per_image=True), 0.0)


def test_accuracy_counts_the_pixels_with_a_class():
    logits = jax.nn.one_hot(jnp.array([[[0, 1, 1, 0]]]), 2)
    np.testing.assert_allclose(pixel_accuracy(logits, jnp.array([[[0, 1, 0, 255]]])), 2 / 3, rtol=1e-6)
