"""Weights of timm and torchvision in our trees and back.

tests/models checks that the networks then compute the same.
"""

import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from configs.moco import get_config as moco_config
from configs.simclr import get_config as simclr_config
from ssljax import convert
from ssljax.convert import regnet, resnet, vit, weights
from ssljax.models import RegNet, ResNet
from ssljax.models.regnet import TABLES
from ssljax.models.resnet import Basic, Bottleneck
from ssljax.models.vit import ViT, sincos
from tests.convert.foreign import like

VIT = vit.family(ConfigDict(dict(patch=4, positions="learned")), 16)


def image(size, channels=3):
    return jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)


def tiny_vit(golden, case="vit", *heads, **settings):
    """timm's state dict of a golden case, and the shapes of our tree."""
    g = golden("arch_vit")
    width, depth, number, classes = (
        int(g[f"{case}/cfg/{name}"]) for name in ("embed_dim", "depth", "num_heads", "num_classes")
    )
    net = ViT(width, depth, number, 4, mlp_ratio=float(g[f"{case}/cfg/mlp_ratio"]), **settings)
    return g.under(f"{case}/state"), like(net, image(16), classes, "head", *heads)


def convolutional(golden, name):
    """The other framework's state dict, the shapes of our tree, and the Family."""
    if name == "regnet":
        template = like(RegNet(TABLES["regnety_xs"]), image(12), 5, "head")
        return golden("arch_regnet").under("state"), template, regnet.TORCHVISION

    case = golden("arch_resnet").under(name)
    blocks = {"BasicBlock": Basic, "Bottleneck": Bottleneck}
    net = ResNet(
        blocks[str(case["block"])],
        tuple(case["layers"]),
        tuple(case["planes"]),
        int(case["stem_width"]),
        stem="cifar" if case["small_stem"] else "imagenet",
        shortcut="torchvision",
    )
    state = {name.removeprefix("state/"): value for name, value in case.items() if name.startswith("state/")}
    return state, like(net, image(40), int(case["num_classes"]), "head"), resnet.RESNET


def assert_same_arrays(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].flags.c_contiguous and found[name].dtype == np.float32, name


@pytest.mark.parametrize("name", ["c0", "c1", "regnet"])
def test_a_convolutional_network_goes_round_bit_for_bit(golden, name):
    state, template, family = convolutional(golden, name)
    tree = weights.load(state, template, family)
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, template)
    expected = {name: a for name, a in state.items() if not name.endswith("num_batches_tracked")}
    assert_same_arrays(weights.dump(tree, family), expected)


@pytest.mark.parametrize("scan", [False, True])
def test_a_distilled_transformer_goes_round_bit_for_bit(golden, scan):
    state, template = tiny_vit(golden, "deit_distilled", "distillation_head", distillation=True, scan=scan)
    tree = weights.load(state, template, VIT)
    assert jax.tree.structure(tree) == jax.tree.structure(template)
    assert_same_arrays(weights.dump(tree, VIT), state)
    encoder = tree["params"]["encoder"]
    kernel = encoder["blocks"]["fc1"]["kernel"][1] if scan else encoder["block1"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, state["blocks.1.mlp.fc1.weight"].T)
    for ours, theirs in (("head", "head"), ("distillation_head", "head_dist")):
        np.testing.assert_array_equal(tree["params"][ours]["dense"]["kernel"], state[f"{theirs}.weight"].T)


def test_layouts_by_hand():
    w = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)  # [D, C, h, w]
    for d in range(2):
        for c in range(3):
            for i in range(2):
                for j in range(2):
                    assert weights.CONV.ours(w)[i, j, c, d] == w[d, c, i, j]
                    assert weights.patches(2).ours(w)[(2 * i + j) * 3 + c, d] == w[d, c, i, j]
    for reorder in (weights.patches(2), weights.CONV):
        np.testing.assert_array_equal(reorder.theirs(reorder.ours(w)), w)


@pytest.mark.parametrize(
    "ours, torchvision, timm",
    [
        ("stem_norm/var", "stem.1.running_var", "stem.bn.running_var"),
        (
            "stage2_block1/conv2/kernel",
            "trunk_output.block2.block2-0.f.b.0.weight",
            "s2.b1.conv2.conv.weight",
        ),
        ("stage1_block2/norm3/scale", "trunk_output.block1.block1-1.f.c.1.weight", "s1.b2.conv3.bn.weight"),
        ("stage1_block1/se/fc2/bias", "trunk_output.block1.block1-0.f.se.fc2.bias", "s1.b1.se.fc2.bias"),
        (
            "stage1_block1/shortcut/norm/mean",
            "trunk_output.block1.block1-0.proj.1.running_mean",
            "s1.b1.downsample.bn.running_mean",
        ),
    ],
)
def test_the_two_names_of_a_regnet(ours, torchvision, timm):
    assert (regnet.TORCHVISION.rename(ours)[0], regnet.TIMM.rename(ours)[0]) == (torchvision, timm)


def test_timms_regnet_is_recognised_by_its_names(golden):
    state, template, _ = convolutional(golden, "regnet")
    tree = weights.load(state, template, regnet.TORCHVISION)
    config = simclr_config("digits").copy_and_resolve_references().unlock()
    config.model.name = "regnety_xs"
    theirs = weights.dump(tree, regnet.TIMM)
    assert convert.family(config, theirs) is regnet.TIMM
    assert convert.family(config, state) is regnet.TORCHVISION
    assert convert.family(config) is regnet.TORCHVISION
    jax.tree.map(np.testing.assert_array_equal, weights.load(theirs, template, regnet.TIMM), tree)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: s.pop("blocks.1.norm2.bias"),
            r"the file has no 'blocks.1.norm2.bias' \(1 of 32 names are missing\): config.model",
        ),
        (
            lambda s: s.update({"pos_embd": s.pop("pos_embed")}),
            "the file has no 'pos_embed' .*the nearest there is 'pos_embd'",
        ),
        (lambda s: s.update(fc_norm=np.ones(3)), r"'fc_norm' of the file has no place here \(1 such names\)"),
        (
            lambda s: s.update(pos_embed=np.ones((1, 10, 32))),
            r"pos_embed is \[1, 10, 32\] in the file and \[1, 17, 32\] here: .*image_size",
        ),
        (
            lambda s: s.update({"norm.weight": np.ones(31)}),
            r"norm.weight is \[31\] in the file and \[32\] here",
        ),
        (
            lambda s: s.update({"head.weight": np.ones((7, 32))}),
            "its head has 7 classes, this configuration 10. .*num_classes=7",
        ),
        (
            lambda s: s.update({"head.bias": np.ones(7)}),
            "its head has 7 classes, this configuration 10. .*init_from",
        ),
    ],
    ids=["missing", "misspelt", "left_over", "grid", "width", "classes", "classes_of_the_bias"],
)
def test_what_does_not_match_is_named(golden, change, message):
    state, template = tiny_vit(golden)
    change(state)
    with pytest.raises(ValueError, match=message):
        weights.load(state, template, VIT)


def test_a_distilled_file_does_not_fit_a_plain_network(golden):
    state, _ = tiny_vit(golden, "deit_distilled", "distillation_head", distillation=True)
    _, template = tiny_vit(golden)
    with pytest.raises(ValueError, match=r"'dist_token' of the file has no place here \(3 such names\)"):
        weights.load({**state, "pos_embed": np.ones((1, 17, 32))}, template, VIT)


def test_fixed_positions_are_written_and_compared(golden):
    state, template = tiny_vit(golden, positions="sincos", frozen_patch=True)
    fixed = np.asarray(sincos(32, 4, 4, extra_tokens=1))
    family = VIT._replace(fixed={"pos_embed": fixed})
    state["pos_embed"] = fixed
    tree = weights.load(state, template, family)
    np.testing.assert_array_equal(
        tree["model_state"]["encoder"]["patch"]["bias"], state["patch_embed.proj.bias"]
    )
    assert_same_arrays(weights.dump(tree, family), state)
    exchanged = np.concatenate(
        [fixed[..., 16:], fixed[..., :16]], axis=-1
    )  # as in MoCo v3's released networks
    with pytest.raises(ValueError, match="pos_embed in the file is not what .*positions=learned"):
        weights.load({**state, "pos_embed": exchanged}, template, family)


@pytest.mark.parametrize(
    "preset, change, message",
    [
        (
            "imagenet_r50",
            {},
            "config.model.shortcut is 'simclr': no network of torchvision"
            " .*--config.model.shortcut=torchvision",
        ),
        ("imagenet_r50", dict(shortcut="torchvision", sk_ratio=0.0625), "config.model.sk_ratio is 0.0625"),
        ("imagenet_r50", dict(shortcut="torchvision", padding="same"), "config.model.padding is 'same'"),
        ("imagenet_r50", dict(shortcut="torchvision", bn_epsilon=1e-3), "config.model.bn_epsilon is 0.001"),
    ],
)
def test_a_network_that_computes_something_else_is_refused(preset, change, message):
    config = simclr_config(preset).copy_and_resolve_references().unlock()
    config.model.update(change)
    with pytest.raises(ValueError, match=message):
        convert.family(config)


def test_the_family_follows_the_config():
    assert convert.family(moco_config("imagenet_r50_v2_e200")) is resnet.RESNET
    assert convert.family(moco_config("imagenet_vit_b_v3")).fixed["pos_embed"].shape == (1, 197, 768)
    config = ConfigDict(dict(name="vit_xs", patch=4, positions="sincos", distillation=True))
    np.testing.assert_array_equal(vit.family(config, 16).fixed["pos_embed"], sincos(64, 4, 4, extra_tokens=2))
    assert not VIT.fixed


@pytest.mark.parametrize(
    "dtype, value, shown",
    [
        (np.float32, np.nan, "nan"),
        (np.float16, np.inf, "inf"),
        (np.float64, 1e39, "1e"),
        (np.float32, -3.4e38, "-3.39999"),
        (ml_dtypes.bfloat16, np.nan, "nan"),
    ],
)
def test_numbers_that_no_network_computes_with_are_refused(golden, dtype, value, shown):
    state, template = tiny_vit(golden)
    name = "blocks.1.norm2.bias"
    state[name] = state[name].astype(dtype)
    state[name][[3, 5]] = value
    match = rf"2 of 32 numbers of {name} in the file are NaN, infinite or above 3.39e\+38.*first: {shown}"
    with pytest.raises(ValueError, match=match):
        weights.load(state, template, VIT)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-3], lambda b: b[:20], lambda b: b"", lambda b: b"<html>" * 20], ids=range(4)
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, damage):
    file = tmp_path / "a.safetensors"
    save_file({"a": np.ones((4, 4), np.float32)}, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        ValueError, match=r"a.safetensors is damaged.*Download or export.*ssljax convert --from"
    ):
        weights.read(str(file))


def test_half_precision_is_read_exactly_and_transposed_arrays_are_written_whole(tmp_path, golden):
    state, template = tiny_vit(golden)
    half = {
        name: array.astype(ml_dtypes.bfloat16 if "norm" in name else np.float16)
        for name, array in state.items()
    }
    save_file(half, tmp_path / "half.safetensors")
    tree = weights.load(weights.read(str(tmp_path / "half.safetensors")), template, VIT)
    weights.write(weights.dump(tree, VIT), str(tmp_path / "new" / "whole.safetensors"))
    expected = {name: a.astype(np.float32) for name, a in half.items()}
    assert_same_arrays(load_file(tmp_path / "new" / "whole.safetensors"), expected)


def test_what_cannot_be_read_or_written_says_why(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no file .*absent.safetensors"):
        weights.read(str(tmp_path / "absent.safetensors"))
    for name in ("a.bin", "a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="a.bin is neither .safetensors nor .pth"):
        weights.read(str(tmp_path / "a.bin"))
    with pytest.raises(ValueError, match="a.bin does not end in .safetensors"):
        weights.write({}, str(tmp_path / "a.bin"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError,
        match=r"not installed. Convert it where PyTorch is installed: python -c .*torch.load\('a.pth'",
    ):
        weights.read(str(tmp_path / "a.pth"))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match=r"pip install 'ssljax\[convert\]'"):
        weights.read(str(tmp_path / "a.safetensors"))
