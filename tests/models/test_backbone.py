"""Networks from a configuration: names, widths, errors, and the parameter counts of the released code."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs.simclr import get_config
from ssljax.config import resolve
from ssljax.models import backbone, projection_head

COUNTS = json.loads((Path(__file__).parent.parent / "golden" / "param_counts.json").read_text())


def model(**changes) -> ConfigDict:
    config = get_config("imagenet_r50").copy_and_resolve_references().unlock()
    config.model.update(changes)
    return resolve(config).model


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def variables(net, size=64):
    """Shapes only: nothing is allocated, not even for ResNet-152 4x."""
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: net.init(jax.random.key(0), x, train=False), image)


@pytest.mark.slow
@pytest.mark.parametrize("key", COUNTS["simclr_tf2_resnet"])
def test_parameter_counts_of_the_official_networks(key):
    name, width, _, sk_ratio = re.fullmatch(r"(resnet\d+)_x(\d)(_sk([\d.]+))?", key).groups()
    expected = COUNTS["simclr_tf2_resnet"][key]
    net = backbone(model(name=name, width=float(width)))
    if sk_ratio:  # the released basic blocks have ResNet-D's stem and shortcut, which `backbone` refuses
        net = net.clone(sk_ratio=float(sk_ratio))
    found = variables(net)
    assert count(found["params"]) == expected["trainable"]
    assert count(found["batch_stats"]) == expected["bn_moving_stats"]

    features = jax.ShapeDtypeStruct((2, net.widths[-1] * net.block.expansion), jnp.float32)
    for layers in (2, 3):
        if f"projection_head_{layers}_layers_trainable" in expected:
            head = projection_head(ConfigDict(dict(layers=layers, hidden=0, dim=128)), model())
            shapes = jax.eval_shape(
                lambda h, head=head: head.init(jax.random.key(0), h, train=False), features
            )
            assert count(shapes["params"]) == expected[f"projection_head_{layers}_layers_trainable"]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_parameter_counts_of_torchvision(name):
    found = variables(backbone(model(name=name, shortcut="torchvision")))
    expected = COUNTS["torchvision_resnet"][name]
    assert count(found["params"]) == expected["backbone_without_head"]
    assert count(found["batch_stats"]) == expected["float_buffers"]


@pytest.mark.parametrize("name, expected", [("resnet18", 11_173_056), ("resnet50", 23_500_352)])
def test_parameter_counts_with_the_cifar_stem(name, expected):
    assert count(variables(backbone(model(name=name, stem="cifar")), 32)["params"]) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, blocks, dim", [("resnet8", 3, 256), ("resnet10", 4, 512), ("resnet200", 66, 2048)]
)
def test_networks_without_an_official_count(name, blocks, dim):
    net = backbone(model(name=name, stem="cifar"))
    image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    h, found = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x, train=False), image)
    assert sum("block" in key for key in found["params"]) == blocks
    assert h.shape == (2, dim)


def test_width_scales_every_layer_and_the_config_reaches_every_norm():
    net = backbone(
        model(name="resnet18", width=0.25, stem="cifar", bn_momentum=0.5, bn_epsilon=1e-3, dtype="float32")
    )
    assert (net.stem_width, net.widths) == (16, (16, 32, 64, 128))
    assert (net.bn_momentum, net.bn_epsilon, net.dtype, net.unbiased) == (0.5, 1e-3, jnp.float32, False)
    assert backbone(model(shortcut="torchvision")).unbiased
    assert backbone(model(width=0.3)).widths == (19, 38, 76, 152)
    head = projection_head(
        ConfigDict(dict(layers=2, hidden=7, dim=5)), model(bn_momentum=0.5, bn_epsilon=1e-3, dtype="bfloat16")
    )
    assert (head.layers, head.hidden, head.dim) == (2, 7, 5)
    assert (head.bn_momentum, head.bn_epsilon, head.dtype) == (0.5, 1e-3, jnp.bfloat16)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(name="resnet51"), "config.model.name is 'resnet51'; it must be one of: resnet8, .*, resnet200"),
        (dict(stem="cifar10"), "config.model.stem is 'cifar10'; it must be one of: imagenet, cifar"),
        (dict(shortcut="A"), "config.model.shortcut is 'A'; it must be one of: simclr, torchvision"),
        (dict(padding="SAME"), "config.model.padding is 'SAME'; it must be one of: symmetric, same"),
        (dict(name="resnet18", sk_ratio=0.0625), "sk_ratio is 0.0625, but resnet18 has basic blocks"),
        (dict(width=0.01), "width is 0.01, which leaves 1 channels"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        backbone(model(**change))
