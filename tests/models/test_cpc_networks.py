"""CPC's networks: the grid, norms of one patch, one tree for patches and images, causality, sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.cpc import get_config
from ssljax import models
from ssljax.models.cpc import (
    Classifier,
    ContextNetwork,
    Direction,
    GridClassifier,
    LayerNorm,
    PatchResNet,
    Stack,
)

STACKS = (Stack(1, 8, 4), Stack(1, 16, 4))


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def small(**changes) -> PatchResNet:
    return PatchResNet(STACKS, stem_width=4, **{"patch": 8, "stride": 4, **changes})


def shaken(net, x, **call):
    return jax.tree.map(lambda leaf: random(leaf.shape, leaf.size) / 2, shapes(net, x.shape, **call))


def shapes(net, x, **call):
    return jax.eval_shape(
        lambda x: net.init(jax.random.key(0), x, **call), jax.ShapeDtypeStruct(x, jnp.float32)
    )


def convolutions(tree) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")


# ------------------------------------------------------------------------------------------- the patches


def test_the_grid_of_the_paper():
    """(r, c) begins at (36r, 36c), the last ends at 260. Neighbours share 44 columns, c + 3 none."""
    rows = jnp.broadcast_to(jnp.arange(260.0, dtype=jnp.float32)[:, None], (260, 260))
    columns = rows.T
    grid = np.asarray(models.cut(jnp.stack([rows, columns], -1)[None], 80, 36))
    assert grid.shape == (1, 6, 6, 80, 80, 2)
    for r in range(6):
        for c in range(6):
            np.testing.assert_array_equal(grid[0, r, c, 0, 0], [36 * r, 36 * c])
            np.testing.assert_array_equal(grid[0, r, c, -1, -1], [36 * r + 79, 36 * c + 79])
    assert grid[0, 5, 5, -1, -1].tolist() == [259, 259]
    seen = [set(grid[0, 0, c, 0, :, 1]) for c in range(6)]
    assert len(seen[0] & seen[1]) == 44 and len(seen[0] & seen[2]) == 8 and not seen[0] & seen[3]


def test_patches_that_do_not_fill_the_image_are_refused():
    with pytest.raises(ValueError, match=r"patches of 64 pixels every 32 pixels do not fill an image of 260"):
        models.cut(jnp.zeros((1, 260, 260, 3), jnp.float32), 64, 32)


# ------------------------------------------------------------------------------------------- the encoder


def test_the_norm_is_over_one_sample_with_a_gain_per_channel():
    x = random((3, 4, 5, 2))
    norm = LayerNorm()
    scale, bias = jnp.array([2.0, 3.0]), jnp.array([0.5, -1.0])
    y = norm.apply({"params": {"scale": scale, "bias": bias}}, x)
    x = np.asarray(x, np.float64)
    mean, var = x.mean((1, 2, 3), keepdims=True), x.var((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(
        y, (x - mean) / np.sqrt(var + 1e-5) * np.asarray(scale) + np.asarray(bias), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("preact", (False, True))
def test_no_patch_knows_of_another_and_one_tree_serves_patches_and_images(preact):
    net = small(preact=preact)
    patches = random((2, 3, 3, 8, 8, 3))
    params = shaken(net, patches, train=False)
    encode = jax.jit(lambda x: net.apply(params, x, train=True, grid=True))
    z = np.asarray(encode(patches))
    changed = np.zeros((2, 3, 3), bool)
    changed[1, 2, 0] = True
    other = np.asarray(encode(patches + 3 * changed[..., None, None, None].astype(np.float32)))
    np.testing.assert_allclose(other[~changed], z[~changed], rtol=0, atol=1e-6)
    assert np.abs(other[changed] - z[changed]).max() > 1e-3

    whole = small(preact=preact, whole=True)
    for side in (8, 24):
        like = shapes(whole, (1, side, side, 3), train=False)["params"]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), like, params["params"])
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        assert jax.eval_shape(partial(whole.apply, train=False), params, image).shape == (1, 16)
    alone = jax.jit(partial(whole.apply, train=False))(params, patches[0, 0])  # three patches as three images
    np.testing.assert_allclose(alone, z[0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_image_is_the_mean_of_its_grid_and_maps_give_the_grid():
    net = small()
    images = random((2, 16, 16, 3))
    params = shaken(net, images, train=False)["params"]

    @jax.jit
    def run(params):
        z = net.apply({"params": params}, models.cut(images, 8, 4), train=False, grid=True)
        return z, models.infer(net, params, {}, images), models.activation(net, params, {}, images, "grid")

    z, h, maps = jax.device_get(run(params))
    np.testing.assert_allclose(h, z.mean((1, 2)), rtol=1e-5, atol=1e-6)
    assert maps.shape == (2, 3, 3, 16)
    np.testing.assert_allclose(maps, z, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="its layers are grid"):
        jax.eval_shape(lambda: models.activation(net, params, {}, images, "group1"))


def paper(preset: str, stage: str = "pretrain") -> ConfigDict:
    c = get_config(preset)
    return c[stage].model if "stages" in c else c.model


@pytest.mark.slow
def test_resnet_161_has_the_papers_sizes():
    """303,162,560 numbers in 159 convolutions; 80 -> 5 x 5 x 4096 and 224 -> 14 x 14 x 4096."""
    net = models.backbone(paper("imagenet_r161"))
    patch = shapes(net, (1, 1, 1, 80, 80, 3), train=False)["params"]
    assert convolutions(patch) == 303_162_560
    assert sum(s.blocks for s in net.stacks) * 3 + 2 == 161  # with the stem and the linear layer
    whole = models.backbone(paper("imagenet_r161_finetune_1pct", "frozen"))
    for side, grid in ((80, 5), (224, 14)):
        image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        maps = jax.eval_shape(
            lambda p, x: whole.apply({"params": p}, x, train=False, grid=True), patch, image
        )
        assert maps.shape == (1, grid, grid, 4096)


def test_the_classifier_and_the_context_networks_have_the_papers_sizes():
    """ResNet-33: 196,083,712 numbers in 33 convolutions. A context network: about 12.15M."""
    net = models.cpc_classifier(
        get_config("imagenet_r161_finetune_1pct").frozen.classifier, paper("imagenet_r161")
    )
    assert isinstance(net, Classifier)
    params = shapes(net, (1, 14, 14, 4096), train=False)["params"]
    assert convolutions(params) == 196_083_712
    context = jax.eval_shape(
        lambda z: ContextNetwork().init(jax.random.key(0), z),
        jax.ShapeDtypeStruct((1, 6, 6, 4096), jnp.float32),
    )
    total = sum(leaf.size for leaf in jax.tree.leaves(context))
    per_block = 4096 * 256 * 2 + 256 * 256 * 5 + 3 * 256 + 4096
    assert total == 5 * per_block == 12_148_480


def test_the_resnet_50_has_about_24_million_parameters():
    net = models.backbone(paper("imagenet_r50"))
    params = shapes(net, (1, 1, 1, 80, 80, 3), train=False)["params"]
    assert 23.4e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 24.0e6


# ------------------------------------------------------------------------------------------- the context


@pytest.mark.slow
def test_the_context_is_causal():
    """Row r depends on rows r-5..r and on no other, by one tangent per row; columns see the whole row."""
    net = ContextNetwork(blocks=5, hidden=4)
    z = random((1, 8, 6, 5))
    params = shapes(net, z.shape)
    params = jax.tree.map(lambda leaf: random(leaf.shape, 2) * 0.5 + 0.2, params)  # no ReLU switches all off
    moved = jax.jit(lambda tangent: jax.jvp(partial(net.apply, params), (z,), (tangent,))[1])
    for row in range(8):
        tangent = np.zeros_like(z)
        tangent[:, row] = random((1, 6, 5), 3)
        found = moved(tangent)
        reach = np.abs(np.asarray(found)).max((0, 2, 3))
        expected = np.array([row <= r <= row + 5 for r in range(8)])
        np.testing.assert_array_equal(reach > 0, expected)


@pytest.mark.slow
def test_a_block_of_the_context_by_hand():
    """1x1, ReLU, 1x3 with zeros beside, one row of zeros on top and 2x1, ReLU, 1x1, added; then a ReLU."""
    net = ContextNetwork(blocks=1, hidden=3)
    z = random((1, 4, 5, 2))
    params = jax.tree.map(lambda leaf: random(leaf.shape, leaf.size), shapes(net, z.shape))
    p = {k: {n: np.asarray(a, np.float64) for n, a in v.items()} for k, v in params["params"].items()}
    x = np.maximum(
        np.asarray(z[0], np.float64) @ p["block1_conv1"]["kernel"][0, 0] + p["block1_conv1"]["bias"], 0
    )
    wide = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    kernel = p["block1_conv2"]["kernel"][0]
    x = sum(wide[:, k : k + 5] @ kernel[k] for k in range(3)) + p["block1_conv2"]["bias"]
    tall = np.pad(x, ((1, 0), (0, 0), (0, 0)))
    kernel = p["block1_conv3"]["kernel"][:, 0]
    x = np.maximum(tall[:-1] @ kernel[0] + tall[1:] @ kernel[1] + p["block1_conv3"]["bias"], 0)
    x = x @ p["block1_conv4"]["kernel"][0, 0] + p["block1_conv4"]["bias"]
    expected = np.maximum(z[0] + x, 0)
    np.testing.assert_allclose(jax.jit(net.apply)(params, z)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_every_step_has_a_prediction_of_its_own_and_all_share_the_targets():
    net = Direction((1, 2), dim=3, blocks=1, hidden=4)
    z = random((2, 5, 7, 6))
    params = shaken(net, z)
    assert set(params["params"]) == {"targets", "context", "prediction1", "prediction2"}
    targets, predictions = jax.jit(net.apply)(params, z)
    assert targets.shape == (2, 5, 7, 3)
    assert [p.shape for p in predictions] == [(2, 3, 7, 3), (2, 2, 7, 3)]
    w = params["params"]["targets"]
    np.testing.assert_allclose(targets, z @ w["kernel"][0, 0] + w["bias"], rtol=1e-5, atol=1e-6)


def test_what_lies_in_a_direction_lies_below_when_turned():
    grid = jnp.arange(9.0, dtype=jnp.float32).reshape(1, 3, 3, 1)
    below = {name: np.asarray(models.turned(grid, name))[0, -1, :, 0].tolist() for name in models.DIRECTIONS}
    assert {name: sorted(row) for name, row in below.items()} == {
        "down": [6, 7, 8],
        "left": [0, 3, 6],
        "up": [0, 1, 2],
        "right": [2, 5, 8],
    }


# ------------------------------------------------------------------------------------------- the classifiers


def test_the_mean_of_the_logits_is_the_logit_of_the_mean_and_there_is_no_gain():
    net = GridClassifier(4)
    z = random((3, 2, 2, 5))
    variables = shaken(net, z, train=False)
    assert set(variables["params"]["norm"]) == {"bias"}
    params = {
        "norm": {"bias": random((5,), 1)},
        "logits": {"dense": {"kernel": random((5, 4), 2), "bias": random((4,), 3)}},
    }
    run = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
    y, _ = run({**variables, "params": params}, z)
    x = np.asarray(z, np.float64)
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) + np.asarray(params["norm"]["bias"])
    places = x @ np.asarray(params["logits"]["dense"]["kernel"]) + np.asarray(
        params["logits"]["dense"]["bias"]
    )
    np.testing.assert_allclose(y, places.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_dropout_needs_a_key_and_keeps_the_mean():
    net = Classifier(blocks=0, bottleneck=1, dropout=0.5)
    maps = jnp.ones((4, 2, 2, 2000), jnp.float32)
    with pytest.raises(ValueError, match="dropout"):
        models.forward(net, {}, {}, maps)
    h, _ = models.forward(net, {}, {}, maps, key=jax.random.key(0))
    assert set(np.unique(h)) == {0.0, 2.0} and abs(float(h.mean()) - 1) < 0.05
    np.testing.assert_array_equal(models.infer(net, {}, {}, maps), jnp.ones((4, 2000)))
