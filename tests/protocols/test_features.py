"""Feature extraction: every image once and no padding, whatever the batch size."""

import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.protocols.features import Features, check, extract, labelled, raw_pixels, top_k_percent


def batches(images, labels, size):
    """Evaluation batches like the loader's. The last one is padded with garbage rows."""
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        count = len(labels[rows])
        pad = size - count
        white = np.full((pad, *images.shape[1:]), 255, np.uint8)
        ids = np.arange(100 + start, 100 + start + count, dtype=np.int32)
        yield {
            "image": np.concatenate([images[rows], white]),
            "label": np.concatenate([labels[rows], np.full(pad, 7, np.int32)]),
            "index": np.concatenate([ids, np.zeros(pad, np.int32)]),
            "mask": np.arange(size) < count,
        }


@pytest.mark.parametrize("size", [1, 4, 10, 11, 64])
def test_exact_count_and_order_for_any_batch_size(size):
    images = np.arange(11 * 2 * 2, dtype=np.uint8).reshape(11, 2, 2, 1)
    labels = (np.arange(11) % 3).astype(np.int32)
    found = extract(raw_pixels, batches(images, labels, size))
    assert found.features.shape == (11, 4) and found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, images.reshape(11, 4) / 255.0, rtol=2e-7)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.index, 100 + np.arange(11))


def test_empty_split_and_non_finite_features_are_errors():
    with pytest.raises(ValueError, match="split is empty"):
        extract(raw_pixels, [])
    images, labels = np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32)

    def encode(image):
        return raw_pixels(image).at[1].set(jnp.nan)

    with pytest.raises(ValueError, match="image 101 are not finite"):
        extract(encode, batches(images, labels, 4))


def test_padding_may_be_anything():
    """A NaN in a padded row (a constant image through some normalisation) does not matter."""
    images, labels = np.ones((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32)
    found = extract(lambda image: raw_pixels(image).at[3].set(jnp.nan), batches(images, labels, 4))
    assert found.features.shape == (3, 4)


def test_labelled_keeps_the_rows_with_a_label_together():
    found = Features(np.arange(8.0).reshape(4, 2), np.array([-1, 2, -1, 0]), np.array([5, 6, 7, 8]))
    kept = labelled(found, "knn", "test")
    assert kept.features.tolist() == [[2, 3], [6, 7]]
    assert kept.labels.tolist() == [2, 0] and kept.index.tolist() == [6, 8]
    assert labelled(kept, "knn", "test") is kept
    with pytest.raises(ValueError, match="knn judges by labels, and none of 4 test images has one"):
        labelled(found._replace(labels=np.full(4, -1)), "knn", "test")


def test_check_names_what_does_not_fit():
    x, y = np.zeros((3, 2), np.float32), np.array([0, 1, 2], np.int32)
    check(x, y, x, y, 3)
    with pytest.raises(ValueError, match="label 2 is outside 0..1"):
        check(x, y, x, y, 2)
    with pytest.raises(ValueError, match="train features have 2 dimensions, test features 1"):
        check(x, y, x[:, :1], y, 3)
    with pytest.raises(ValueError, match="test: no images"):
        check(x, y, x[:0], y[:0], 3)
    with pytest.raises(ValueError, match="one label per row"):
        check(x, y[:2], x, y, 3)


def test_top_k_percent_on_an_unbalanced_toy():
    """A constant predictor on a 9:1 split has 90 % top-1, not the 50 % of a mean over classes.

    Ties go to the lowest class.
    """
    labels = np.array([0] * 9 + [1])
    assert top_k_percent(np.zeros((10, 3)), labels, 1) == 90.0
    assert top_k_percent(np.zeros((10, 3)), labels, 2) == 100.0
    assert top_k_percent(np.tile([0.0, 2.0, 1.0], (10, 1)), labels, 1) == 10.0
