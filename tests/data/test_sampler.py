"""The order of an epoch and label subsets are pure, balanced and nested."""

import numpy as np
import pytest

from ssljax.data import sampler


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_only():
    first = sampler.order(3, 5, 1000)
    assert first.dtype == np.int64 and sorted(first) == list(range(1000))
    np.testing.assert_array_equal(first, sampler.order(3, 5, 1000))
    for other in (sampler.order(3, 6, 1000), sampler.order(4, 5, 1000), sampler.order(5, 3, 1000)):
        # A random pair of permutations agrees at one place in a thousand.
        assert (first == other).mean() < 0.02
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.15  # 5 standard deviations of independent orders


def test_order_is_the_documented_stream():
    """The order sorts the raw words of Philox keyed by (seed, epoch).

    A run that is resumed with another NumPy version depends on this.
    """
    words = np.random.Philox(key=[7, 2]).random_raw(20)
    assert sampler.order(7, 2, 20).tolist() == sorted(range(20), key=lambda i: words[i])


def test_every_place_is_equally_likely():
    places = np.stack([sampler.order(0, epoch, 10) for epoch in range(2000)])
    counts = np.stack([np.bincount(column, minlength=10) for column in places.T])
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9)


def test_order_refuses_negatives():
    with pytest.raises(ValueError, match="epoch=-1"):
        sampler.order(0, -1, 10)


@pytest.mark.parametrize("case", ["ra0", "ra1"])
def test_repeats_are_the_released_samplers(golden, monkeypatch, case):
    """The interleaved ranks of DeiT's RASampler, for 4 and 2 replicas, equal our stream."""
    g = golden("deit_distillation")
    n = int(g[f"{case}/dataset_len"])
    replicas = int(g[f"{case}/num_replicas"])
    permutation = g[f"{case}/permutation"] if g[f"{case}/shuffle"] else np.arange(n)
    monkeypatch.setattr(sampler, "order", lambda seed, epoch, n: permutation[:n])
    theirs = np.stack([g[f"{case}/rank{r}"] for r in range(replicas)], axis=1).ravel()
    ours = sampler.repeated(0, 0, n, 3)
    assert len(ours) == n and len(theirs) == n // 256 * 256
    np.testing.assert_array_equal(ours[: len(theirs)], theirs)


def test_repeats_keep_the_length_and_see_a_third_of_the_images():
    stream = sampler.repeated(4, 2, 1000, 3)
    ids, counts = np.unique(stream, return_counts=True)
    assert stream.dtype == np.int64 and len(stream) == 1000
    assert len(ids) == 334 and sorted(counts) == [1] + [3] * 333
    np.testing.assert_array_equal(stream[::3], sampler.order(4, 2, 1000)[:334])  # the copies are neighbours
    np.testing.assert_array_equal(sampler.repeated(4, 2, 1000, 1), sampler.order(4, 2, 1000))
    assert set(ids) != set(sampler.repeated(4, 3, 1000, 3))
    with pytest.raises(ValueError, match="repeats=0.*at least 1"):
        sampler.repeated(0, 0, 10, 0)


def test_subset_is_balanced_sorted_deterministic_and_nested():
    labels = np.random.default_rng(0).integers(0, 10, 5000)
    one, ten, half = (sampler.subset(labels, fraction=f, seed=4) for f in (0.01, 0.1, 0.5))
    assert [len(s) for s in (one, ten, half)] == [50, 500, 2500]
    assert np.bincount(labels[one]).tolist() == [5] * 10 and np.bincount(labels[ten]).tolist() == [50] * 10
    assert set(one) < set(ten) < set(half)
    assert (np.diff(ten) > 0).all()
    np.testing.assert_array_equal(ten, sampler.subset(labels, fraction=0.1, seed=4))
    assert set(one) != set(sampler.subset(labels, fraction=0.01, seed=5))


@pytest.mark.slow
def test_subset_counts_are_those_of_simclrs_lists():
    """Class counts equal those of imagenet_subsets/ in google-research/simclr.

    1percent.txt has 12,811 ids: 811 classes of 13 and 189 of 12. 10percent.txt has 128,116 ids: 116 classes
    of 129, the others of 128.
    """
    counts = np.full(1000, 1281)
    counts[:167] += 1
    labels = np.repeat(np.arange(1000), counts)
    one, ten = (np.bincount(labels[sampler.subset(labels, fraction=f, seed=0)]) for f in (0.01, 0.1))
    assert len(labels) == 1_281_167
    assert np.bincount(one).tolist()[12:] == [189, 811]
    assert np.bincount(ten).tolist()[128:] == [884, 116]


def test_subset_keeps_one_of_every_class_and_exhausts_small_ones():
    labels = np.array([0] * 96 + [1] * 3 + [2])
    assert np.bincount(labels[sampler.subset(labels, fraction=0.01, seed=0)]).tolist() == [1, 1, 1]
    assert np.bincount(labels[sampler.subset(labels, fraction=0.2, seed=0)]).tolist() == [16, 3, 1]
    assert sampler.subset(labels, fraction=1.0, seed=0).tolist() == list(range(100))


def test_per_class_subset_and_its_error():
    labels = np.array([0, 1, 0, 1, 1, 0, 0])
    two = sampler.subset(labels, per_class=2, seed=1)
    assert np.bincount(labels[two]).tolist() == [2, 2]
    assert set(two) < set(sampler.subset(labels, per_class=3, seed=1))
    with pytest.raises(ValueError, match="class 1 has 3 examples, but 4 per class.*at most 3"):
        sampler.subset(labels, per_class=4, seed=1)
    with pytest.raises(ValueError, match="fraction=0"):
        sampler.subset(labels, fraction=0.0, seed=1)


def test_examples_without_a_label_are_not_a_class():
    labels = np.array([0, 1, -1, 0, 1, -1])
    for choose in (
        lambda: sampler.subset(labels, per_class=1, seed=0),
        lambda: sampler.subset(labels, fraction=0.5, seed=0),
        lambda: sampler.first_per_class(labels, 1),
    ):
        with pytest.raises(ValueError, match="2 of 6 examples have no label .-1., the first at position 2"):
            choose()


def test_first_per_class():
    labels = np.array([2, 0, 2, 2, 0, 1, 1])
    assert sampler.first_per_class(labels, 2).tolist() == [0, 1, 2, 4, 5, 6]
    with pytest.raises(ValueError, match="class 0 has 2 examples, but 3 per class"):
        sampler.first_per_class(labels, 3)


@pytest.mark.parametrize("case", ["sampler0", "sampler1"])
def test_balanced_draws_are_those_of_the_released_sampler(golden, case):
    """The mean counts per cluster over 500 draws equal the released ones.

    A cluster that has more members than its quota never gives the same image twice.
    """
    g = golden("deepcluster")
    clusters = g[f"{case}/cluster_of_index"]
    sizes = g[f"{case}/cluster_sizes"]
    quota = int(g[f"{case}/size_per_pseudolabel"])
    n = int(g[f"{case}/N"])
    counts = []
    for epoch in range(500):
        drawn = sampler.balanced(3, epoch, clusters)
        assert drawn.shape == (n,) and drawn.dtype == np.int64
        of = clusters[drawn]
        counts.append([(of == k).sum() for k in range(len(sizes))])
        for k in range(len(sizes)):
            if sizes[k] > quota:
                assert len(set(drawn[of == k])) == (of == k).sum()
    np.testing.assert_allclose(np.mean(counts, axis=0), g[f"{case}/mean_counts_500_draws"], atol=0.25)
    assert np.max(counts) <= quota


def test_balanced_skips_examples_in_no_cluster_and_draws_every_member():
    clusters = np.array([-1] * 5 + [2] * 90 + [7] * 5)
    seen = set()
    for epoch in range(50):
        seen |= set(sampler.balanced(0, epoch, clusters).tolist())
    assert seen == set(range(5, 100))
    with pytest.raises(ValueError, match="none of 4 examples is in a cluster"):
        sampler.balanced(0, 0, np.full(4, -1))


def test_turns_count_the_earlier_occurrences_of_an_image():
    np.testing.assert_array_equal(sampler.turns(np.array([4, 2, 4, 4, 0, 2])), [0, 0, 1, 2, 0, 1])
    order = sampler.repeated(0, 1, 10, 3)
    np.testing.assert_array_equal(sampler.turns(order), np.arange(10) % 3)


def test_mixed_batches_pass_over_both_kinds_in_turn():
    labelled, unlabelled = np.array([3, 7, 11]), np.array([0, 1, 2, 4, 5, 5, 6])  # 5 is taken twice
    batches = [sampler.mixed(4, step, labelled, unlabelled, batch_size=8, ratio=3) for step in range(7)]
    first = np.concatenate([batch[:2] for batch in batches])
    rest = np.concatenate([batch[2:] for batch in batches])
    for number in range(4):  # 14 draws of three images
        assert sorted(first[3 * number : 3 * number + 3]) == labelled.tolist()
    for number in range(6):  # 42 draws of seven
        assert sorted(rest[7 * number : 7 * number + 7]) == unlabelled.tolist()
    assert len({tuple(first[3 * number : 3 * number + 3]) for number in range(4)}) > 1
    again = sampler.mixed(4, 5, labelled, unlabelled, batch_size=8, ratio=3)
    np.testing.assert_array_equal(again, batches[5])  # a function of the step alone
    other = sampler.mixed(5, 5, labelled, unlabelled, batch_size=8, ratio=3)
    assert not np.array_equal(other, batches[5])


def test_mixed_batches_need_both_kinds_and_a_multiple():
    some = np.arange(4)
    with pytest.raises(ValueError, match="there are 0 and 4 of them. Hide some labels"):
        sampler.mixed(0, 0, some[:0], some, batch_size=4, ratio=1)
    with pytest.raises(ValueError, match="must be a multiple of 4"):
        sampler.mixed(0, 0, some, some, batch_size=6, ratio=3)
