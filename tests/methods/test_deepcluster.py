"""DeepCluster: what a refresh finds and leaves alone, the weights of clusters, and the banks of version 2."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from configs.deepcluster import get_config
from ssljax import benches, models, optim, sharding
from ssljax.config import resolve
from ssljax.data import sources, views
from ssljax.methods import METHODS
from ssljax.pictures import gallery
from ssljax.program import balance_of, build, device_batches, encoded, evaluated
from ssljax.protocols import clusters, layers
from ssljax.run.loop import fit, refreshed
from ssljax.run.refresh import Run
from tests.contract.case import small_config
from tests.contract.deepcluster import SMALL
from tests.methods.small import FACTS, one_block, shaken

pytestmark = pytest.mark.slow

K = SMALL["clusters.k"]
DIM = SMALL["clusters.dim"]


@pytest.fixture(autouse=True, scope="module")
def small_networks():
    with one_block():
        yield


def config_of(**changes):
    c = small_config("deepcluster").unlock()
    c.optim.update(name="deepcluster_sgd", learning_rate=0.1)
    c.data.train_per_class = 40
    c.evaluate.layers = ("stem", "group1")
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c).lock()


@pytest.fixture(scope="module")
def source():
    return sources.load(config_of().data, "train")


@pytest.fixture(scope="module")
def program(source):
    return build(config_of(), source.facts)


@pytest.fixture(scope="module")
def trained(program, source):
    """A state three steps after a refresh, when every momentum has a value."""
    state = refreshed(program, source, program.init(0), 0, None)
    batches = device_batches(program, source, 0, 0, balance_of(program, source, state))
    for batch, _ in zip(batches, range(3), strict=False):
        state, _ = program.step(state, batch, jax.random.key(0))
    return state


@pytest.fixture(scope="module")
def after(program, source, trained):
    return refreshed(program, source, trained, 0, None)


@pytest.fixture(scope="module")
def one(source):
    """The same program on one device."""
    return build(config_of(), source.facts, sharding.make_mesh(1))


@pytest.fixture(scope="module")
def on_one_device(one, trained):
    return jax.device_put(jax.tree.map(np.asarray, trained), sharding.whole(one.mesh))


@pytest.fixture(scope="module")
def alone(one, source, on_one_device):
    return refreshed(one, source, on_one_device, 0, None)


def untrained(statistics):
    """Means of 0 and variances of 1, for the shapes of a network's state."""
    fill = lambda path, leaf: np.full(leaf.shape, path[-1].key == "var", leaf.dtype)
    return jax.tree.map_with_path(fill, statistics)


def otherwise(program, **changes):
    """The program with other settings of its refresh alone."""
    config = config_of(**changes)
    return program._replace(config=config, method=METHODS["deepcluster"](config, program.facts))


def nmi(a, b):
    return normalized_mutual_info_score(a, b, average_method="geometric")


def test_no_clustering_without_an_epoch_to_learn_it(program, source):
    epoch = program.steps_per_epoch
    steps = []

    def refresh(state, run):
        steps.append(int(state.step))
        return program.method.refresh(state, run)

    short = program._replace(total_steps=2 * epoch + 2, method=program.method._replace(refresh=refresh))
    assert int(fit(short, source, seed=0).step) == 2 * epoch + 2
    assert steps == [0, epoch]


@pytest.fixture(scope="module")
def features(program, source, trained):
    """Features of all images, whitened and scaled to unit length by NumPy in float64."""
    encode = functools.partial(program.encode, trained.params, trained.model_state, trained.extra)
    x = encoded(encode, program.mesh, program.config, source).features.astype(np.float64)
    x -= x.mean(0)
    variance, vectors = np.linalg.eigh(x.T @ x / len(x))
    white = x @ vectors[:, ::-1][:, :DIM] / np.sqrt(variance[::-1][:DIM])
    return white / np.linalg.norm(white, axis=1, keepdims=True)


def test_every_image_is_in_the_cluster_whose_centroid_is_nearest(source, after, features):
    labels = np.asarray(after.extra.assignment)[source.index]
    centroids = np.asarray(after.extra.centroids)
    x = features
    means = np.stack([x[labels == k].mean(0) for k in np.unique(labels)])
    x = x * np.sign((means * centroids[np.unique(labels)]).sum(0))  # the sign of a component is arbitrary
    nearest = np.square(x[:, None] - centroids[None]).sum(2).argmin(1)
    assert (nearest == labels).mean() > 0.995  # a tie may fall either way
    np.testing.assert_array_equal(after.extra.counts, np.bincount(labels, minlength=K))
    gaps = np.setdiff1d(np.arange(source.num_ids), source.index)
    assert (np.asarray(after.extra.assignment)[gaps] == -1).all()


def test_a_refresh_makes_a_new_head_without_a_past_and_touches_nothing_else(trained, after):
    kernel = np.asarray(after.params["head"]["dense"]["kernel"])
    assert np.abs(kernel.std() - 0.01) < 1e-3 and not np.asarray(after.params["head"]["dense"]["bias"]).any()
    assert np.abs(np.asarray(trained.params["head"]["dense"]["bias"])).max() > 0
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state)]
    assert not any("head" in path for path in paths), "the head has no momentum"
    for part in ("opt_state", "model_state", "step"):
        chex.assert_trees_all_equal(getattr(trained, part), getattr(after, part))
    chex.assert_trees_all_equal(trained.params["encoder"], after.params["encoder"])
    shardings = lambda state: jax.tree.map(lambda leaf: leaf.sharding, state)
    assert shardings(trained) == shardings(after)


def test_an_optimizer_that_remembers_the_head_forgets_it(source, one, on_one_device):
    program = build(config_of(optim__name="sgd"), source.facts, one.mesh)._replace(encode=one.encode)
    ones = lambda leaf: jax.device_put(np.ones(leaf.shape, leaf.dtype), leaf.sharding)
    past = jax.tree.map(ones, program.shapes.opt_state)
    state = on_one_device.replace(opt_state=past)
    after = refreshed(program, source, state, 0, None)
    before_and_after = zip(
        jax.tree_util.tree_leaves_with_path(state.opt_state),
        jax.tree_util.tree_leaves_with_path(after.opt_state),
        strict=True,
    )
    for (path, old), (_, new) in before_and_after:
        if any(getattr(entry, "key", None) == "head" for entry in path):
            assert np.asarray(old).any() and not np.asarray(new).any()
        else:
            np.testing.assert_array_equal(old, new)


def test_another_clustering_starts_from_other_images_and_one_device_finds_what_eight_find(
    program, source, trained, after, alone
):
    again = refreshed(program, source, trained.replace(step=trained.step + 4), 0, None)
    assert nmi(after.extra.assignment, again.extra.assignment) < 0.99
    # Rounding may move a centroid, and others after it.
    assert nmi(after.extra.assignment, alone.extra.assignment) > 0.8


def test_epochs_are_even_over_clusters(program, source, trained):
    clusters = balance_of(program, source, trained)
    batches = device_batches(program, source, 0, 0, clusters)
    epoch = zip(batches, range(program.steps_per_epoch), strict=False)
    drawn = np.concatenate([np.asarray(batch["index"]) for batch, _ in epoch])
    counts = np.asarray(trained.extra.counts)
    seen = np.bincount(np.asarray(trained.extra.assignment)[drawn], minlength=K)[counts > 0]
    sizes = counts[counts > 0]
    assert sizes.std() / sizes.mean() > 0.2 and seen.std() / seen.mean() < 0.1


def test_weights_make_every_cluster_count_alike(source):
    config = config_of(clusters__sampler="weights", clusters__k=4)
    method = METHODS["deepcluster"](config, FACTS._replace(num_ids=6))
    params, model_state, extra = jax.eval_shape(method.init, jax.random.key(0), {})
    params = shaken(params, 0)
    model_state = untrained(model_state)
    loss_of = jax.jit(method.loss)
    extra = extra._replace(
        assignment=np.int32([0, 0, 0, 0, 2, 3]),
        counts=np.int32([4, 0, 1, 1]),
        centroids=np.zeros((4, DIM), np.float32),
    )
    batch = {"image": source.images[:6], "index": np.arange(6, dtype=np.int32)}
    key = jax.random.key(1)
    rows = []
    for label in range(4):  # the loss if all images were of this cluster
        same = extra._replace(assignment=np.full(6, label, np.int32), counts=np.full(4, 6, np.int32))
        rows.append(loss_of(params, model_state, same, batch, key, 0)[0])
    assert method.balance is None and np.isfinite(rows).all()
    params["head"] = jax.tree.map(np.zeros_like, params["head"])  # then every image's cross entropy is ln 4
    loss = loss_of(params, model_state, extra, batch, key, 0)[0]
    np.testing.assert_allclose(loss, np.log(4) * np.mean([6 / 3 / 4] * 4 + [6 / 3] * 2), rtol=1e-6)


def test_the_control_keeps_sizes_and_loses_what_they_mean(source, one, on_one_device, alone):
    program = otherwise(one, clusters__shuffled=True)
    shuffled = refreshed(program, source, on_one_device, 0, None).extra
    meant = alone.extra
    np.testing.assert_array_equal(shuffled.counts, meant.counts)
    # The images of the last, incomplete batch have labels too.
    assert meant.counts.sum() == len(source) and len(source) % program.config.evaluate.batch_size
    information = lambda extra: nmi(np.asarray(extra.assignment)[source.index], source.labels)
    assert information(shuffled) < 0.6 * information(meant)


def test_pieces_find_clusters_as_good_as_the_whole(source, one, on_one_device, alone, features):
    piecewise = otherwise(one, clusters__algorithm="minibatch")
    found = refreshed(piecewise, source, on_one_device, 0, None).extra
    labels = np.asarray(found.assignment)[source.index]
    assert (labels >= 0).all()
    np.testing.assert_array_equal(found.counts, np.bincount(labels, minlength=K))
    x = features

    def cost(labels):
        return sum(np.square(x[labels == k] - x[labels == k].mean(0)).sum() for k in np.unique(labels))

    whole = np.asarray(alone.extra.assignment)[source.index]
    assert cost(labels) < 1.1 * cost(whole) < 0.9 * cost(np.roll(labels, 1))


@pytest.mark.parametrize("version", [1, 2])
def test_what_clusters_know_of_labels_is_asked_of_labelled_images_alone(version, request, source):
    program = request.getfixturevalue("one" if version == 1 else "second")
    start = request.getfixturevalue("on_one_device" if version == 1 else "clustered")
    if version == 2:
        seen = jax.device_put(np.asarray(start.extra.assignment[:, 0] >= 0), start.extra.seen.sharding)
        start = start.replace(step=start.step + 1, extra=start.extra._replace(seen=seen))
    labels = np.where(np.arange(len(source)) % 3 == 0, -1, source.labels)
    logged = []
    for given in (labels, np.full_like(labels, -1)):
        part = dataclasses.replace(source, labels=given)
        run = Run(program, part, 0, logged.append, functools.partial(device_batches, program, part, 0, 0))
        state = program.method.refresh(start, run)
    # Both refreshes find the same clusters.
    first = np.asarray(state.extra.assignment)[source.index].reshape(len(source), -1)[:, 0]
    expected = nmi(labels[labels >= 0], first[labels >= 0])
    np.testing.assert_allclose(logged[0]["nmi_labels"], expected, rtol=1e-4)
    assert logged[0].keys() - logged[1].keys() == {"nmi_labels"}
    if version == 1:
        run = evaluated(program.config, source.facts, state, program.mesh)
        train = dataclasses.replace(source, labels=labels)
        bench = benches.of_network(run, "deepcluster", train, source, run.assignment())
        (found,) = clusters.judge(bench)
        np.testing.assert_allclose(found["nmi"], 100 * expected, rtol=1e-4)
        assert found["n"] == (labels >= 0).sum()
        with pytest.raises(
            ValueError, match="clusters needs labels, and 400 of 400 train images of digits have none"
        ):
            next(clusters.judge(bench._replace(train=part)))


def test_what_is_evaluated(program, source, trained):
    """The labels against scikit-learn, the members of clusters, and what the probe of a layer reads."""
    run = evaluated(program.config, source.facts, trained, program.mesh)
    bench = benches.of_network(run, "deepcluster", source, source, run.assignment())
    given = bench.assignment[source.index]
    np.testing.assert_array_equal(given, np.asarray(trained.extra.assignment)[source.index])
    (found,) = clusters.judge(bench)
    expected = nmi(source.labels, given)
    np.testing.assert_allclose(found["nmi"], 100 * expected, rtol=1e-4)
    assert found["n"] == len(source) and found["settings"] == {"clusters": len(np.unique(given))}
    sheet = gallery.contact_sheet(given, source, program.config)
    counts = np.bincount(given)
    assert sheet["cluster_size"].tolist() == sorted(sheet["cluster_size"], reverse=True)
    assert sheet["cluster_size"][0] == counts.max()
    largest = np.flatnonzero(given == counts.argmax())
    shown = gallery.thumbnails(source, largest[:1], program.config)[0]
    np.testing.assert_array_equal(sheet["cluster"][0, 0], shown)
    assert set(sheet["cluster_labels"][0]) <= set(source.labels[largest])

    seen = []

    def probe(train, *_, **__):
        seen.append(train)
        return {"protocol": "p", "settings": {}}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "probe", probe)
        probed = [result["protocol"] for result in layers.judge(bench)]
    assert probed == ["layer_stem", "layer_group1"]
    net = models.backbone(program.config.model)
    weights = trained.params["encoder"]
    statistics = trained.model_state["encoder"]

    @jax.jit
    def maps(weights, statistics, images):
        x = views.for_network(images, program.config.augment)
        names = program.config.evaluate.layers
        return [models.activation(net, weights, statistics, x, layer) for layer in names]

    for train, map_ in zip(seen, maps(weights, statistics, source.images), strict=True):
        map_ = np.asarray(map_, np.float64)
        width = train.features.shape[1]
        assert width <= program.config.evaluate.layer_dim
        np.testing.assert_allclose(train.features.sum(1) / width, map_.mean((1, 2, 3)), rtol=1e-3)


# ------------------------------------------------------------------------------------------------- version 2


def second_config(**named):
    """Version 2 with these views."""
    c = config_of().unlock()
    c.views = named
    c.head = dict(
        layers=2,
        hidden=16,
        dim=8,
        hidden_bias=True,
        last_bias=True,
        norm=True,
        last_norm=False,
        scheme="uniform",
    )
    c.clusters.update(version=2, heads=3, iterations=4)
    c.optim.update(name="sgd")
    return resolve(c).lock()


@pytest.fixture(scope="module")
def second(source):
    return build(second_config(one=dict(), two=dict()), source.facts, sharding.make_mesh(1))


@pytest.fixture(scope="module")
def clustered(second, source):
    return refreshed(second, source, second.init(0), 0, None)


def test_banks_hold_the_last_embeddings_and_prototypes_are_their_clusters(second, source, clustered):
    state = clustered
    extra = jax.tree.map(np.asarray, state.extra)
    np.testing.assert_allclose(np.linalg.norm(extra.centroids, axis=-1), 1, rtol=1e-5)
    assert not extra.seen.any()
    inside = extra.assignment[source.index]
    unseen = (inside < 0).all(1)
    assert unseen.sum() == len(source) % second.config.batch_size  # the first pass drops an incomplete batch
    for head in range(3):  # head h reads bank h mod 2
        z = extra.banks[source.index[~unseen], head % 2]
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
        nearest = (z @ extra.centroids[head].T).argmax(1)
        assert (nearest == inside[~unseen, head]).mean() > 0.99

    batch = next(device_batches(second, source, 0, 0))
    loss, out = jax.jit(second.method.loss)(
        state.params, state.model_state, state.extra, batch, jax.random.key(5), state.step
    )
    z = np.asarray(out.carry["z"], np.float64)
    index = np.asarray(batch["index"])
    y = extra.assignment[index]
    rows = []
    for view in range(2):
        for head in range(3):
            logits = z[:, view] @ extra.centroids[head].T / second.config.clusters.temperature
            logits -= np.log(np.exp(logits).sum(1, keepdims=True))
            rows += [-logits[n, y[n, head]] for n in range(len(y)) if y[n, head] >= 0]
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-4)

    after = second.method.update(state.extra, state.params, out.carry, state.step)
    np.testing.assert_array_equal(np.asarray(after.banks)[index], np.asarray(out.carry["z"]))
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(after.seen)), np.sort(index))


def test_small_crops_learn_the_clusters_of_the_large_ones(source):
    """Multi-crop: one pass a size, with its own batch statistics; all views of an image share a label."""
    c = second_config(large=dict(count=2), small=dict(count=3, size=8))
    method = METHODS["deepcluster"](c, source.facts)
    params, model_state, extra = jax.eval_shape(method.init, jax.random.key(0), {})
    params = shaken(params, 0)
    model_state = untrained(model_state)
    extra = shaken(extra, 1)
    assert extra.banks.shape[1] == 2
    rng = np.random.default_rng(2)
    unit = extra.centroids / np.linalg.norm(extra.centroids, axis=-1, keepdims=True)
    labels = rng.integers(-1, K, extra.assignment.shape).astype(np.int32)
    extra = extra._replace(centroids=unit, assignment=labels)
    batch = {"image": source.images[:16], "index": source.index[:16]}
    key = jax.random.key(5)
    loss, out = jax.jit(method.loss)(params, model_state, extra, batch, key, np.int32(0))

    net = models.backbone(c.model)
    projector = models.mlp(c.head, c.model, c.head.dim)

    @jax.jit
    def by_hand(params, model_state):
        x = views.make(batch, key, c)
        statistics = model_state["encoder"]
        h = []
        for name in ("large", "small"):
            rows = x[name].reshape(-1, *x[name].shape[2:])
            part, statistics = models.forward(net, params["encoder"], statistics, rows)
            h.append(part.reshape(len(batch["index"]), -1, part.shape[-1]))
        h = jnp.concatenate(h, axis=1).reshape(-1, h[0].shape[-1])
        z, _ = models.forward(projector, params["projector"], model_state["projector"], h)
        return z, statistics

    z, statistics = by_hand(params, model_state)
    z = np.asarray(z, np.float64).reshape(-1, 5, c.head.dim)
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    np.testing.assert_allclose(out.carry["z"], z[:, :2], rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(out.model_state["encoder"], statistics, rtol=1e-4, atol=1e-5)

    y = labels[batch["index"]]
    centroids = np.asarray(unit, np.float64)
    logits = np.einsum("nvd,hkd->nvhk", z, centroids) / c.clusters.temperature
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    n, h = np.nonzero(y >= 0)
    np.testing.assert_allclose(loss, -np.mean(logits[n, :, h, y[n, h]]), rtol=1e-4)


def test_the_rate_and_the_residual_branches_of_version_2_are_swavs():
    """Up from 0.3 to 4.8 in ten epochs, down to 0.0048; the last gain of a residual branch starts from 1."""
    c = get_config("imagenet_r50_v2")
    total = optim.train_steps(1_281_167, c.epochs, c.batch_size)
    _, schedule = optim.make_optimizer(
        c.optim, batch_size=4096, steps_per_epoch=1_281_167 / 4096, total_steps=total
    )
    np.testing.assert_allclose([schedule(s) for s in (0, 3127, total)], [0.3, 4.8, 0.0048], rtol=1e-4)
    assert not c.zero_init_residual
    for zero in (True, False):
        small = second_config(one=dict(), two=dict()).unlock()
        small.zero_init_residual = zero
        init = METHODS["deepcluster"](small, FACTS).init

        @jax.jit
        def gains_of(key, init=init):
            leaves = jax.tree_util.tree_leaves_with_path(init(key, {})[0]["encoder"])
            return [leaf for path, leaf in leaves if path[-1].key == "scale"]

        gains = [np.asarray(leaf) for leaf in gains_of(jax.random.key(0))]
        assert any((gain == 0).all() for gain in gains) == zero
        assert all((gain == 0).all() or (gain == 1).all() for gain in gains)


def test_wrong_settings_are_refused(source, trained):
    with pytest.raises(ValueError, match="500 clusters of 400 images"):
        program = build(config_of(clusters__k=500), source.facts)
        refreshed(program, source, trained, 0, None)
    for name, value, message in (
        ("version", 3, "version=3"),
        ("sampler", "even", "'uniform', 'weights', 'none'"),
        ("repair", "no", "'faiss'"),
    ):
        with pytest.raises(ValueError, match=message):
            METHODS["deepcluster"](config_of(**{f"clusters__{name}": value}), FACTS._replace(num_ids=400))
