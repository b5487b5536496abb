"""Few labels: which images are labelled, and that no other label is used."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ssljax.data import sampler
from ssljax.protocols.label_fraction import L2, label_fraction


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return (
        x[:1500].astype(np.float32) / 16,
        y[:1500].astype(np.int32),
        x[1500:].astype(np.float32) / 16,
        y[1500:].astype(np.int32),
    )


def test_every_count_and_draw_equals_scikit_learn_on_that_subset(digits):
    x, y, x2, y2 = digits
    found = list(label_fraction(*digits, num_classes=10, counts=(1, 5), draws=2, channels=1))
    assert [(r["labels_per_class"], r["draw"], r["n"]) for r in found] == [
        (1, 0, 297),
        (1, 1, 297),
        (5, 0, 297),
        (5, 1, 297),
    ]
    scale = np.sqrt(x.var(0).mean())
    for row in found:
        rows = sampler.subset(y, per_class=row["labels_per_class"], seed=row["draw"])
        model = LogisticRegression(C=1 / (len(rows) * L2), max_iter=5000)
        model.fit((x[rows] - x.mean(0)) / scale, y[rows])
        expected = 100 * model.score((x2 - x.mean(0)) / scale, y2)
        assert row["top1"] == pytest.approx(expected, abs=0.35)  # one image of 297
    assert found[0]["top1"] != found[1]["top1"]
    assert 50 < found[0]["top1"] < found[2]["top1"] < 95


def test_labels_outside_the_subset_do_not_matter(digits):
    x, y, x2, y2 = digits
    wanted = list(label_fraction(*digits, num_classes=10, counts=(2,), draws=1))
    kept = sampler.subset(y, per_class=2, seed=0)
    assert len(kept) == 20
    features = x.copy()
    # Every unlabelled image trades places with another. Mean and scale stay, and all other labels are wrong.
    rest = np.setdiff1d(np.arange(len(y)), kept)
    features[rest] = x[np.roll(rest, 1)]
    found = list(label_fraction(features, y, x2, y2, num_classes=10, counts=(2,), draws=1))
    assert found[0]["top1"] == pytest.approx(wanted[0]["top1"], abs=1e-9)


def test_too_few_labels_is_an_error_that_names_the_class():
    x = np.eye(4, dtype=np.float32)
    y = np.array([0, 0, 0, 1])
    with pytest.raises(ValueError, match="class 1 has 1 examples, but 2 per class were asked for"):
        list(label_fraction(x, y, x, y, num_classes=2, counts=(2,), draws=1))
