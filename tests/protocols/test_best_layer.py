"""The probe of the best layer: held-out training images choose it, and the test images do not."""

from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from ssljax.protocols import best_layer
from ssljax.protocols.features import Features

CONFIG = ConfigDict(
    dict(
        seed=0,
        evaluate=dict(
            layers=("early", "middle", "late"), layer_dim=8, linear="lbfgs", linear_l2=0.01, batch_size=8
        ),
    )
)
# How well a layer tells the classes apart, in training and in test: "late" is best on test images alone.
QUALITY = {"early": (0.5, 0.5), "middle": (4.0, 1.0), "late": (1.0, 50.0)}


def bench():
    rng = np.random.default_rng(0)

    def maps(source, layer, reduce):
        del reduce
        labels = np.arange(300, dtype=np.int32) % 3
        strength = QUALITY[layer][source == "test"]
        features = rng.normal(size=(300, 3)) + strength * np.eye(3)[labels]
        return Features(features.astype(np.float32), labels, np.arange(300, dtype=np.int32))

    return SimpleNamespace(
        config=CONFIG, maps=maps, train="train", test="test", num_classes=3, unlabelled=lambda name: ""
    )


def test_held_out_training_images_choose_the_layer():
    (found,) = best_layer.judge(bench())
    assert found["protocol"] == "best_layer" and found["n"] == 300
    settings = found["settings"]
    assert settings["layer"] == "middle" and settings["layers"] == ["early", "middle", "late"]
    assert settings["probe"] == "linear_lbfgs" and settings["dim"] == 3
    assert settings["held_out_top1"] > 95 > found["top1"] > 40


def test_the_parts_of_the_training_images_share_none_and_follow_the_seed():
    labels = np.arange(50, dtype=np.int32)
    whole = Features(labels[:, None].astype(np.float32), labels, labels)
    kept, held = best_layer.split(whole, 0)
    assert len(held.labels) == 5
    assert sorted([*kept.labels, *held.labels]) == list(range(50))
    np.testing.assert_array_equal(held.features[:, 0], held.labels)
    assert set(best_layer.split(whole, 1)[1].labels) != set(held.labels)


def test_without_layers_it_is_refused():
    none = bench()
    none.config = ConfigDict(dict(evaluate=dict(layers=())))
    assert best_layer.refuse(none).startswith("best_layer needs config.evaluate.layers")
    assert best_layer.refuse(bench()) == ""


def test_pixels_have_no_layers():
    pixels = bench()
    pixels.maps = None
    with pytest.raises(AssertionError, match="pixels have no maps"):
        next(best_layer.judge(pixels))
