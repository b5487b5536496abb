"""ResNet against google-research/simclr and torchvision, layer by layer, and its own rules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.convert.resnet import RESNET
from ssljax.models import ResNet, forward
from ssljax.models.norm import BatchNorm
from ssljax.models.resnet import Basic, Bottleneck, Shortcut, conv, stride_of
from tests.models.golden_resnet import simclr_tree
from tests.models.golden_torch import (
    assert_trees_close,
    computes_what_torch_does,
    evaluate,
    remat_changes_nothing,
    shapes,
)

CLOSE = dict(rtol=1e-4, atol=1e-5)
BLOCKS = {
    "BottleneckBlock": Bottleneck,
    "ResidualBlock": Basic,
    "Bottleneck": Bottleneck,
    "BasicBlock": Basic,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c0", "c1", "c2"])
def test_official_simclr_network(golden, name):
    case = golden("arch_simclr_resnet").under(name)
    base = round(64 * float(case["width_multiplier"]))
    net = ResNet(
        BLOCKS[str(case["block"])],
        tuple(case["layers"].tolist()),
        tuple(base * 2**i for i in range(4)),
        base,
        stem="cifar" if case["cifar_stem"] else "imagenet",
        sk_ratio=float(case["sk_ratio"]),
        bn_momentum=float(case["bn_momentum"]),
        bn_epsilon=float(case["bn_epsilon"]),
    )
    image = jnp.asarray(case["image"])
    variables = simclr_tree(case, "weights")
    fresh = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), image)
    assert shapes(variables) == shapes(fresh)

    @jax.jit
    def both_modes(variables):
        trained = net.apply(variables, image, train=True, mutable=["batch_stats"])
        return evaluate(net, variables, image), trained

    (pooled, layers), (train_pooled, after) = jax.device_get(both_modes(variables))
    for layer in ("stem", "group1", "group2", "group3", "group4"):
        expected = case[f"eval/{layer}"]  # large maps: of the first image alone
        np.testing.assert_allclose(layers[layer][: len(expected)], expected, **CLOSE, err_msg=layer)
    np.testing.assert_allclose(pooled, case["eval/pooled"], **CLOSE)
    # With selective kernels BatchNorm divides by the spread of three gates. There the file itself differs by
    # 2.7e-4 from a float64 computation.
    close = dict(rtol=2e-4, atol=5e-4) if case["sk_ratio"] > 0 else CLOSE
    np.testing.assert_allclose(train_pooled, case["train/pooled"], **close)
    assert_trees_close(after, simclr_tree(case, "after_train"), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c0", "c1"])
def test_torchvision_network(golden, name):
    case = golden("arch_resnet").under(name)
    net = ResNet(
        BLOCKS[str(case["block"])],
        tuple(case["layers"].tolist()),
        tuple(case["planes"].tolist()),
        int(case["stem_width"]),
        stem="cifar" if case["small_stem"] else "imagenet",
        shortcut="torchvision",
        unbiased=True,
        bn_momentum=1 - float(case["bn_momentum_torch"]),
        bn_epsilon=float(case["bn_eps"]),
    )
    layers = {"stem": "stem_out", **{f"group{i}": f"layer{i}" for i in range(1, 5)}}
    computes_what_torch_does(net, case, RESNET, layers)


def init(net, size=32, channels=3):
    return jax.jit(partial(net.init, train=False))(jax.random.key(0), jnp.ones((2, size, size, channels)))


@pytest.mark.parametrize(
    "block, project", [(Basic, False), (Basic, True), (Bottleneck, False), (Bottleneck, True)]
)
def test_a_fresh_block_is_its_shortcut(block, project):
    """The last gain is zero, so residual branches add nothing at the start."""
    layer = dict(conv=partial(conv, dtype=jnp.float32), norm=BatchNorm)
    net = block(4, 1, project, 0.0, **layer)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4 * block.expansion))
    variables = jax.jit(partial(net.init, train=True))(jax.random.key(1), x)
    y, _ = net.apply(variables, x, train=True, mutable=["batch_stats"])
    if project:
        shortcut = Shortcut(4 * block.expansion, 1, False, **layer)
        weights = {name: variables[name]["shortcut"] for name in ("params", "batch_stats")}
        x, _ = shortcut.apply(weights, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, np.maximum(x, 0), rtol=1e-6, atol=1e-6)


def test_every_other_gain_is_one_and_kernels_have_unit_fan_in_variance():
    params = init(ResNet(Bottleneck, (1,), (64,), stem="cifar"))["params"]
    block = params["group1_block1"]
    for norm in (params["stem_norm1"], block["norm1"], block["norm2"], block["shortcut"]["norm"]):
        np.testing.assert_array_equal(norm["scale"], np.ones(norm["scale"].shape))
    np.testing.assert_array_equal(block["norm3"]["scale"], np.zeros(256))
    kernel = np.asarray(block["conv2"]["kernel"]) * (3 * 3 * 64) ** 0.5
    np.testing.assert_allclose(kernel.std(), 1.0, rtol=0.01)
    # Truncated at two standard deviations of the normal before its truncation.
    assert 2.2 < np.abs(kernel).max() < 2 / 0.8796 + 1e-3


def test_strided_convolutions_pad_like_pytorch_not_like_same():
    """At even sizes TensorFlow's SAME would put all padding after the image.

    The first output would then see pixels 0..2 instead of -1..1.
    """
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
    y = conv(1, 3, 2, dtype=jnp.float32, name="conv").apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(y[0, :, :, 0], [[4.0, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize("size, before", [(3, 0), (7, 2), (1, 0)])
def test_same_padding_is_that_of_xla(size, before):
    """At an even side a bright corner meets the tap `before`, at an odd one the central tap."""
    kernel = jax.random.normal(jax.random.key(0), (size, size, 2, 3))
    layer = conv(3, size, 2, padding="same", dtype=jnp.float32, name="conv")
    for side, tap in ((8, before), (9, size // 2)):
        x = jax.random.normal(jax.random.key(1), (1, side, side + 2, 2))
        y = layer.apply({"params": {"kernel": kernel}}, x)
        expected = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
        corner = jnp.zeros_like(x).at[0, 0, 0, 0].set(1.0)
        y = layer.apply({"params": {"kernel": kernel}}, corner)
        np.testing.assert_allclose(y[0, 0, 0], kernel[tap, tap, 0], rtol=1e-6)


@pytest.mark.parametrize("shortcut, rows", [("simclr", [[1, 0], [0, 0]]), ("torchvision", [[1, 1], [1, 1]])])
def test_max_pool_padding_of_the_two_dialects(shortcut, rows):
    """A single bright pixel is at (1, 1) of the 4x4 map.

    SAME pools see rows 0-2 and 2-3. With padding 1 they see rows 0-1 and 1-3.
    """
    net = ResNet(Basic, (), (), stem_width=1, shortcut=shortcut)
    image = jnp.zeros((1, 8, 8, 1)).at[0, 2, 2, 0].set(1.0)
    variables = init(net, 8, 1)
    centre_tap = jnp.zeros((7, 7, 1, 1)).at[3, 3, 0, 0].set(1.0)
    params = {"stem_conv1": {"kernel": centre_tap}, "stem_norm1": variables["params"]["stem_norm1"]}
    _, layers = evaluate(net, {"params": params, "batch_stats": variables["batch_stats"]}, image)
    np.testing.assert_allclose(layers["stem"][0, :, :, 0], rows, rtol=1e-4)


def test_average_pool_shortcut_at_odd_sizes_by_hand():
    """Stride 2 counts its zero padding (released code), stride 1 does not (TensorFlow's SAME)."""
    x = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])[None, :, :, None]
    expected = {2: [[3.0, 2.25], [3.75, 2.25]], 1: [[3.0, 4.0, 4.5], [6.0, 7.0, 7.5], [7.5, 8.5, 9.0]]}
    for stride, pooled in expected.items():
        net = Shortcut(1, stride, True, partial(conv, dtype=jnp.float32), partial(BatchNorm, epsilon=0.0))
        variables = net.init(jax.random.key(0), x, train=False)
        params = {"conv": {"kernel": jnp.ones((1, 1, 1, 1))}, "norm": variables["params"]["norm"]}
        y = net.apply({"params": params, "batch_stats": variables["batch_stats"]}, x, train=False)
        np.testing.assert_allclose(y[0, :, :, 0], pooled, rtol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    net = ResNet(Bottleneck, (1, 1), (4, 8), 4, stem="cifar", sk_ratio=0.0625, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((4, 8, 8, 1), jnp.float32)
    variables = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    training = partial(net.apply, train=True, mutable=["batch_stats", "intermediates"])
    h, after = jax.eval_shape(training, variables, image)
    assert h.dtype == jnp.float32 and h.shape == (4, 32)
    assert {leaf.dtype for leaf in jax.tree.leaves(after["batch_stats"])} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(after["intermediates"])} == {jnp.dtype("bfloat16")}


@pytest.mark.slow
def test_bfloat16_stays_near_float32():
    net = ResNet(Basic, (1,), (4,), 4, stem="cifar")
    image = np.random.default_rng(0).uniform(size=(4, 4, 4, 1)).astype(np.float32)
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), image)
    exact, h = (
        np.asarray(jax.jit(partial(one.apply, train=False))(variables, image))
        for one in (net, net.clone(dtype=jnp.bfloat16))
    )
    np.testing.assert_allclose(h, exact, rtol=0.02, atol=0.02)
    assert np.abs(h - exact).max() > 0  # it did compute in bfloat16


@pytest.mark.slow
def test_rematerialised_blocks_have_the_same_parameters_gradient_and_statistics():
    net = ResNet(Basic, (1, 1), (4, 8), 4, stem="cifar")
    image = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1))
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), image)
    remat_changes_nothing(net, variables, image, rtol=1e-5, atol=1e-6)


def drawn(net):
    """Random variables for images of three colours, with gains and offsets far from zero and one."""
    rng = np.random.default_rng(1)

    def one(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return rng.uniform(0.3, 0.7, leaf.shape).astype(np.float32)

    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), image)
    return jax.tree_util.tree_map_with_path(one, shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block, shortcut", [(Bottleneck, "torchvision"), (Basic, "torchvision"), (Basic, "simclr")]
)
def test_a_padded_image_gives_the_map_of_the_image_alone(block, shortcut):
    """In both modes; and the statistics of a batch are those of its valid pixels."""
    net = ResNet(block, (1, 1), (4, 8), stem_width=4, shortcut=shortcut)
    rng = np.random.default_rng(0)
    alone = rng.normal(size=(1, 20, 28, 3)).astype(np.float32)
    padded = np.pad(alone, ((0, 0), (0, 4), (0, 4), (0, 0)))
    size = np.array([[20, 28]])
    variables = drawn(net)

    @partial(jax.jit, static_argnums=2)
    def compiled(x, size, train):
        return net.apply(variables, x, train=train, size=size, part=(0, 2), mutable=["batch_stats"])

    run = lambda *given: jax.device_get(compiled(*given))
    for train, close in ((False, 2e-6), (True, 1e-5)):  # compilers round shapes differently
        expected, statistics = run(alone, None, train)
        found, masked = run(padded, size, train)
        assert expected.shape[1:3] == (3, 4) and found.shape[1:3] == (3, 4)
        np.testing.assert_allclose(found, expected, rtol=close, atol=close)
        for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(statistics), strict=True):
            np.testing.assert_allclose(a, b, rtol=close, atol=close)
        wide, _ = run(np.pad(padded, ((0, 0), (0, 16), (0, 16), (0, 0))), size, train)
        np.testing.assert_allclose(wide[:, :3, :4], expected, rtol=close, atol=close)
        assert not wide[:, 3:].any() and not wide[:, :, 4:].any()
        seen, _ = run(padded, None, train)
        assert np.abs(seen - expected).max() > 0.02 * np.abs(expected).max()


@pytest.mark.slow
def test_a_padded_image_gives_its_own_map_with_same_padding_too():
    """All sides are even before every stride, so the windows lie alike."""
    net = ResNet(Basic, (1, 1), (4, 8), stem_width=4, padding="same")
    alone = np.random.default_rng(0).normal(size=(1, 32, 48, 3)).astype(np.float32)
    padded = np.pad(alone, ((0, 0), (0, 32), (0, 16), (0, 0)))
    variables = drawn(net)

    def run(net, x, size=None):
        return np.asarray(jax.jit(partial(net.apply, train=False, part=(0, 2)))(variables, x, size=size))

    found, expected = run(net, padded, np.array([[32, 48]])), run(net, alone)
    np.testing.assert_allclose(found[:, :4, :6], expected, rtol=2e-6, atol=2e-6)
    assert not found[:, 4:].any() and not found[:, :, 6:].any()
    symmetric = run(net.clone(padding="symmetric"), alone)
    assert np.abs(symmetric - expected).max() > 0.02 * np.abs(symmetric).max()


@pytest.mark.slow
def test_the_groups_apart_are_the_whole_network():
    """Features, gradients and updated statistics; the last group alone runs on maps of any number."""
    net = ResNet(Basic, (1, 1, 1), (4, 8, 16), stem_width=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = drawn(net)
    statistics = variables["batch_stats"]

    def whole(params):
        y, after = net.apply(
            {"params": params, "batch_stats": statistics}, x, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(y**2), (y, after["batch_stats"])

    def apart(params):
        maps, first = forward(net, params, statistics, x, part=(0, 2))
        y, after = forward(net, params, first, maps, part=(3, 3))
        y = y.mean((1, 2))
        return jnp.sum(y**2), (y, after)

    params = variables["params"]
    expected = jax.jit(jax.value_and_grad(whole, has_aux=True))(params)
    found = jax.jit(jax.value_and_grad(apart, has_aux=True))(params)
    assert_trees_close(found, expected, **CLOSE)
    assert stride_of(net, 2) == 8 and stride_of(net, 0) == 4
    selective = ResNet(Bottleneck, (1,), (4,), stem_width=4, sk_ratio=0.1)
    with pytest.raises(ValueError, match="sk_ratio=0"):
        selective.apply({}, x, train=False, size=jnp.full((2, 2), 32))
