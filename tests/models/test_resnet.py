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
from tests.models.golden_torch import assert_trees_close, computes_what_torch_does, evaluate, shapes

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

    (pooled, layers), (train_pooled, after) = both_modes(jax.tree.map(jnp.asarray, variables))
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
    image = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1))
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), image)
    exact = net.apply(variables, image, train=False)
    h = net.clone(dtype=jnp.bfloat16).apply(variables, image, train=False)
    np.testing.assert_allclose(h, exact, rtol=0.02, atol=0.02)
    assert np.abs(h - exact).max() > 0  # it did compute in bfloat16


def test_sown_layers_are_named_after_the_groups():
    net = ResNet(Basic, (1, 2), (4, 8), 4, stem="cifar")
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    variables = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), image)
    _, layers = jax.eval_shape(partial(evaluate, net), variables, image)
    assert {name: value.shape for name, value in layers.items()} == {
        "stem": (2, 8, 8, 4),
        "group1": (2, 8, 8, 4),
        "group2": (2, 4, 4, 8),
    }
    assert set(variables["params"]) == {
        "stem_conv1",
        "stem_norm1",
        "group1_block1",
        "group2_block1",
        "group2_block2",
    }


@pytest.mark.slow
def test_rematerialised_blocks_have_the_same_parameters_gradient_and_statistics():
    net = ResNet(Basic, (1, 1), (4, 8), 4, stem="cifar")
    image = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1))
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(0), image)

    def gradient(net):
        def loss(params):
            h, state = net.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
            return (h**3).sum(), state["batch_stats"]

        return jax.jit(jax.grad(loss, has_aux=True))

    frugal = net.clone(remat="blocks")
    fresh = jax.eval_shape(partial(frugal.init, train=False), jax.random.key(0), image)
    assert shapes(fresh) == shapes(variables)
    for a, b in zip(gradient(frugal)(variables["params"]), gradient(net)(variables["params"]), strict=True):
        assert_trees_close(a, b, rtol=1e-5, atol=1e-6)
    kept = {
        name: str(gradient(n).trace(variables["params"]).jaxpr).count("remat")
        for name, n in (("none", net), ("blocks", frugal))
    }
    assert kept["none"] == 0 < kept["blocks"]


def full_gains(tree, seed=1):
    """Random gains and offsets, so that no residual branch is silent and zeros do not stay zeros."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        return (
            leaf if path[-1].key == "kernel" else jnp.asarray(rng.uniform(0.3, 0.7, leaf.shape), jnp.float32)
        )

    return jax.tree_util.tree_map_with_path(one, tree)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block, shortcut", [(Bottleneck, "torchvision"), (Basic, "torchvision"), (Basic, "simclr")]
)
def test_a_padded_image_gives_the_map_of_the_image_alone(block, shortcut):
    """In both modes; and the statistics of a batch are those of its valid pixels."""
    net = ResNet(block, (1, 1, 1, 1), (4, 8, 16, 32), stem_width=4, shortcut=shortcut)
    rng = np.random.default_rng(0)
    alone = jnp.asarray(rng.normal(size=(1, 36, 52, 3)), jnp.float32)
    padded = jnp.pad(alone, ((0, 0), (0, 28), (0, 12), (0, 0)))
    size = jnp.array([[36, 52]])
    params = full_gains(init(net)["params"])
    variables = {"params": params, "batch_stats": full_gains(init(net)["batch_stats"], 2)}
    run = jax.jit(
        lambda x, size, train: net.apply(
            variables, x, train=train, size=size, part=(0, 4), mutable=["batch_stats"]
        ),
        static_argnums=2,
    )
    for train, close in ((False, 2e-6), (True, 1e-5)):  # compilers round shapes differently
        expected, statistics = run(alone, None, train)
        found, masked = run(padded, size, train)
        assert expected.shape[1:3] == (2, 2) and found.shape[1:3] == (2, 2)
        np.testing.assert_allclose(found, expected, rtol=close, atol=close)
        for a, b in zip(jax.tree.leaves(masked), jax.tree.leaves(statistics), strict=True):
            np.testing.assert_allclose(a, b, rtol=close, atol=close)
        seen, _ = run(padded, jnp.array([padded.shape[1:3]]), train)  # without a mask
        assert np.abs(seen - expected).max() > 0.02 * np.abs(expected).max()
    wide, _ = run(jnp.pad(padded, ((0, 0), (0, 64), (0, 64), (0, 0))), size, True)
    np.testing.assert_allclose(wide[:, :2, :2], expected, rtol=close, atol=close)
    assert not np.asarray(wide[:, 2:]).any() and not np.asarray(wide[:, :, 2:]).any()


@pytest.mark.slow
def test_a_padded_image_gives_its_own_map_with_same_padding_too():
    """All sides are even before every stride, so the windows lie alike."""
    net = ResNet(Basic, (1, 1), (4, 8), stem_width=4, padding="same")
    alone = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 48, 3)), jnp.float32)
    padded = jnp.pad(alone, ((0, 0), (0, 32), (0, 16), (0, 0)))
    variables = jax.tree.map(jnp.asarray, {name: full_gains(tree) for name, tree in init(net).items()})
    run = jax.jit(partial(net.apply, variables, train=False, part=(0, 2)))
    found = run(padded, size=jnp.array([[32, 48]]))
    np.testing.assert_allclose(found[:, :4, :6], run(alone), rtol=2e-6, atol=2e-6)
    assert not np.asarray(found[:, 4:]).any() and not np.asarray(found[:, :, 6:]).any()
    symmetric = net.clone(padding="symmetric").apply(variables, alone, train=False, part=(0, 2))
    assert np.abs(symmetric - run(alone)).max() > 0.02 * np.abs(symmetric).max()


@pytest.mark.slow
def test_the_groups_apart_are_the_whole_network():
    """Features, gradients and updated statistics; the last group alone runs on maps of any number."""
    net = ResNet(Basic, (1, 1, 1), (4, 8, 16), stem_width=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = init(net)
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

    params = full_gains(variables["params"])
    expected = jax.jit(jax.value_and_grad(whole, has_aux=True))(params)
    found = jax.jit(jax.value_and_grad(apart, has_aux=True))(params)
    assert_trees_close(found, expected, **CLOSE)
    assert stride_of(net, 2) == 8 and stride_of(net, 0) == 4
    selective = ResNet(Bottleneck, (1,), (4,), stem_width=4, sk_ratio=0.1)
    with pytest.raises(ValueError, match="sk_ratio=0"):
        selective.apply({}, x, train=False, size=jnp.full((2, 2), 32))
