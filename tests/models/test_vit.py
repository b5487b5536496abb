"""The vision transformer against timm, DeiT's code and MoCo v3's rules."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from configs.moco import get_config
from ssljax.convert import weights
from ssljax.convert.vit import family
from ssljax.convert.weights import patches
from ssljax.models import attention, backbone, forward
from ssljax.models.drop import drop_path, dropout
from ssljax.models.vit import SIZES, ViT, resize_positions, sincos
from tests.convert.foreign import like
from tests.methods.small import shaken

pytestmark = pytest.mark.slow

COUNTS = json.loads((Path(__file__).parent.parent / "golden" / "param_counts.json").read_text())
CLOSE = dict(rtol=1e-4, atol=1e-5)
TINY = dict(width=32, depth=2, heads=4, patch=4)
resized = jax.jit(resize_positions, static_argnums=1, static_argnames="extra_tokens")


def started(net, size=8):
    """The variables of a network for images of this size, as NumPy."""
    init = jax.jit(partial(net.init, train=False))
    return jax.device_get(init(jax.random.key(0), np.zeros((1, size, size, 3), np.float32)))


def applied(net, variables, image, train=False, **rngs):
    return np.asarray(jax.jit(partial(net.apply, train=train))(variables, image, rngs=rngs))


def noise():
    return np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def stacked(params):
    """The parameters of TINY for a scan over its blocks."""
    looped = {name: leaf for name, leaf in params.items() if not name.startswith("block")}
    blocks = (params[f"block{i}"] for i in range(TINY["depth"]))
    return {**looped, "blocks": jax.tree.map(lambda *rows: np.stack(rows), *blocks)}


def official(g, prefix, net, image, *heads):
    """timm's state dict as our parameters, with the heads separately."""
    names = family(ConfigDict(dict(patch=net.patch, positions="learned")), image.shape[1])
    template = like(net, image, int(g[f"{prefix}/cfg/num_classes"]), *heads)
    params = jax.tree.map(jnp.asarray, weights.load(g.under(f"{prefix}/state"), template, names)["params"])
    return params.pop("encoder"), {name: head["dense"] for name, head in params.items()}


def network(g, prefix, **settings):
    cfg = {name: int(g[f"{prefix}/cfg/{name}"]) for name in ("embed_dim", "depth", "num_heads", "patch_size")}
    ratio = float(g[f"{prefix}/cfg/mlp_ratio"])
    return ViT(
        cfg["embed_dim"], cfg["depth"], cfg["num_heads"], cfg["patch_size"], mlp_ratio=ratio, **settings
    )


def test_timm_forward_and_backward(golden):
    g = golden("arch_vit")
    net = network(g, "vit")
    image = jnp.asarray(g["vit/image"].transpose(0, 2, 3, 1))
    params, heads = official(g, "vit", net, image, "head")
    head = heads["head"]

    def loss(params, image):
        tokens, state = net.apply(
            {"params": params}, image, train=True, tokens=True, mutable=["intermediates"]
        )
        logits = tokens[:, 0] @ head["kernel"] + head["bias"][None]
        labels = jnp.asarray(g["vit/labels"])[:, None]
        rows = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=1)
        return rows.mean(), (tokens, logits, state["intermediates"])

    value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (tokens, logits, blocks)), (grads, grad_image) = value_and_grad(params, image)
    for i in range(2):
        np.testing.assert_allclose(blocks[f"after_block{i}"][0], g[f"vit/block{i}_out"], **CLOSE)
    np.testing.assert_allclose(tokens, g["vit/tokens_after_norm"], **CLOSE)
    np.testing.assert_allclose(logits, g["vit/logits"], **CLOSE)
    np.testing.assert_allclose(value, g["vit/loss"], rtol=1e-5)
    np.testing.assert_allclose(grad_image, g["vit/grad_image"].transpose(0, 2, 3, 1), **CLOSE)
    np.testing.assert_allclose(grads["positions"], g["vit/grad/pos_embed"], **CLOSE)
    np.testing.assert_allclose(
        grads["block0"]["attn"]["qkv"]["kernel"], g["vit/grad/blocks.0.attn.qkv.weight"].T, **CLOSE
    )
    np.testing.assert_allclose(
        grads["patch"]["kernel"], patches(net.patch).ours(g["vit/grad/patch_embed.proj.weight"]), **CLOSE
    )
    features = jax.jit(lambda: net.apply({"params": params}, image, train=False))()
    np.testing.assert_allclose(tokens[:, 0], features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_deit_with_its_distillation_token(golden, scan):
    g = golden("arch_vit")
    image = jnp.asarray(g["deit_distilled/image"].transpose(0, 2, 3, 1))
    net = network(g, "deit_distilled", distillation=True, scan=scan)
    names = ("head", "distillation_head")
    params, heads = official(g, "deit_distilled", net, image, *names)
    tokens = jax.jit(lambda params: net.apply({"params": params}, image, train=False, tokens=True))(params)
    found = [tokens[:, i] @ heads[name]["kernel"] + heads[name]["bias"][None] for i, name in enumerate(names)]
    np.testing.assert_allclose(found[0], g["deit_distilled/train_cls_logits"], **CLOSE)
    np.testing.assert_allclose(found[1], g["deit_distilled/train_dist_logits"], **CLOSE)
    np.testing.assert_allclose((found[0] + found[1]) / 2, g["deit_distilled/eval_logits"], **CLOSE)


def parameters(net, size):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


OFFICIAL = {**COUNTS["timm_vit"], **COUNTS["deit_official"]}


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameter_counts_of_the_official_networks(name):
    size = {"tiny": "vit_ti", "small": "vit_s", "base": "vit_b", "large": "vit_l"}[name.split("_")[1]]
    width, depth, heads = SIZES[size]
    found = parameters(
        ViT(width, depth, heads, 16, distillation="distilled" in name, scan=True), int(name.rsplit("_", 1)[1])
    )
    assert count(found["params"]) == OFFICIAL[name]["backbone_without_head"] and set(found) == {"params"}


@pytest.mark.parametrize("preset, size", [("imagenet_vit_s_v3", "small"), ("imagenet_vit_b_v3", "base")])
def test_moco_v3_has_neither_positions_nor_a_patch_projection_among_its_parameters(preset, size):
    model = get_config(preset).model
    found = parameters(backbone(model), 224)
    full = OFFICIAL[f"vit_{size}_patch16_224"]["backbone_without_head"]
    width = backbone(model).width
    assert count(found["batch_stats"]) == 16 * 16 * 3 * width + width
    assert count(found["params"]) == full - count(found["batch_stats"]) - 197 * width
    assert backbone(model).heads == 12


def test_a_scan_over_blocks_is_the_blocks_one_after_another_and_remat_changes_nothing():
    image = noise()
    params = shaken(parameters(ViT(**TINY), 8), 1)["params"]

    def value_and_grad(net, params):
        loss = lambda params: jnp.sum(jnp.sin(net.apply({"params": params}, image, train=True)))
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))

    value, grads = value_and_grad(ViT(**TINY), params)
    looped = stacked(params)
    for settings in (dict(scan=True), dict(scan=True, remat="blocks"), dict(scan=True, remat="dots")):
        scanned = ViT(**TINY, **settings)
        assert jax.tree.map(jnp.shape, parameters(scanned, 8)["params"]) == jax.tree.map(np.shape, looped)
        found, found_grads = value_and_grad(scanned, looped)
        np.testing.assert_allclose(found, value, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found_grads, stacked(grads))
    found, _ = value_and_grad(ViT(**TINY, remat="blocks"), params)
    np.testing.assert_allclose(found, value, rtol=1e-6)


def test_stacked_blocks_start_from_different_weights():
    kernel = started(ViT(**TINY, scan=True))["params"]["blocks"]["fc1"]["kernel"]
    assert np.abs(kernel[0] - kernel[1]).max() > 1e-3


def test_drop_path_keeps_the_mean_and_whole_examples():
    x = jnp.ones((4000, 2, 3))
    y = np.asarray(drop_path(x, jnp.float32(0.25), jax.random.key(0)))
    assert {round(float(v), 4) for v in np.unique(y)} == {0.0, round(1 / 0.75, 4)}
    np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    np.testing.assert_allclose(y.mean(), 1.0, atol=0.03)
    np.testing.assert_array_equal(drop_path(x, jnp.float32(0.0), jax.random.key(0)), x)


@pytest.mark.parametrize("scan", [False, True])
def test_the_rate_grows_from_nothing_in_the_first_block(scan):
    """The last block has rate 1, so its branches vanish. With depth 2 the first block has rate 0."""
    net = ViT(32, 2, 4, 4, drop_path=1.0 - 1e-6, scan=scan)
    image = noise()
    variables = shaken(parameters(net, 8), 1)
    dropped = applied(net, variables, image, train=True, drop_path=jax.random.key(2))
    params = dict(variables["params"])
    if scan:
        params["blocks"] = jax.tree.map(lambda leaf: leaf[:1], params["blocks"])
    else:
        del params["block1"]
    one_block = applied(ViT(32, 1, 4, 4, scan=scan), {"params": params}, image)
    np.testing.assert_allclose(dropped, one_block, **CLOSE)
    assert np.abs(dropped - applied(net, variables, image)).max() > 1e-3


def test_dropout_keeps_the_mean_and_is_off_in_inference():
    class Site(nn.Module):
        dropout: float

        @nn.compact
        def __call__(self, x):
            return dropout(self, x)

    x = jnp.full((100, 1000), 3.0)
    y = Site(0.1).apply({}, x, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(y), [0.0, 3.0 / 0.9], rtol=1e-6)
    np.testing.assert_allclose(np.mean(y), 3.0, rtol=0.01)
    assert Site(0.0).apply({}, x) is x

    net = ViT(**TINY, dropout=0.5)
    image = jnp.ones((2, 8, 8, 3))
    params = shaken(parameters(net, 8), 1)["params"]
    in_training = jax.jit(lambda key: forward(net, params, {}, image, key=key)[0])
    run = lambda seed: np.asarray(in_training(jax.random.key(seed)))
    plain = applied(ViT(**TINY), {"params": params}, image)
    np.testing.assert_array_equal(applied(net, {"params": params}, image), plain)
    assert np.abs(run(0) - run(1)).max() > 0.1 < np.abs(run(0) - plain).max()
    np.testing.assert_array_equal(run(0), run(0))


def test_attention_maps_by_numpy():
    """The attention of one block: softmax of scaled products for the class and the distillation token."""
    net = ViT(width=32, depth=1, heads=4, patch=4, distillation=True)
    image = noise()
    params = shaken(parameters(net, 8), 1)["params"]
    maps = jax.jit(partial(attention, net))(params, {}, image)
    p = jax.tree.map(np.asarray, params)

    pixels = image.reshape(2, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(2, 4, 48)
    patches = pixels @ p["patch"]["kernel"] + p["patch"]["bias"]
    extra = np.concatenate([p["class_token"], p["distillation_token"]], axis=1)
    tokens = np.broadcast_to(extra, (2, 2, 32))
    x = np.concatenate([tokens, patches], axis=1) + p["positions"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["block0"]["norm1"]["scale"] + p["block0"]["norm1"]["bias"]

    layer = p["block0"]["attn"]["qkv"]
    q, k, _ = np.split(x @ layer["kernel"] + layer["bias"], 3, axis=-1)
    q, k = (a.reshape(2, 6, 4, 8) for a in (q, k))
    weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(8))
    softmax = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(maps, softmax[:, :, :2], rtol=1e-3, atol=1e-5)


def test_attention_maps_of_stacked_blocks_are_those_of_separate_blocks():
    image = noise()
    params = shaken(parameters(ViT(**TINY), 8), 1)["params"]
    maps, looped = (
        jax.jit(partial(attention, ViT(**TINY, scan=scan)))(tree, {}, image)
        for scan, tree in ((False, params), (True, stacked(params)))
    )
    assert maps.shape == (2, 4, 1, 5)
    np.testing.assert_allclose(looped, maps, rtol=1e-5, atol=1e-7)


def test_initialisations():
    deit = started(ViT(128, 1, 4, 4))["params"]
    for leaf in (deit["block0"]["attn"]["qkv"]["kernel"], deit["block0"]["fc2"]["kernel"], deit["positions"]):
        np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.06)
        assert np.abs(leaf).max() > 0.05  # not truncated at two standard deviations
    bound = 1 / np.sqrt(48)
    assert 0.95 * bound < np.abs(deit["patch"]["kernel"]).max() <= bound
    assert 0.8 * bound < np.abs(deit["patch"]["bias"]).max() <= bound

    v3 = started(ViT(128, 1, 4, 4, scheme="moco_v3", positions="sincos"))["params"]
    for name in ("qkv", "proj"):
        largest = np.abs(v3["block0"]["attn"][name]["kernel"]).max()
        assert 0.99 * np.sqrt(6 / 256) < largest <= np.sqrt(6 / 256), name
    assert 0.99 * np.sqrt(6 / 640) < np.abs(v3["block0"]["fc1"]["kernel"]).max() <= np.sqrt(6 / 640)
    assert 0.95 * np.sqrt(6 / 176) < np.abs(v3["patch"]["kernel"]).max() <= np.sqrt(6 / 176)
    assert np.abs(v3["class_token"]).max() < 1e-5
    assert not np.any(v3["patch"]["bias"])
    assert "positions" not in v3


def test_sincos_positions_by_hand():
    found = np.asarray(sincos(8, 2, 3, extra_tokens=1))[0]
    np.testing.assert_array_equal(found[0], np.zeros(8))
    for row in range(2):
        for column in range(3):
            w = np.array([1.0, 0.01])  # 10000 ** -(0/2, 1/2)
            expected = [*np.sin(column * w), *np.cos(column * w), *np.sin(row * w), *np.cos(row * w)]
            np.testing.assert_allclose(found[1 + 3 * row + column], expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="not 6"):
        sincos(6, 2, 2, extra_tokens=1)


@pytest.mark.parametrize("case", range(4))
def test_resized_positions_of_deit(golden, case):
    g = golden("deit_distillation").under(f"pos{case}")
    grid = (int(g["grid_out"]),) * 2
    extra = int(g["extra_tokens"])
    found = np.asarray(resized(g["pos_embed"], grid, extra_tokens=extra))
    np.testing.assert_allclose(found, g["new_pos_embed"], atol=1e-5)
    np.testing.assert_array_equal(found[:, :extra], g["pos_embed"][:, :extra])
    without_batch = resized(g["pos_embed"][0], grid, extra_tokens=extra)
    np.testing.assert_array_equal(without_batch, found[0])


def test_positions_of_the_same_grid_stay_and_rows_stay_rows():
    positions = np.random.default_rng(0).normal(size=(1, 17, 3)).astype(np.float32)
    np.testing.assert_allclose(resized(positions, (4, 4), extra_tokens=1), positions, atol=1e-6)
    rows = np.float32([9, *np.repeat(np.arange(4), 4)])[:, None]
    found = np.asarray(resized(rows, (4, 8), extra_tokens=1))[1:].reshape(4, 8)
    np.testing.assert_allclose(found, np.repeat(np.arange(4.0)[:, None], 8, axis=1), atol=1e-6)
    with pytest.raises(ValueError, match="leave 15, which is not a square number"):
        resize_positions(positions, (8, 8), extra_tokens=2)


def test_a_frozen_projection_takes_no_part_in_the_gradient_and_comes_back_from_a_pass_unchanged():
    net = ViT(**TINY, frozen_patch=True, positions="sincos", scheme="moco_v3")
    image = noise()
    variables = shaken(parameters(net, 8), 1)
    assert set(variables["batch_stats"]) == {"patch"}
    assert "patch" not in variables["params"]
    assert "positions" not in variables["params"]
    features, after = jax.jit(partial(forward, net))(variables["params"], variables["batch_stats"], image)
    jax.tree.map(np.testing.assert_array_equal, after, variables["batch_stats"])
    free = ViT(**TINY, positions="sincos", scheme="moco_v3")
    params = {**variables["params"], "patch": variables["batch_stats"]["patch"]}
    np.testing.assert_allclose(features, applied(free, {"params": params}, image, train=True), **CLOSE)


def test_in_bfloat16_no_block_keeps_its_attention_weights_for_the_backward_pass():
    net = ViT(**TINY, dtype=jnp.bfloat16)
    image = jnp.zeros((2, 16, 16, 3))
    params = parameters(net, 16)["params"]

    def kept(net):
        run = lambda params: net.apply({"params": params}, image, train=True)
        _, back = jax.eval_shape(lambda params: jax.vjp(run, params), params)
        shapes = [leaf.shape for leaf in jax.tree.leaves(back)]
        return [shape for shape in shapes if shape[-2:] == (17, 17)]

    assert not kept(net)
    assert kept(ViT(**TINY, dtype=jnp.float32)), "in float32, on a CPU, they are kept"


def test_bfloat16_keeps_softmax_and_norms_in_float32():
    image = noise()
    net = ViT(**TINY, dtype=jnp.bfloat16)
    variables = started(net)
    found = applied(net, variables, image)
    assert found.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    np.testing.assert_allclose(found, applied(ViT(**TINY), variables, image), atol=0.05)
    text = str(jax.make_jaxpr(lambda v: net.apply(v, image, train=False))(variables))
    exponentials = [line for line in text.splitlines() if "= exp " in line]
    assert exponentials and all("f32" in line for line in exponentials), exponentials


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(positions="rotary"), "config.model.positions is 'rotary'; it must be one of: learned, sincos"),
        (dict(scheme="xavier"), "config.model.scheme is 'xavier'; it must be one of: deit, moco_v3"),
        (dict(remat="all"), "config.model.remat is 'all'; it must be one of: none, blocks, dots"),
        (dict(name="vit_g"), "config.model.name is 'vit_g'; it must be one of: resnet8, .*, vit_h"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(change, message):
    model = get_config("imagenet_vit_b_v3").unlock().model
    model.update(change)
    with pytest.raises(ValueError, match=message):
        backbone(model)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="patch is 4, which does not divide an image of 10x8"):
        ViT(**TINY).init(jax.random.key(0), jnp.zeros((1, 10, 8, 3)), train=False)
