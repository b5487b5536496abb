"""AlexNet, VGG-16 and Sobel filters: the released counts and feature maps, and the layers by hand."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from configs.deepcluster import get_config
from ssljax import models
from ssljax.config import resolve
from ssljax.models.sobel import sobel

pytestmark = pytest.mark.slow

COUNTS = json.loads((Path(__file__).parent.parent / "golden" / "param_counts.json").read_text())[
    "deepcluster_official"
]


def model(**changes) -> ConfigDict:
    config = get_config("imagenet_alexnet").copy_and_resolve_references().unlock()
    config.model.update(dtype="float32", **changes)
    return resolve(config).model


@pytest.mark.parametrize("key", COUNTS)
def test_parameter_counts_of_the_released_networks(key):
    name, _, colours, classes = key.split("_")
    net = models.backbone(model(name=f"{name}_bn", sobel=colours == "sobel"))
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    found = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), image)
    head = jax.eval_shape(
        lambda h: models.LinearClassifier(int(classes)).init(jax.random.key(0), h),
        jnp.zeros((2, 4096), jnp.float32),
    )
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (found["params"], head["params"], found["batch_stats"])
    ]
    # The fixed Sobel filters are not parameters here. PyTorch has one batch counter per norm.
    expected = COUNTS[key]
    assert sizes[:2] == [expected["backbone_without_head"] - expected["frozen"], expected["head"]]
    assert sizes[2] == expected["float_buffers"]
    assert found["params"]["conv1" if name == "alexnet" else "conv1_1"]["kernel"].shape[2] == (
        2 if colours == "sobel" else 3
    )


def test_maps_and_initialisation_of_the_released_alexnet():
    net = models.backbone(model())
    image = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), image)

    def looking(variables, x):
        kept = {name: variables[name] for name in ("params", "batch_stats")}
        return net.apply(kept, x, train=False, mutable=["intermediates"])

    _, state = jax.eval_shape(looking, variables, image)
    maps = state["intermediates"]
    assert {name.removeprefix("after_"): found[0].shape[1:] for name, found in maps.items()} == {
        "conv1": (55, 55, 96),
        "conv2": (27, 27, 256),
        "conv3": (13, 13, 384),
        "conv4": (13, 13, 384),
        "conv5": (13, 13, 256),
        "fc6": (4096,),
    }
    assert variables["params"]["fc6"]["kernel"].shape == (9216, 4096)

    small = models.backbone(model(width=0.25))
    image = jnp.zeros((1, 67, 67, 3), jnp.float32)
    params = jax.jit(lambda key: small.init(key, image, train=False)["params"])(jax.random.key(0))
    for name, std in (
        ("conv2", np.sqrt(2 / (5 * 5 * 64))),
        ("conv3", np.sqrt(2 / (3 * 3 * 96))),
        ("fc6", 0.01),
        ("fc7", 0.01),
    ):
        np.testing.assert_allclose(params[name]["kernel"].std(), std, rtol=0.02)
        assert not params[name]["bias"].any()


@pytest.mark.parametrize("name, first_drop", [("alexnet_bn", True), ("vgg16_bn", False)])
def test_the_layers_in_their_order(name, first_drop):
    """In inference mode. A rate that drops everything shows where the dropout is."""
    net = models.backbone(model(name=name, width=1 / 32, sobel=True))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 67, 67, 3)), jnp.float32)
    variables = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), x)
    rng = np.random.default_rng(1)

    def random(leaf):
        size = rng.uniform(0.2, 0.6, leaf.shape)
        sign = rng.choice([-1, 1], leaf.shape)
        return (size * sign).astype(np.float32)

    p = jax.tree.map(random, variables["params"])
    stats = jax.tree.map(random, variables["batch_stats"])
    stats = jax.tree.map(np.abs, stats)

    @jax.jit
    def by_hand(p):
        y = sobel(x)
        maps = {}
        for layer in net.architecture.convs:
            norm_name = layer.name.replace("conv", "norm")
            norm = p[norm_name]
            s = stats[norm_name]
            y = jax.lax.conv_general_dilated(
                y,
                p[layer.name]["kernel"],
                (layer.stride,) * 2,
                ((layer.padding,) * 2,) * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            y = y + p[layer.name]["bias"]
            y = (y - s["mean"]) / jnp.sqrt(s["var"] + 1e-5) * norm["scale"] + norm["bias"]
            y = maps[layer.name] = jnp.maximum(y, 0)
            if layer.pool[0]:
                y = nn.max_pool(y, (layer.pool[0],) * 2, (layer.pool[1],) * 2)
        fc6 = jnp.maximum(y.reshape(3, -1) @ p["fc6"]["kernel"] + p["fc6"]["bias"], 0)
        return maps, fc6, fc6 @ p["fc7"]["kernel"] + p["fc7"]["bias"]

    with jax.numpy_rank_promotion("allow"):
        maps, fc6, fc7 = jax.device_get(by_hand(p))
    scale = float(np.abs(fc7).max())

    infer = jax.jit(partial(models.infer, net))
    found = np.asarray(infer(p, stats, x))
    last = net.architecture.convs[-1].name
    seen = jax.jit(partial(models.activation, net, layer=last))(p, stats, x)
    np.testing.assert_allclose(seen, maps[last], rtol=1e-3, atol=1e-4 * float(maps[last].max()))
    np.testing.assert_allclose(found, fc7, rtol=1e-3, atol=1e-4 * scale)
    assert (found < 0).any(), "k-means must see what the last ReLU would cut off"
    with pytest.raises(ValueError, match="no layer 'conv9'; its layers are conv1"):
        jax.eval_shape(lambda: models.activation(net, p, stats, x, "conv9"))

    def after_fc6(rate):
        run = partial(net.clone(dropout=rate).apply, train=rate > 0, mutable=["intermediates", "batch_stats"])
        variables = {"params": p, "batch_stats": stats}
        y, state = jax.jit(run)(variables, x, rngs={"dropout": jax.random.key(0)})
        return y, state["intermediates"]["after_fc6"][0]

    nothing, first = after_fc6(1.0)
    np.testing.assert_allclose(nothing, np.broadcast_to(p["fc7"]["bias"], nothing.shape), rtol=1e-6)
    dropped = np.maximum(np.broadcast_to(p["fc6"]["bias"], fc6.shape), 0)
    assert np.allclose(first, dropped) == first_drop
    assert not np.allclose(after_fc6(0.0)[1], dropped)

    in_training = jax.jit(lambda key: models.forward(net, p, stats, x, key=key)[0])
    half = [np.asarray(in_training(jax.random.key(k))) for k in (0, 0, 1)]
    assert np.array_equal(half[0], half[1]) and not np.array_equal(half[0], half[2])
    np.testing.assert_array_equal(found, infer(p, stats, x))


def test_an_image_that_is_too_small_is_refused():
    for name, size, layer in (("alexnet_bn", 62, "conv5"), ("vgg16_bn", 31, "conv5_3")):
        net = models.backbone(model(name=name, width=1 / 32))
        init = lambda x, net=net: net.init(jax.random.key(0), x, train=False)
        jax.eval_shape(init, jnp.zeros((1, size + 1, size + 1, 3), jnp.float32))
        message = f"after {layer} the image is .* config.data.image_size is too small"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(init, jnp.zeros((1, size, size, 3), jnp.float32))


# ------------------------------------------------------------------------------------------- Sobel


def test_sobel_of_the_released_network(golden):
    g = golden("deepcluster").under("sobel")
    found = sobel(jnp.asarray(g["image"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(found, g["output"].transpose(0, 2, 3, 1), atol=1e-5)


def test_sobel_by_hand():
    flat = sobel(jnp.full((1, 6, 7, 3), 2.0, jnp.float32))
    np.testing.assert_allclose(flat[0, 1:-1, 1:-1], 0, atol=1e-6)
    assert flat[0, 2, 0].tolist() == [-8, 0] and flat[0, 0, 2].tolist() == [0, -8]  # zeros beyond the border
    row = jnp.arange(7, dtype=jnp.float32)  # grows by one to the right
    ramp = jnp.broadcast_to(row[None, None, :, None], (1, 6, 7, 1))
    expected = jnp.broadcast_to(jnp.float32([-24, 0]), (4, 5, 2))
    np.testing.assert_allclose(sobel(3 * ramp)[0, 1:-1, 1:-1], expected, atol=1e-5)
    assert sobel(jnp.zeros((1, 4, 4, 3), jnp.bfloat16)).dtype == jnp.float32


def test_a_resnet_may_look_at_edges_too():
    net = models.backbone(model(name="resnet8", width=0.125, sobel=True))
    variables = jax.eval_shape(
        lambda x: net.init(jax.random.key(0), x, train=False), jnp.zeros((1, 32, 32, 3), jnp.float32)
    )
    assert variables["params"]["stem_conv1"]["kernel"].shape[2] == 2
