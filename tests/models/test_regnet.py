"""RegNetY against torchvision, the papers' tables and its own rules."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.convert.regnet import TORCHVISION
from ssljax.models import backbone
from ssljax.models.regnet import TABLES, RegNet, Table
from tests.models.golden_torch import assert_trees_close, computes_what_torch_does, remat_changes_nothing
from tests.models.test_backbone import count, model, variables

pytestmark = pytest.mark.slow

# arXiv 2003.13678, the figure of the best RegNetY networks; parameters of timm 1.0.31 with 1000 classes.
OFFICIAL = {
    "regnety_4gf": ((2, 6, 12, 2), (128, 192, 512, 1088), 64, 20_646_656),
    "regnety_8gf": ((2, 4, 10, 1), (168, 448, 896, 2016), 56, 39_180_068),
    "regnety_12gf": ((2, 5, 11, 1), (224, 448, 896, 2240), 112, 51_822_544),
    "regnety_16gf": ((2, 4, 11, 1), (224, 448, 1232, 3024), 112, 83_590_140),
}


@cache
def tiny():
    """A network of two blocks, its variables and an image, as NumPy."""
    net = RegNet(Table((1, 1), (4, 8), 2, stem=4))
    image = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
    return net, jax.device_get(jax.jit(partial(net.init, train=False))(jax.random.key(0), image)), image


def test_torchvision_network(golden):
    case = golden("arch_regnet")
    depths = tuple(case["depths"].tolist())
    widths = tuple(case["widths"].tolist())
    net = RegNet(
        Table(depths, widths, int(case["group_width"]), int(case["stem_width"])),
        bn_momentum=1 - float(case["bn_momentum_torch"]),
        bn_epsilon=float(case["bn_eps"]),
    )
    assert net.table == TABLES["regnety_xs"]
    fields = {name: case[name] for name in case.arrays}
    layers = {"stem": "stem_out", "stage1": "block1_out", "stage2": "block2_out"}
    computes_what_torch_does(net, fields, TORCHVISION, layers)


@pytest.mark.parametrize("name", OFFICIAL)
def test_tables_and_parameter_counts_of_the_official_networks(name):
    depths, widths, group, parameters = OFFICIAL[name]
    assert TABLES[name] == Table(depths, widths, group, 32)
    net = backbone(model(name=name))
    assert (net.table, net.unbiased, net.bn_momentum, net.dtype) == (TABLES[name], True, 0.9, jnp.bfloat16)
    assert count(variables(net)["params"]) + (widths[-1] + 1) * 1000 == parameters


def test_the_gate_squeezes_the_blocks_input():
    params = variables(RegNet(TABLES["regnety_16gf"]))["params"]
    found = [
        params[f"stage{stage}_block{block}"]["se"]["fc1"]["kernel"].shape
        for stage, block in ((1, 1), (1, 2), (2, 1), (4, 1))
    ]
    assert found == [(224, 8), (224, 56), (448, 56), (3024, 308)]
    assert params["stage2_block1"]["conv2"]["kernel"].shape == (3, 3, 112, 448)


def test_initialisation_is_torchvisions():
    net = RegNet(Table((1,), (64,), 16))
    params = jax.jit(partial(net.init, train=False))(jax.random.key(0), jnp.ones((1, 4, 4, 3)))["params"]
    block = params["stage1_block1"]
    kernels = (
        (block["conv2"]["kernel"], 9 * 64),
        (block["conv3"]["kernel"], 64),
        (block["se"]["fc2"]["kernel"], 64),
    )
    for kernel, fan_out in kernels:
        np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / fan_out), rtol=0.1)
        assert np.abs(kernel).max() > 2.3 * np.sqrt(2 / fan_out)  # not truncated at two standard deviations
    for bias, bound in ((block["se"]["fc1"]["bias"], 64**-0.5), (block["se"]["fc2"]["bias"], 8**-0.5)):
        assert 0.7 * bound < np.abs(bias).max() <= bound
    for norm in (params["stem_norm"], block["norm1"], block["norm3"], block["shortcut"]["norm"]):
        np.testing.assert_array_equal(norm["scale"], np.ones(norm["scale"].shape))


def test_rematerialised_blocks_have_the_same_parameters_gradient_and_statistics():
    remat_changes_nothing(*tiny(), rtol=1e-5, atol=1e-6)


def test_stochastic_depth_grows_from_nothing_in_the_first_block():
    """The last block has rate 1: its branch vanishes, as if its last gain and bias were 0.

    The first block has rate 0 and does not change.
    """
    whole, start, image = tiny()
    net = whole.clone(drop_path=1.0 - 1e-6)

    @partial(jax.jit, static_argnums=0)
    def run(net, start):
        rngs = {"drop_path": jax.random.key(2)}
        return net.apply(start, image, train=True, mutable=["batch_stats"], rngs=rngs)

    training = lambda *given: jax.device_get(run(*given))
    inference = jax.jit(partial(RegNet.apply, train=False), static_argnums=0)
    dropped, after = training(net, start)
    kept, same = training(whole, start)
    block = start["params"]["stage2_block1"]
    without_branch = {**block, "norm3": jax.tree.map(np.zeros_like, block["norm3"])}
    silent = {**start, "params": {**start["params"], "stage2_block1": without_branch}}
    np.testing.assert_allclose(dropped, training(whole, silent)[0], rtol=1e-5)
    assert np.abs(dropped - kept).max() > 1e-3
    assert_trees_close(after, same, rtol=1e-6)  # the branch is computed and its norm learns
    np.testing.assert_array_equal(inference(net, start, image), inference(whole, start, image))
    assert backbone(model(name="regnety_16gf", drop_path=0.1)).drop_path == 0.1
    assert backbone(model(name="regnety_16gf")).drop_path == 0.0


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    net = RegNet(TABLES["regnety_xs"], dtype=jnp.bfloat16)
    start = variables(net)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    training = partial(net.apply, train=True, mutable=["batch_stats", "intermediates"])
    h, after = jax.eval_shape(training, start, image)
    assert h.dtype == jnp.float32 and h.shape == (2, 32)
    assert {leaf.dtype for leaf in jax.tree.leaves(after["intermediates"])} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(after["batch_stats"])} == {jnp.dtype("float32")}


def test_a_wrong_config_says_what_is_wrong():
    with pytest.raises(ValueError, match="config.model.remat is 'dots'; it must be one of: none, blocks"):
        backbone(model(name="regnety_16gf", remat="dots"))
    unknown = "config.model.name is 'regnety_32gf'; it must be one of: resnet8, .*, regnety_16gf, .*, vit_h"
    with pytest.raises(ValueError, match=unknown):
        backbone(model(name="regnety_32gf"))
