"""Segmentation networks: PyTorch's interpolation, Caffe's crop, and layers by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.segmentation import get_config
from ssljax import models
from ssljax.config import resolve
from ssljax.models import resnet
from ssljax.models.alexnet_vgg import ALEXNET, VGG16
from ssljax.models.fcn import bilinear, crop_of, times_32, upsample_filter
from tests.methods.small import shaken


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_bilinear_interpolation_equals_pytorch(golden):
    g = golden("segmentation")
    maps = g["bilinear_input_nchw"].transpose(0, 2, 3, 1)
    for aligned in (False, True):
        found = jax.jit(lambda maps, aligned=aligned: bilinear(maps, 33, 47, align_corners=aligned))(maps)
        expected = g[f"bilinear_33x47_align_corners_{str(aligned).lower()}"]
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=1e-5, atol=5e-6)


def test_dilated_convolutions_equal_pytorch(golden):
    g = golden("segmentation")
    x = jnp.asarray(g["conv/input"].transpose(0, 2, 3, 1))
    kernel = jnp.asarray(g["conv/kernel_oihw"].transpose(2, 3, 1, 0))
    for dilation in (2, 6):
        conv = resnet.conv(6, 3, dilation=dilation, dtype=jnp.float32, name="conv")
        found = conv.apply({"params": {"kernel": kernel}}, x)
        expected = g[f"conv/dilation{dilation}_pad{dilation}"]
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=1e-5, atol=5e-6)


def test_the_fixed_kernel_is_the_released_one(golden):
    line = upsample_filter(4)
    np.testing.assert_allclose(line[:, None] * line[None], golden("segmentation")["fcn_upsample_filter_4"])
    np.testing.assert_allclose(upsample_filter(63)[:3], [1 / 32, 2 / 32, 3 / 32])


def test_fcn_32s_is_a_transposed_convolution_that_is_cropped():
    """The crops of the released AlexNet and VGG-16 are 18 and 19."""
    assert crop_of(ALEXNET, 6) == (63, 18)
    assert crop_of(VGG16, 7) == (64, 19)
    scores = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    line = 1 - np.abs(np.arange(63) - 31) / 32
    whole = np.zeros((2 * 32 + 63, 3 * 32 + 63))
    for row in range(3):
        for column in range(4):
            at = (slice(32 * row, 32 * row + 63), slice(32 * column, 32 * column + 63))
            whole[at] += scores[row, column] * np.outer(line, line)
    enlarged = jax.jit(lambda scores: times_32(scores, ALEXNET, 100, 120, 6))
    found = enlarged(scores[None, :, :, None])
    np.testing.assert_allclose(found[0, :, :, 0], whole[18:118, 18:138], rtol=1e-5, atol=1e-6)


def model(**changes):
    config = get_config("voc").copy_and_resolve_references().unlock()
    config.model.update(dtype="float32", **changes)
    return resolve(config)


@pytest.mark.slow
def test_the_last_group_of_the_papers_network_has_stride_1():
    config = model()
    net = models.segmenter(config.model, config.fcn, 21)
    image = jax.ShapeDtypeStruct((1, 513, 513, 3), jnp.float32)

    def looking(x):
        variables = net.init(jax.random.key(0), x, train=False)
        maps, _ = net.encoder.apply(
            {"params": variables["params"]["encoder"], "batch_stats": variables["batch_stats"]["encoder"]},
            x, train=True, part=(0, 4), mutable=["batch_stats"],
        )  # fmt: skip
        return variables["params"], maps, net.apply(variables, x, train=False)

    params, maps, scores = jax.eval_shape(looking, image)
    assert maps.shape == (1, 33, 33, 2048) and scores.shape == (1, 513, 513, 21)
    # 23,508,032 of the ResNet, 5,308,928 + 1,024 of the convolutions and norms, 5,397 of the classifier
    assert sum(leaf.size for leaf in jax.tree.leaves(params["head"])) == (2048 + 256) * 256 * 9 + 1024 + 5397
    assert sum(leaf.size for leaf in jax.tree.leaves(params["encoder"])) == 23508032


def test_the_last_group_by_hand():
    """Both convolutions dilated, the shortcut at every cell, on a map whose every cell is seen."""
    net = models.backbone(model(name="resnet8", width=1 / 16, stem="cifar").model)
    x = normal((1, 12, 12, 3))
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(1), x)
    variables["params"] = models.unit_gains(variables["params"])
    apply = partial(net.apply, train=False, part=(0, 3), mutable=["intermediates"])
    maps, sown = jax.jit(apply)(variables, x)
    before = np.asarray(sown["intermediates"]["group2"][0])[0]
    block = jax.tree.map(np.asarray, variables["params"]["group3_block1"])
    scale = 1 / np.sqrt(1 + 1e-5)  # the norms at their initialisation

    def dilated(x, kernel):
        out = np.zeros((*x.shape[:2], kernel.shape[-1]))
        for row, column in np.ndindex(x.shape[:2]):
            for i, j in np.ndindex(3, 3):
                y, z = row + 2 * (i - 1), column + 2 * (j - 1)
                if 0 <= y < x.shape[0] and 0 <= z < x.shape[1]:
                    out[row, column] += x[y, z] @ kernel[i, j]
        return out

    inside = np.maximum(dilated(before, block["conv1"]["kernel"]) * scale, 0)
    inside = dilated(inside, block["conv2"]["kernel"]) * scale
    shortcut = before @ block["shortcut"]["conv"]["kernel"][0, 0] * scale
    assert maps.shape[1:3] == before.shape[:2] == (6, 6)
    np.testing.assert_allclose(maps[0], np.maximum(inside + shortcut, 0), rtol=1e-4, atol=1e-5)


def test_fc6_as_a_convolution_is_fc6():
    """On a map of 6 x 6 the fully convolutional AlexNet gives what AlexNet gives."""
    config = model(name="alexnet_bn", width=1 / 32, sobel=True, dropout=0.5)
    net = models.backbone(config.model)
    x = normal((2, 224, 224, 3))
    variables = jax.jit(partial(net.init, train=False))(jax.random.key(1), x)
    convolved = jax.jit(partial(net.apply, train=False, border=2))
    places = convolved(variables, x)
    assert places.shape == (2, 1, 1, 128)
    plain = jax.jit(partial(net.apply, train=False))(variables, x)
    np.testing.assert_allclose(places[:, 0, 0], plain, rtol=1e-4, atol=1e-7)
    # four columns more begin an incomplete window of a pool, which Caffe keeps
    wide = np.pad(x, ((0, 0), (0, 0), (0, 4), (0, 0)))
    assert jax.eval_shape(convolved, variables, wide).shape == (2, 1, 2, 128)


def test_other_networks_are_refused():
    config = model(name="vit_s", patch=16)
    with pytest.raises(ValueError, match="config.model.name is 'vit_s': .*alexnet_bn or of vgg16_bn"):
        models.segmenter(config.model, config.fcn, 21)


@pytest.mark.parametrize(
    "network",
    [
        dict(name="resnet8", width=1 / 16, stem="cifar"),
        dict(name="alexnet_bn", width=1 / 32),
    ],
)
def test_padding_changes_no_score_of_an_image(network):
    """Whole images of different sizes in one square have the scores that they have alone."""
    config = model(**network)
    net = models.segmenter(config.model, config.fcn, 5)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda x: net.init(key, x, train=False), normal((1, 16, 16, 3)))
    scores = jax.jit(lambda x, size=None: net.apply(variables, x, train=False, size=size))
    variables = shaken(variables, 1)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    sizes, side = [(14, 9), (7, 16)], 18
    if network["name"] == "alexnet_bn":  # fc6 has one place at 9 pixels, two at 50
        sizes, side = [(50, 9), (9, 18)], 50
    images = [normal((1, *size, 3), i) for i, size in enumerate(sizes)]
    pad = lambda x: np.pad(x, ((0, 0), (0, side - x.shape[1]), (0, side - x.shape[2]), (0, 0)))
    together = np.concatenate([pad(x) for x in images])
    found = np.asarray(scores(together, np.array(sizes, np.int32)))
    for image, size, row in zip(images, sizes, found, strict=True):
        alone = scores(image)[0]
        np.testing.assert_allclose(row[: size[0], : size[1]], alone, atol=1e-5 * np.abs(alone).max())
