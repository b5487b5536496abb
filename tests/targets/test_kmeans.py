"""k-means and whitening against faiss and the released code, by hand, and on eight devices against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax import sharding
from ssljax.losses.similarity import l2_normalize
from ssljax.targets import kmeans


@pytest.fixture(scope="module")
def blobs(golden):
    """2,000 rows of 32 dimensions in loose groups."""
    return jnp.asarray(golden("deepcluster")["kmeans/x_float16"].astype(np.float32))


def distances(x, centroids):
    return ((np.asarray(x, np.float64)[:, None] - np.asarray(centroids, np.float64)[None]) ** 2).sum(-1)


# ---------------------------------------------------------------------------------------- the released codes


def test_one_iteration_of_given_centroids(golden, blobs):
    g = golden("deepcluster").under("lloyd")
    centroids = jnp.asarray(g["centroids"])
    np.testing.assert_array_equal(kmeans.assign(blobs, centroids), g["assignment"])
    found = kmeans.clusters(kmeans.assign(blobs, centroids), centroids)
    np.testing.assert_array_equal(found.counts, g["counts"])
    np.testing.assert_allclose(kmeans.objective(blobs, found), g["objective"], rtol=1e-5)
    means, objective = kmeans.lloyd(blobs, centroids, jax.random.key(0), iterations=1, repair="none")
    full = g["counts"] > 0
    np.testing.assert_allclose(
        np.asarray(means)[full], g["means_nan_where_empty"][full], rtol=1e-4, atol=1e-4
    )
    assert not full.all()
    # Without repair an empty cluster keeps its centroid.
    np.testing.assert_array_equal(np.asarray(means)[~full], g["centroids"][~full])
    np.testing.assert_allclose(objective, [g["objective"]], rtol=1e-5)


@pytest.mark.slow
def test_one_run_ends_within_a_hundredth_of_faiss(golden):
    g = golden("deepcluster").under("kmeans_sphere")
    x = jnp.asarray(g["x_float16"].astype(np.float32))
    found = kmeans.fit(x, int(g["k"]), jax.random.key(0), iterations=int(g["niter"]))
    np.testing.assert_allclose(kmeans.objective(x, found), g["median_final_obj"], rtol=0.01)
    np.testing.assert_array_equal(found.assignment, distances(x, found.centroids).argmin(1))


@pytest.mark.slow
def test_the_best_of_twenty_runs_is_among_the_better_of_faiss(golden, blobs):
    """Single runs on these rows end in optima 20 % apart."""
    g = golden("deepcluster").under("kmeans")
    runs = [
        kmeans.fit(blobs, int(g["k"]), jax.random.key(seed), iterations=int(g["niter"])) for seed in range(20)
    ]
    ends = [float(kmeans.objective(blobs, run)) for run in runs]
    assert min(ends) <= np.percentile(g["faiss_final_obj_seed0to29"], 25)
    assert min(ends) > 0.98 * g["sklearn_kmeanspp_ninit20_inertia"]  # and not better than possible
    assert len(set(ends)) > 10, "different keys must give different first centroids"


def test_whitening_of_the_released_code(golden):
    g = golden("deepcluster").under("pca")
    x = jnp.asarray(g["features"])
    white = kmeans.pca_whiten(x, int(g["dim"]))
    np.testing.assert_allclose(np.cov(np.asarray(white, np.float64).T, bias=True), np.eye(10), atol=1e-4)
    rows = np.asarray(l2_normalize(white))
    np.testing.assert_allclose(rows[:40] @ rows[:40].T, g["gram_first40"], atol=1e-4)
    signs = np.sign((rows * g["output"]).sum(0))
    np.testing.assert_allclose(rows * signs, g["output"], atol=1e-4)
    found = kmeans.moments(x)
    np.testing.assert_allclose(found.mean, g["mean"], atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(np.asarray(found.scatter)), np.sort(g["eigenvalues"]), rtol=1e-4, atol=0.01
    )


# --------------------------------------------------------------------------------------------------- by hand


def test_four_points_by_hand():
    x = jnp.float32([[0, 0], [0, 1], [10, 0], [10, 1]])
    centroids, objective = kmeans.lloyd(x, x[jnp.array([0, 2])], jax.random.key(0), iterations=3)
    np.testing.assert_allclose(centroids, [[0, 0.5], [10, 0.5]], atol=1e-6)
    np.testing.assert_allclose(objective, [2.0, 1.0, 1.0], atol=1e-5)


@pytest.mark.slow
def test_of_equally_near_centroids_the_first_and_as_many_clusters_as_rows():
    x = jnp.float32([[1, 0], [2, 0], [4, 4]])
    assert kmeans.assign(x, jnp.float32([[9, 9], [1, 1], [1, -1], [1, 1]])).tolist() == [1, 1, 1]
    found = kmeans.fit(x, 3, jax.random.key(0), iterations=2)
    assert sorted(found.assignment.tolist()) == [0, 1, 2] and found.counts.tolist() == [1, 1, 1]
    np.testing.assert_allclose(kmeans.objective(x, found), 0.0, atol=1e-5)
    with pytest.raises(ValueError, match="4 clusters of 3 rows: config.clusters.k must be"):
        kmeans.fit(x, 4, jax.random.key(0), iterations=1)
    with pytest.raises(ValueError, match="repair='fais' is not one of faiss, additive, none"):
        kmeans.fit(x, 2, jax.random.key(0), iterations=1, repair="fais")


def test_the_objective_never_rises(blobs):
    _, objective = kmeans.lloyd(blobs, blobs[:25], jax.random.key(0), iterations=20, repair="none")
    assert (
        np.all(np.diff(objective) <= 1e-6 * np.asarray(objective)[1:]) and objective[-1] < 0.8 * objective[0]
    )


def test_a_split_by_hand():
    """Cluster 1 has 7 rows and gives 3 to the empty one; cluster 0 has one row and cannot give."""
    centroids = jnp.float32([[5, 5, 5], [2, -4, 8], [0, 0, 0]])
    counts = jnp.int32([1, 7, 0])
    key = jax.random.key(0)
    new, expected_counts = kmeans.split_empty(centroids, counts, key, "faiss")
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    np.testing.assert_allclose(
        new, [[5, 5, 5], [2 * down, -4 * up, 8 * down], [2 * up, -4 * down, 8 * up]], rtol=1e-7
    )
    assert expected_counts.tolist() == [1, 4, 3]

    small = jnp.float32([[5, 5, 5], [0.2, -0.4, 0.8], [0, 0, 0]])
    new, expected_counts = kmeans.split_empty(small, counts, key, "additive")
    np.testing.assert_allclose((new - small[1][None])[1:] * 1e7, [[1, -1, 1], [-1, 1, -1]], atol=0.4)
    assert expected_counts.tolist() == [1, 4, 3]

    alone, _ = kmeans.split_empty(centroids, jnp.int32([1, 1, 0]), key, "faiss")
    np.testing.assert_array_equal(alone, centroids)  # no cluster has two rows


@pytest.mark.parametrize("sizes", [(60, 30, 9, 0, 1), (1, 31, 31, 0), (0, 2, 2, 7, 40)])
def test_donors_are_those_of_faiss_scan(sizes):
    """Against the scan itself (`Clustering.cpp`, split_clusters), which begins at cluster 0."""
    rng = np.random.default_rng(0)
    k = len(sizes)

    def scan():
        j = 0
        while rng.random() >= (sizes[j] - 1) / (sum(sizes) - k):
            j = (j + 1) % k
        return j

    draws = 4000
    expected = np.bincount([scan() for _ in range(draws)], minlength=k) / draws
    counts = jnp.int32(sizes)
    split = lambda key: kmeans.split_empty(jnp.ones((k, 2), jnp.float32), counts, key, "faiss")[1] < counts
    found = np.mean(jax.jit(jax.vmap(split))(jax.random.split(jax.random.key(0), draws)), axis=0)
    sigma = np.sqrt(2 * expected * (1 - expected) / draws)
    assert np.all(np.abs(found - expected) <= 4 * sigma + 2 / draws)


def test_donors_of_ten_thousand_clusters_in_float32():
    """The logarithms of the scan's probabilities, in float64, up to a constant; one of them is certain."""
    sizes = np.random.default_rng(0).integers(0, 260, 10_000)
    p = np.maximum(sizes - 1, 0) / (sizes.sum() - len(sizes))
    some = p > 0
    expected = np.log(p[some]) + np.concatenate([[0], np.cumsum(np.log1p(-p))[:-1]])[some]
    found = np.asarray(kmeans.scanned(jnp.asarray(sizes, jnp.int32)))
    np.testing.assert_allclose(found[some], expected, atol=1e-4)
    assert np.all(found[~some] == -np.inf)
    assert np.asarray(kmeans.scanned(jnp.int32([1, 9, 0, 0]))).argmax() == 1


def test_empty_clusters_are_repaired(blobs):
    """25 centroids, of which only two differ; all others start empty."""

    def empty(repair):
        found = kmeans.fit(blobs, 25, jax.random.key(0), iterations=20, repair=repair, distinct=2)
        return int((found.counts == 0).sum())

    assert [empty(repair) for repair in ("faiss", "additive")] == [0, 0]
    assert empty("none") > 4  # rounding tells some of the copies apart


def test_spherical_centroids_have_length_one(golden):
    x = l2_normalize(jnp.asarray(golden("deepcluster")["kmeans/x_float16"].astype(np.float32)))
    far = -x[:1]
    start = jnp.concatenate([x[:4], far])
    centroids, _ = kmeans.lloyd(x, start, jax.random.key(0), iterations=1, repair="none", spherical=True)
    nearest = np.argmax(np.asarray(x) @ np.asarray(start).T, axis=1)
    for c in range(5):
        rows = np.asarray(x)[nearest == c]
        mean = rows.mean(0) / np.linalg.norm(rows.mean(0)) if len(rows) else np.asarray(start)[c]
        np.testing.assert_allclose(centroids[c], mean, atol=1e-5)
    np.testing.assert_array_equal(
        kmeans.assign(x, centroids), np.argmax(np.asarray(x) @ np.asarray(centroids).T, axis=1)
    )


def test_a_large_mean_does_not_spoil_the_whitening(blobs):
    white = kmeans.pca_whiten(blobs + 3000.0, 8)
    np.testing.assert_allclose(np.cov(np.asarray(white, np.float64).T, bias=True), np.eye(8), atol=2e-2)
    with pytest.raises(ValueError, match="dim=33 components of 32 features"):
        kmeans.pca_whiten(blobs, 33)


# ---------------------------------------------------------------------------------------- pieces and devices


@pytest.mark.slow
def test_eight_devices_and_padding_change_nothing(blobs):
    """1,900 rows, and 100 rows of rubbish that are not present."""
    own = blobs[:1900]
    key = jax.random.key(3)
    rubbish = jnp.concatenate([own, 1e3 + blobs[1900:]])
    present = jnp.arange(2000) < 1900
    split = jax.device_put((rubbish, present), sharding.batch_sharding(sharding.make_mesh(8, fsdp=2)))
    start = own[:25]
    one, objective = kmeans.lloyd(own, start, key, iterations=5)
    eight, same = kmeans.lloyd(split[0], start, key, iterations=5, present=split[1])
    np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(same, objective, rtol=1e-5)
    found = kmeans.fit(split[0], 25, key, iterations=5, present=split[1])
    assert len(found.assignment.sharding.device_set) == 8 and not found.assignment.is_fully_replicated
    assert (np.asarray(found.assignment)[1900:] == -1).all() and int(found.counts.sum()) == 1900
    np.testing.assert_array_equal(
        np.asarray(found.assignment)[:1900], kmeans.assign(own, jnp.asarray(np.asarray(found.centroids)))
    )
    white = kmeans.pca_whiten(split[0], 8, split[1])
    alone = kmeans.pca_whiten(own, 8)
    assert white.sharding.is_equivalent_to(split[0].sharding, 2)
    np.testing.assert_allclose(np.abs(white[:1900]), np.abs(alone), rtol=1e-3, atol=1e-3)


def test_moments_of_pieces_are_those_of_the_whole(blobs):
    pieces = [
        kmeans.moments(blobs[:700]),
        kmeans.moments(blobs[700:], jnp.arange(1300) < 800),
        kmeans.moments(blobs[1500:]),
    ]
    whole = kmeans.moments(blobs)
    for a, b in zip(kmeans.merge(kmeans.merge(*pieces[:2]), pieces[2]), whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3 * float(jnp.abs(b).max()))


def test_mini_batches(golden):
    start = jnp.float32([[0, 0], [9, 0]])
    rows = jnp.float32([[0, 0], [2, 2], [10, 0], [7, 7]])
    present = jnp.array([True, True, True, False])
    centroids, counts = kmeans.minibatch(start, jnp.zeros(2, jnp.int32), rows, present)
    np.testing.assert_allclose(centroids, [[1, 1], [10, 0]], atol=1e-6)
    centroids, counts = kmeans.minibatch(centroids, counts, jnp.float32([[4, 1]]), jnp.array([True]))
    np.testing.assert_allclose(centroids, [[2, 1], [10, 0]], atol=1e-6)  # the mean of its three rows
    assert counts.tolist() == [3, 1]

    g = golden("deepcluster").under("kmeans_sphere")
    x = jnp.asarray(g["x_float16"].astype(np.float32))
    centroids = x[:20]
    counts = jnp.zeros(20, jnp.int32)
    present = jnp.ones(200, bool)
    for _ in range(3):
        for begin in range(0, 2000, 200):
            centroids, counts = kmeans.minibatch(centroids, counts, x[begin : begin + 200], present)
    found = kmeans.clusters(kmeans.assign(x, centroids), centroids)
    np.testing.assert_allclose(kmeans.objective(x, found), g["median_final_obj"], rtol=0.03)
