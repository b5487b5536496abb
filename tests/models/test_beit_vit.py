"""BEiT's network against its released code: activations, gradients, tables, initialisation, counts."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RectBivariateSpline

from ssljax import models
from ssljax.convert import beit as names_of
from ssljax.convert import weights
from ssljax.losses.masked import masked_token_cross_entropy
from ssljax.models.beit_vit import (
    BeitViT,
    entries,
    offsets,
    patches,
    relative_index,
    resize_bias,
    spline_matrix,
)
from tests.convert.foreign import like
from tests.methods.small import shaken

COUNTS = json.loads((Path(__file__).parent.parent / "golden" / "param_counts.json").read_text())
CLOSE = dict(rtol=1e-4, atol=1e-5)
TINY = dict(width=24, depth=2, heads=3, patch=4)
indices = jax.jit(relative_index, static_argnums=(0, 1))


def applied(net, params, image, **call):
    run = jax.jit(partial(net.apply, train=False), static_argnames=("tokens", "mutable"))
    return jax.device_get(run({"params": params}, image, **call))


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def released(g):
    """The network of a golden case, with its weights as our parameters."""
    cfg = g.under("cfg")
    state = g.under("state")
    shared = int(cfg.get("use_shared_rel_pos_bias", 0))
    blocks = int(cfg["use_rel_pos_bias"]) if "use_rel_pos_bias" in cfg else 0
    relative = "none"
    if shared or blocks:
        relative = "shared" if shared else "blocks"
    net = BeitViT(
        int(cfg["embed_dim"]),
        int(cfg["depth"]),
        int(cfg["num_heads"]),
        int(cfg["patch_size"]),
        absolute=bool(cfg["use_abs_pos_emb"]),
        relative=relative,
        layer_scale=max(float(cfg["init_values"]), 0.0),
        pooling="mean_then_norm" if "use_mean_pooling" in cfg else "mean",
    )
    image = jnp.asarray(g["image"].transpose(0, 2, 3, 1))
    height, width = (side // net.patch for side in image.shape[1:3])
    head = "lm_head" if "lm_head.weight" in state else "head"
    shapes = like(net, image, len(state[f"{head}.weight"]), "head")
    if "mask_token" in state:
        shapes["params"]["mask_token"] = jax.ShapeDtypeStruct((net.width,), jnp.float32)
    family = names_of.family(net, height, width, head)
    params = weights.load(state, shapes, family)["params"]
    return net, params


class Under:
    def __init__(self, golden, prefix):
        self.arrays = golden("beit").under(prefix)

    def __getitem__(self, name):
        return self.arrays[name]

    def under(self, prefix):
        return {k[len(prefix) + 1 :]: v for k, v in self.arrays.items() if k.startswith(prefix + "/")}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mim0", "mim1"])
def test_pretraining_forward_and_backward(golden, case):
    """mim0 has a shared bias and LayerScale, mim1 absolute positions on a grid of 3 x 5."""
    g = Under(golden, case)
    net, params = released(g)
    image = jnp.asarray(g["image"].transpose(0, 2, 3, 1))
    mask = jnp.asarray(g["bool_masked_pos"])

    def logits_of(params):
        tokens = net.apply(
            {"params": params["encoder"]},
            image,
            train=True,
            tokens=True,
            mask=mask,
            mask_token=params["mask_token"],
        )
        return models.logits(params["head"], tokens[:, 1:])

    def loss(params):
        logits = logits_of(params)
        return masked_token_cross_entropy(logits, jnp.asarray(g["token_ids"]), mask).mean(), logits

    (value, logits), grads = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(params))
    mask = np.asarray(mask)
    np.testing.assert_allclose(logits, g["logits_all"], **CLOSE)
    np.testing.assert_allclose(logits[mask], g["logits_masked"], **CLOSE)
    np.testing.assert_allclose(value, g["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads["mask_token"], g["grad_mask_token"][0, 0], **CLOSE)
    np.testing.assert_allclose(grads["head"]["dense"]["kernel"], g["grad_lm_head.weight"].T, **CLOSE)
    kernel = np.moveaxis(g["grad_patch_embed.proj.weight"], (2, 3, 1, 0), (0, 1, 2, 3))
    np.testing.assert_allclose(
        grads["encoder"]["patch"]["kernel"], kernel.reshape(-1, kernel.shape[-1]), **CLOSE
    )


@pytest.mark.slow
def test_fine_tuning_pools_patches_and_then_norms(golden):
    g = Under(golden, "cls")
    net, params = released(g)
    image = jnp.asarray(g["image"].transpose(0, 2, 3, 1))
    features = jax.jit(partial(models.infer, net))(params["encoder"], {}, image)
    np.testing.assert_allclose(features, g["features"], **CLOSE)
    np.testing.assert_allclose(models.logits(params["head"], features), g["logits"], **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["rel0", "rel1"])
def test_the_index_of_relative_positions(golden, case):
    g = golden("beit").under(case)
    height, width = (int(side) for side in g["window"])
    index = np.asarray(indices(height, width))
    np.testing.assert_array_equal(index, g["index"])
    assert entries(height, width) == int(g["num_relative_distance"]) == g["table"].shape[0]
    bias = np.moveaxis(g["table"][index], -1, 0)
    if "bias" in g:
        np.testing.assert_array_equal(bias, g["bias"])
    else:
        np.testing.assert_array_equal(bias[:, g["bias_rows_cols"][0], g["bias_rows_cols"][1]], g["bias_at"])


def test_the_index_of_a_2_by_2_window_by_hand():
    expected = [
        [11, 9, 9, 9, 9],
        [10, 4, 3, 1, 0],
        [10, 5, 4, 2, 1],
        [10, 7, 6, 4, 3],
        [10, 8, 7, 5, 4],
    ]
    np.testing.assert_array_equal(indices(2, 2), expected)


def shapes(net, size=224):
    return jax.eval_shape(
        lambda key: net.init(key, jnp.zeros((1, size, size, 3), jnp.float32), train=False), jax.random.key(0)
    )["params"]


@pytest.mark.slow
def test_parameter_counts_of_both_networks_in_pretraining():
    """With the mask token and the head of 8,192 tokens: tell BEiT of the tables from BEiT+."""
    rest = 768 + 768 * 8192 + 8192
    vanilla = BeitViT(768, 12, 12, 16, absolute=True, relative="none", layer_scale=0.0)
    assert size_of(shapes(vanilla)) + rest == 92_089_856
    plus = BeitViT(768, 12, 12, 16)
    counts = COUNTS["beit_official_pretrain"]
    assert size_of(shapes(plus)) + rest == 91_965_776 == counts["beit_base_patch16_224_8k_vocab"]["total"]
    large = BeitViT(1024, 24, 16, 16, layer_scale=1e-5)
    rest = 1024 + 1024 * 8192 + 8192
    assert size_of(shapes(large)) + rest == counts["beit_large_patch16_224_8k_vocab"]["total"]


@pytest.mark.slow
def test_parameter_counts_in_fine_tuning():
    counts = COUNTS["beit_official_finetune"]
    head = 768 * 1000 + 1000
    for size, name in ((224, "beit_base_patch16_224"), (384, "beit_base_patch16_384")):
        net = BeitViT(768, 12, 12, 16, relative="blocks", pooling="mean_then_norm")
        assert size_of(shapes(net, size)) + head == counts[name]["total"]
    net = BeitViT(768, 12, 12, 16, absolute=True, relative="none", layer_scale=0.0, pooling="mean_then_norm")
    assert size_of(shapes(net)) + head == counts["beit_base_patch16_224_abs_pos_no_layerscale"]["total"]


def tiny(**changes):
    """A network, random parameters and images."""
    net = BeitViT(**(TINY | changes))
    image = np.random.default_rng(3).uniform(size=(2, 16, 16, 3)).astype(np.float32)
    return net, jax.device_get(shaken(shapes(net, 16), 1)), image


@pytest.mark.slow
def test_initial_weights_are_truncated_at_one_standard_deviation():
    net = BeitViT(**TINY | dict(width=96), absolute=True)
    init = jax.jit(partial(net.init, train=False))
    params = jax.device_get(init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"])
    for name, scale in (("block0", 1 / np.sqrt(2)), ("block1", 1 / 2)):
        for kernel, factor in (
            (params[name]["attn"]["proj"]["kernel"], scale),
            (params[name]["fc1"]["kernel"], 1),
        ):
            assert np.abs(kernel).max() <= 0.02 * factor
            np.testing.assert_allclose(np.std(kernel), 0.0108 * factor, rtol=0.03)
        np.testing.assert_allclose(np.std(params[name]["fc2"]["kernel"]), 0.0108 * scale, rtol=0.03)
    assert np.abs(params["positions"]).max() <= 0.02
    assert not np.any(params["relative_bias"])
    np.testing.assert_array_equal(params["block0"]["gamma_1"], np.full(96, 0.1, np.float32))


@pytest.mark.slow
def test_pixels_of_masked_patches_do_not_matter():
    net, params, image = tiny(absolute=True)
    mask = np.zeros((2, 16), bool)
    mask[:, 5] = mask[1, 9] = True
    token = np.random.default_rng(1).normal(size=24).astype(np.float32)
    compiled = jax.jit(partial(net.apply, train=False, tokens=True))
    run = lambda image: np.asarray(compiled({"params": params}, image, mask=mask, mask_token=token))
    changed, seen = image.copy(), image.copy()
    changed[:, 4:8, 4:8] = 0.0
    changed[1, 8:12, 4:8] = 1.0
    np.testing.assert_array_equal(run(image), run(changed))
    seen[0, 8:12, 4:8] = 1.0
    assert np.any(run(image) != run(seen))


@pytest.mark.slow
def test_a_masked_patch_keeps_its_position():
    """All patches masked: with positions the tokens differ, without any they are equal."""
    for absolute, equal in ((True, False), (False, True)):
        net, params, image = tiny(absolute=absolute, relative="none")
        mask = dict(mask=np.ones((2, 16), bool), mask_token=np.ones(24, np.float32))
        out = applied(net, params, image, tokens=True, **mask)
        spread = np.ptp(out[:, 1:], axis=1).max()
        assert (spread < 1e-5) == equal


@pytest.mark.slow
def test_mean_pooling_leaves_the_class_token_out():
    net, params, image = tiny(pooling="mean_then_norm", relative="blocks")
    zeroed = jax.tree.map(np.zeros_like, params)
    zeroed["class_token"] += 7.0
    zeroed["fc_norm"]["scale"] += 1.0
    np.testing.assert_array_equal(applied(net, zeroed, image), np.zeros((2, 24)))


@pytest.mark.slow
def test_without_its_scale_a_block_is_the_identity():
    net, params, image = tiny()
    for block in ("block0", "block1"):
        params[block] = dict(params[block], gamma_1=np.float32([0] * 24), gamma_2=np.float32([0] * 24))
    _, found = applied(net, params, image, tokens=True, mutable="intermediates")
    first, second = (found["intermediates"][f"after_block{i}"][0] for i in range(2))
    np.testing.assert_array_equal(first, second)
    embedded = np.asarray(patches(image, 4)) @ params["patch"]["kernel"] + params["patch"]["bias"]
    np.testing.assert_allclose(first.reshape(2, 16, 24), embedded, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_stochastic_depth_is_off_in_inference():
    net, params, image = tiny(drop_path=0.5)
    still = applied(net, params, image)
    np.testing.assert_array_equal(still, applied(BeitViT(**TINY), params, image))
    moved, _ = jax.jit(partial(models.forward, net))(params, {}, image, key=jax.random.key(1))
    assert np.any(np.asarray(moved) != np.asarray(still))


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    net, params, image = tiny()

    def loss(net):
        return jax.jit(jax.grad(lambda p: net.apply({"params": p}, image, train=True).sum()))(params)

    plain = loss(net)
    for remat in ("blocks", "dots"):
        again = loss(BeitViT(**TINY, remat=remat))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain, again)


def test_tables_become_one_per_block_and_keep_their_values_at_the_same_size():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(732, 4)), jnp.float32)
    np.testing.assert_array_equal(resize_bias(table, (12, 732, 4)), np.broadcast_to(table, (12, 732, 4)))
    with pytest.raises(ValueError, match="model.relative=blocks"):
        resize_bias(jnp.zeros((2, 732, 4), jnp.float32), (732, 4))
    with pytest.raises(ValueError, match="not that of a square grid"):
        resize_bias(jnp.zeros((80, 4), jnp.float32), (732, 4))


@pytest.mark.slow
def test_a_larger_grid_is_reached_by_a_geometric_spline():
    """27^2 -> 47^2, as in fine-tuning at 384: q = 1.0903, and FITPACK's bicubic spline, as in BEiT's code."""
    places = np.asarray(jax.jit(offsets, static_argnums=(0, 1))(13, 23))
    np.testing.assert_allclose(np.diff(places[14:]) / np.diff(places[13:-1]), 1.0903, atol=2e-4)
    np.testing.assert_allclose(places[[0, 13, -1]], [-23, 0, 23], atol=1e-4)
    table = np.random.default_rng(1).normal(size=(27 * 27 + 3, 2)).astype(np.float32)
    found = np.asarray(jax.jit(resize_bias, static_argnums=1)(table, (3, 47 * 47 + 3, 2)))
    at = np.arange(-23, 24, dtype=np.float32)
    for head in range(2):
        spline = RectBivariateSpline(places, places, table[:-3, head].reshape(27, 27), kx=3, ky=3, s=0)
        np.testing.assert_allclose(found[1, :-3, head].reshape(47, 47), spline(at, at), atol=1e-4)
        np.testing.assert_array_equal(found[2, -3:, head], table[-3:, head])
    inner = at[1:-1]
    cubic = (places / 23) ** 3 - places  # a cubic is its own spline
    np.testing.assert_allclose(
        jax.jit(spline_matrix)(places, inner) @ cubic, (inner / 23) ** 3 - inner, atol=1e-4
    )


def test_layer_scale_must_fit_the_size():
    from ml_collections import ConfigDict

    model = ConfigDict(
        dict(name="beit_l", patch=16, absolute=False, relative="shared", layer_scale=0.1, pooling="mean")
        | dict(drop_path=0.1, remat="none", dtype="float32")
    )
    with pytest.raises(ValueError, match="layer_scale=1e-5"):
        models.backbone(model)
    model.layer_scale = 1e-5
    assert models.backbone(model).depth == 24
