"""EfficientNet against timm's tf_efficientnet, the paper's table and the released code's rules."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs.simclr import get_config
from ssljax import convert, models
from ssljax.config import resolve
from ssljax.convert import weights
from ssljax.convert.efficientnet import TIMM
from ssljax.losses.classification import cross_entropy
from ssljax.models import EfficientNet, backbone
from ssljax.models.efficientnet import HEAD, SCALES, Stage, channels, same
from tests.convert.foreign import like
from tests.models.golden_resnet import nhwc
from tests.models.golden_torch import CLOSE, assert_trees_close, remat_changes_nothing
from tests.models.test_backbone import count, variables

TINY = dict(width=0.15, depth=0.2)
COUNTS = json.loads((Path(__file__).parents[1] / "golden" / "param_counts.json").read_text())
# The paper's table: blocks, channels of the stages and blocks in each of them.
OFFICIAL = {
    "b0": (16, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "b1": (23, (16, 24, 40, 80, 112, 192, 320), (2, 3, 3, 4, 4, 5, 2)),
    "b2": (23, (16, 24, 48, 88, 120, 208, 352), (2, 3, 3, 4, 4, 5, 2)),
    "b3": (26, (24, 32, 48, 96, 136, 232, 384), (2, 3, 3, 5, 5, 6, 2)),
    "b4": (32, (24, 32, 56, 112, 160, 272, 448), (2, 4, 4, 6, 6, 8, 2)),
    "b5": (39, (24, 40, 64, 128, 176, 304, 512), (3, 5, 5, 7, 7, 9, 3)),
    "b6": (45, (32, 40, 72, 144, 200, 344, 576), (3, 6, 6, 8, 8, 11, 3)),
    "b7": (55, (32, 48, 80, 160, 224, 384, 640), (4, 7, 7, 10, 10, 13, 4)),
    "l2": (88, (72, 104, 176, 344, 480, 824, 1376), (6, 11, 11, 16, 16, 22, 6)),
}


def config(**changes):
    c = get_config("imagenet_r50").copy_and_resolve_references().unlock()
    c.model = {"name": "efficientnet_b0", "dtype": "float32", **changes}
    return resolve(c)


def started(net, image):
    return jax.jit(partial(net.init, train=False))(jax.random.key(0), image)


def applied(net, start, image, rngs=None):
    """The features in training mode."""
    run = jax.jit(partial(net.apply, train=True, mutable=["batch_stats"]))
    return np.asarray(run(start, image, rngs=rngs)[0])


def inferred(net, start, image):
    """The features in inference."""
    return np.asarray(jax.jit(partial(net.apply, train=False))(start, image))


@pytest.fixture
def tiny(monkeypatch):
    """Leaves three blocks. An image, and the weights of every network of TINY, whatever its noise."""
    stages = (Stage(3, 1, 1, 16, 1), Stage(5, 2, 6, 24, 1), Stage(3, 1, 6, 24, 1))
    monkeypatch.setattr("ssljax.models.efficientnet.STAGES", stages)
    return weights_of_tiny()


@cache
def weights_of_tiny():
    image = np.random.default_rng(0).uniform(size=(4, 16, 16, 3)).astype(np.float32)
    return image, jax.device_get(started(EfficientNet(**TINY), image))


def timms(golden, **changes):
    """timm's tiny network and its weights in our tree: (the file's case c0, network, tree)."""
    case = golden("arch_efficientnet").under("c0")
    net = EfficientNet(
        width=float(case["channel_multiplier"]), depth=float(case["depth_multiplier"]), **changes
    )
    template = like(net, jnp.asarray(nhwc(case["image"])), int(case["num_classes"]), "head")
    state = {name.removeprefix("state/"): value for name, value in case.items() if name.startswith("state/")}
    return case, net, weights.load(state, template, TIMM), state


@pytest.mark.slow
def test_timms_network_in_inference(golden):
    case, net, tree, state = timms(golden)
    start = {"params": tree["params"]["encoder"], "batch_stats": tree["model_state"]["encoder"]}
    look = jax.jit(partial(net.apply, train=False, mutable=["intermediates"]))
    h, found = look(start, nhwc(case["image"]))
    layers = {f"stage{number + 1}": f"stage{number}" for number in range(7)} | {"head": "features"}
    for layer, theirs in layers.items():
        expected = nhwc(case[f"eval/{theirs}"])  # large maps: of the first image alone
        ours = found["intermediates"][layer][0][: len(expected)]
        np.testing.assert_allclose(ours, expected, **CLOSE, err_msg=layer)
    np.testing.assert_allclose(models.logits(tree["params"]["head"], h), case["eval/logits"], **CLOSE)

    back = weights.dump(tree, TIMM)
    assert set(back) == {name for name in state if "num_batches" not in name}
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.slow
def test_timms_network_in_training(golden):
    """Logits, loss, running statistics and gradients. PyTorch's running variance is the unbiased one."""
    train = golden("arch_efficientnet_train")
    case, net, tree, _ = timms(golden, bn_momentum=1 - float(train["bn_momentum_torch"]), unbiased=True)
    x = case["image"]
    images = [x, x[..., ::-1] * np.float32(0.5), x[:, :, ::-1] + np.float32(0.1), -x.swapaxes(2, 3)]
    image = jnp.asarray(nhwc(np.concatenate(images)))
    labels = jnp.asarray(train["labels"], jnp.int32)

    @jax.jit
    def run(params):
        def loss(params):
            start = {"params": params["encoder"], "batch_stats": tree["model_state"]["encoder"]}
            h, after = net.apply(start, image, train=True, mutable=["batch_stats"])
            logits = models.logits(params["head"], h)
            return jnp.mean(cross_entropy(logits, labels)), (logits, after["batch_stats"])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (logits, after)), grads = run(tree["params"])
    np.testing.assert_allclose(logits, train["train/logits"], **CLOSE)
    np.testing.assert_allclose(loss, train["train/loss"], rtol=1e-5)
    running = {"model_state": {"encoder": after}}
    assert_trees_close(running, weights.load(train.under("after_train"), running, TIMM), **CLOSE)
    named = train.under("train/grad")
    found = weights.dump({"params": grads}, TIMM)
    assert len(named) == 10
    for name, expected in named.items():
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_tables_and_parameter_counts_of_the_official_networks(name, monkeypatch):
    monkeypatch.setattr("ssljax.models.efficientnet._normal", lambda fan_out: nn.initializers.zeros)
    blocks, features, repeats = OFFICIAL[name]
    net = backbone(config(name=f"efficientnet_{name}").model)
    names = [block for block, _ in net.blocks]
    assert len(names) == blocks
    assert tuple(block.features for place, block in net.blocks if place.endswith("block1")) == features
    assert tuple(sum(place.startswith(f"stage{n}_") for place in names) for n in range(1, 8)) == repeats
    found = count(variables(net)["params"])
    counted = COUNTS["timm_tf_efficientnet"][name]
    assert found == counted["backbone_without_head"]
    assert found + 1000 * (channels(HEAD, net.width) + 1) == counted["total"]


def test_channels_are_multiples_of_eight_that_lose_at_most_a_tenth():
    cases = ((32, 1.1), (40, 1.1), (80, 1.1), (320, 1.1), (32, 4.3), (24, 0.15), (1280, 2.0))
    assert [channels(*case) for case in cases] == [32, 48, 88, 352, 136, 8, 2560]
    assert channels(12, 1.0) == 16  # 12 rounds to 16; 13 * 0.8 = 10.4 would lose a quarter at 8
    assert channels(13, 0.8) == 16


@pytest.mark.slow
def test_padding_is_tensorflows_same(tiny):
    """A stride of 2 on an even side pads one pixel more after than before."""
    assert [same(224, 3, 2), same(224, 5, 2), same(225, 3, 2), same(15, 5, 2), same(7, 3, 1)] == [
        (0, 1),
        (1, 2),
        (1, 1),
        (2, 2),
        (1, 1),
    ]
    _, start = tiny
    image = np.zeros((1, 8, 8, 3), np.float32)
    image[0, 0, 0] = 1.0  # seen by the first output pixel alone
    kernel = start["params"]["stem_conv"]["kernel"]
    look = jax.jit(partial(EfficientNet(**TINY).apply, train=False, mutable=["intermediates"]))
    _, found = look(start, image)
    stem = kernel[0, 0].sum(0) / np.sqrt(1 + 1e-3)
    seen = found["intermediates"]["stem"][0][0, 0, 0]
    np.testing.assert_allclose(seen, stem / (1 + np.exp(-stem)), rtol=1e-5)


@pytest.mark.slow
def test_the_variant_for_small_images_keeps_two_sides():
    sides = {}
    for stem in ("imagenet", "cifar"):
        net = EfficientNet(**TINY, stem=stem)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        apply = partial(net.apply, train=False, mutable=["intermediates"])
        _, found = jax.eval_shape(apply, variables(net), image)
        sides[stem] = [found["intermediates"][f"stage{n}"][0].shape[1] for n in range(1, 8)]
    assert sides == {"imagenet": [16, 8, 4, 2, 2, 1, 1], "cifar": [16, 16, 16, 8, 8, 4, 4]}


@pytest.mark.slow
def test_initialisation_counts_the_outputs(monkeypatch):
    monkeypatch.setattr("ssljax.models.efficientnet.STAGES", (Stage(5, 2, 6, 192, 2),))
    params = started(EfficientNet(), jnp.ones((1, 4, 4, 3)))["params"]
    block = params["stage1_block2"]
    kernels = (
        (block["expand_conv"]["kernel"], 1152),
        (block["depthwise_conv"]["kernel"], 25),  # TensorFlow counts one output
        (block["se"]["reduce"]["kernel"], 48),
        (block["se"]["expand"]["kernel"], 1152),
        (params["head_conv"]["kernel"], 1280),
    )
    for kernel, fan_out in kernels:
        np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / fan_out), rtol=0.05)
        assert np.abs(kernel).max() > 2.3 * np.sqrt(2 / fan_out)  # not truncated at two standard deviations
    np.testing.assert_array_equal(block["se"]["reduce"]["bias"], np.zeros(48))
    np.testing.assert_array_equal(block["project_norm"]["scale"], np.ones(192))


@pytest.mark.slow
def test_stochastic_depth_drops_the_branch_of_an_example(tiny):
    net = EfficientNet(**TINY, drop_path=0.5)
    plain = net.clone(drop_path=0.0)
    image, start = tiny
    dropped = applied(net, start, image, {"drop_path": jax.random.key(1)})
    assert np.abs(dropped - applied(plain, start, image)).max() > 1e-4
    np.testing.assert_array_equal(inferred(net, start, image), inferred(plain, start, image))


@pytest.mark.slow
def test_rates_of_stochastic_depth_are_the_released_codes(monkeypatch):
    """B0: block i has 0.2 i / 16, on the nine blocks that have a shortcut, each example on its own."""
    seen = []

    def recorded(x, rate, key):
        seen.append(rate)
        return x

    monkeypatch.setattr("ssljax.models.efficientnet.drop_path", recorded)
    image = jnp.zeros((2, 32, 32, 3))
    net = EfficientNet(drop_path=0.2)
    apply = partial(net.apply, train=True, mutable=["batch_stats"], rngs={"drop_path": jax.random.key(0)})
    jax.eval_shape(apply, variables(net), image)
    assert [name for name, _ in net.blocks].index("stage7_block1") == 15
    with_shortcut = [2, 4, 6, 7, 9, 10, 12, 13, 14]
    np.testing.assert_allclose(seen, [0.2 * i / 16 for i in with_shortcut])


@pytest.mark.slow
def test_dropout_is_on_the_features_in_training_only(tiny):
    net = EfficientNet(**TINY, dropout=0.5)
    image, start = tiny
    plain = net.clone(dropout=0.0)
    dropped = applied(net, start, image, {"dropout": jax.random.key(1)})
    kept = applied(plain, start, image)
    share = float((dropped == 0).mean())
    assert 0.4 < share < 0.6
    there = dropped != 0
    np.testing.assert_allclose(dropped[there], 2 * kept[there], rtol=1e-5)
    np.testing.assert_array_equal(inferred(net, start, image), inferred(plain, start, image))


@pytest.mark.slow
def test_frozen_blocks_get_no_gradient_and_keep_their_statistics(tiny):
    net = EfficientNet(**TINY, frozen_blocks=2)
    image, start = tiny

    def loss(params):
        h, state = net.apply({**start, "params": params}, image, train=True, mutable=["batch_stats"])
        return (h**3).sum(), state["batch_stats"]

    grads, after = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(start["params"]))
    for branch, leaf in jax.tree.map(lambda g: bool(np.any(g != 0)), grads).items():
        frozen = branch in ("stem_conv", "stem_norm", "stage1_block1", "stage2_block1")
        assert not any(jax.tree.leaves(leaf)) if frozen else any(jax.tree.leaves(leaf)), branch
    for branch, leaf in after.items():
        same_bits = jax.tree.map(lambda a, b: bool(np.all(a == b)), leaf, start["batch_stats"][branch])
        frozen = branch in ("stem_norm", "stage1_block1", "stage2_block1")
        assert all(jax.tree.leaves(same_bits)) == frozen, branch


@pytest.mark.slow
def test_rematerialised_blocks_have_the_same_parameters_and_gradient(tiny):
    image, start = tiny
    remat_changes_nothing(EfficientNet(**TINY), start, image, rtol=1e-3, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    net = EfficientNet(**TINY, dtype=jnp.bfloat16)
    start = variables(net)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    training = partial(net.apply, train=True, mutable=["batch_stats", "intermediates"])
    h, after = jax.eval_shape(training, start, image)
    assert h.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(after["intermediates"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(after["batch_stats"])} == {jnp.dtype("float32")}


def test_the_config_builds_it():
    net = backbone(config(name="efficientnet_b2", width=0.5, depth=0.5, drop_path=0.2, dropout=0.3).model)
    assert (net.width, net.depth, net.drop_path, net.dropout) == (0.55, 0.6, 0.2, 0.3)
    assert not net.unbiased
    assert models.draws(config(dropout=0.2).model) and models.draws(config(drop_path=0.2).model)
    assert not models.draws(config().model)
    assert set(SCALES) == {"efficientnet_xs", *(f"efficientnet_{name}" for name in OFFICIAL)}
    with pytest.raises(ValueError, match="frozen_blocks is 17, and efficientnet_b0 has 16 blocks"):
        backbone(config(frozen_blocks=17).model)
    with pytest.raises(ValueError, match="config.model.remat is 'dots'"):
        backbone(config(remat="dots").model)


def test_weights_need_timms_epsilon():
    c = config(bn_epsilon=1e-3)
    assert convert.family(c) is TIMM
    c.model.bn_epsilon = 1e-5
    with pytest.raises(ValueError, match="Their weights need --config.model.bn_epsilon=0.001"):
        convert.family(c)
