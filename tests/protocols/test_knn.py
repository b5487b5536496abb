"""kNN against scikit-learn and an independent NumPy vote."""

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from configs.simclr import get_config
from ssljax.data import sources
from ssljax.protocols.bench import Bench
from ssljax.protocols.knn import knn, nearest, neighbours_of, refuse


def data(n=57, m=41, d=6, classes=7, seed=0, noise=0.8):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n), rng.integers(0, classes, m)
    centres = rng.normal(size=(classes, d))
    train, test = (centres[y] + noise * rng.normal(size=(len(y), d)) for y in labels)
    return (
        train.astype(np.float32),
        labels[0].astype(np.int32),
        test.astype(np.float32),
        labels[1].astype(np.int32),
    )


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (5, 0.07), (20, 0.5), (20, 1e-3), (57, np.inf)])
def test_top1_equals_scikit_learn(k, temperature):
    train, y, test, z = data()
    # scikit-learn in float64. The weight is exp((1 - d) / T) up to a constant factor, so that 1e-3 does not
    # overflow.
    reference = KNeighborsClassifier(
        k,
        metric="cosine",
        algorithm="brute",
        weights=lambda d: np.exp((d.min(1, keepdims=True) - d) / temperature),
    )
    expected = 100 * (reference.fit(train.astype(np.float64), y).predict(test.astype(np.float64)) == z).mean()
    found = knn(train, y, test, z, k=k, temperature=temperature, num_classes=7)
    assert found["n"] == 41
    assert found["top1"] == pytest.approx(expected, abs=1e-9)


def test_top5_equals_numpy():
    train, y, test, z = data(seed=3, noise=3.0)

    def normalised(x):
        x = x.astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    s = normalised(test) @ normalised(train).T
    hits = 0
    for row, label in zip(s, z, strict=True):
        near = np.argsort(-row, kind="stable")[:12]
        votes = np.bincount(y[near], np.exp(row[near] / 0.07), minlength=7)
        hits += label in np.argsort(-votes, kind="stable")[:5]
    assert 50 < 100 * hits / 41 < 100
    found = knn(train, y, test, z, k=12, temperature=0.07, num_classes=7)
    assert found["top5"] == pytest.approx(100 * hits / 41, abs=1e-9)
    assert "top5" not in knn(train, y % 3, test, z % 3, k=12, temperature=0.07, num_classes=3)


def test_k1_on_the_training_set_itself_is_perfect():
    train, y, _, _ = data()
    assert knn(train, y, train, y, k=1, temperature=0.07, num_classes=7)["top1"] == 100.0


def test_duplicated_training_set_with_doubled_k_votes_the_same():
    train, y, test, z = data()
    once = knn(train, y, test, z, k=6, temperature=0.07, num_classes=7)
    train, y = np.concatenate([train, train]), np.concatenate([y, y])
    twice = knn(train, y, test, z, k=12, temperature=0.07, num_classes=7)
    assert once == twice


def test_more_neighbours_than_images_counts_them_all():
    train, y, test, z = data()
    found = knn(train, y, test, z, k=500, temperature=0.1, num_classes=7)
    assert found == knn(train, y, test, z, k=57, temperature=0.1, num_classes=7)


def test_ties_go_to_the_lowest_train_index_and_the_lowest_class():
    # Rows 0, 2 and 3 have the same direction.
    train = np.array([[1, 0], [0, 1], [2, 0], [3, 0], [0, 5]], np.float32)
    test = np.array([[4, 0]], np.float32)
    scores, index = nearest(train, test, 5)
    np.testing.assert_array_equal(index, [[0, 2, 3, 1, 4]])
    np.testing.assert_allclose(scores, [[1, 1, 1, 0, 0]], atol=1e-7)

    # With k=1 row 0 votes for class 1. With k=2 classes 1 and 2 tie, and 1 wins. With k=3 class 2 has most
    # votes.
    labels = np.array([1, 0, 2, 2, 0], np.int32)
    for k, winner in ((1, 1), (2, 1), (3, 2)):
        label = np.array([winner], np.int32)
        found = knn(train, labels, test, label, k=k, temperature=1.0, num_classes=3)
        assert found["top1"] == 100.0


def test_neighbours_in_chunks_are_those_of_a_full_sort(monkeypatch):
    """Small chunks, a bank that does not divide over the eight devices, and k above the rows of a device."""
    monkeypatch.setattr("ssljax.protocols.knn.SIMILARITIES", 7 * 8)
    train, _, test, _ = data()
    scores, index = nearest(train, test, 20)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    expected = np.argsort(-(b @ a.T), axis=1, kind="stable")[:, :20]
    np.testing.assert_allclose(scores, np.take_along_axis(b @ a.T, expected, 1), atol=1e-6)
    assert (index == expected).mean() > 0.99  # float32 rounding may swap two neighbours


def test_invalid_settings_are_refused():
    train, y, test, z = data()
    with pytest.raises(ValueError, match="k=0"):
        knn(train, y, test, z, k=0, temperature=0.1, num_classes=7)
    with pytest.raises(ValueError, match="temperature=0"):
        knn(train, y, test, z, k=3, temperature=0.0, num_classes=7)


def test_the_number_of_neighbours_follows_the_classes():
    """Half a class of median size, rounded down to 1, 20 or 200."""
    sizes = {(3, 5, 7): 1, (39, 39, 900): 1, (40, 41, 900): 20, (399, 399, 2): 20, (400, 1000, 5000): 200}
    for counts, expected in sizes.items():
        assert neighbours_of(0, np.repeat(np.arange(3), counts)) == expected
        assert neighbours_of(7, np.repeat(np.arange(3), counts)) == 7


def test_images_that_are_their_own_neighbours_are_refused(tmp_path):
    """One folder as both splits, with all its images to learn from or some; another one is accepted."""
    for split, shade in (("learn", 0), ("other", 90)):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8), (shade + i, 0, 0)).save(folder / f"{i}.png")

    def reason(test_split, per_class):
        c = get_config("folder_small").copy_and_resolve_references().unlock()
        c.data.update(source=f"folder:{tmp_path}", train_split="learn", test_split=test_split)
        c.data.train_per_class = per_class
        train, test = (sources.load(c.data, split) for split in ("train", "test"))
        return refuse(Bench(c, "simclr", 0, train, test, None, None))

    for per_class in (0, 2):
        both = "config.data.train_split and config.data.test_split both have "
        assert both + str(tmp_path / "learn" / "cat" / "0.png") in reason("learn", per_class)
        assert reason("other", per_class) == ""
