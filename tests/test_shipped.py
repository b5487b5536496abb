"""`ssljax://NAME`: the networks that come with ssljax."""

import json

import numpy as np
import pytest

import ssljax
from ssljax import weights
from ssljax.data import sources

LIMIT = 320_000  # bytes, all files together


def test_numbers_keep_six_significant_bits_and_their_sign():
    numbers = np.float32([0.0, 1.0, -1.5, 1 + 2**-5, 1 + 2**-7, 3e-30, -123.4])
    found = weights.unpacked(*weights.packed(numbers))
    np.testing.assert_array_equal(found[:5], np.float32([0.0, 1.0, -1.5, 1 + 2**-5, 1.0]))
    np.testing.assert_allclose(found, numbers, rtol=2**-6)
    draws = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    again = weights.unpacked(*weights.packed(draws))
    assert 0 < np.abs(again / draws - 1).max() <= 2**-6
    np.testing.assert_array_equal(weights.unpacked(*weights.packed(again)), again)


def test_every_network_says_where_it_comes_from_and_all_are_small():
    files = sorted(weights.FOLDER.glob("*.npz"))
    assert len(files) == len(weights.names()) >= 1
    assert sum(file.stat().st_size for file in files) < LIMIT
    for file in files:
        with np.load(file) as stored:
            about = json.loads(stored["about"].tobytes())
            count = sum(int(np.prod(shape)) for _, shape in about["leaves"])
            assert len(stored["high"]) == len(stored["low"]) == count
        config = file.stem.removesuffix("-digits")
        assert about["command"].startswith(f"ssljax train --config {config}:digits")
        assert len(about["commit"]) == 12 and about["config"]["seed"] == 0
        assert abs(about["knn"] - about["knn_of_the_file"]) < 2, file.stem


@pytest.mark.slow
def test_simclr_is_loaded_offline_and_its_features_tell_digits_apart():
    network = ssljax.load("ssljax://simclr-digits")
    assert "simclr:digits, resnet8, step 469, 16 px, ssljax://simclr-digits" in repr(network)
    train, test = (sources.load(network.config.data, split) for split in ("train", "test"))
    bank, queries = (network.encode(split.images) for split in (train, test))
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    found = train.labels[(queries @ bank.T).argmax(1)]
    assert 100 * (found == test.labels).mean() > 88


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        FileNotFoundError, match="did you mean ssljax://simclr-digits.*There are .*simclr-dig"
    ):
        ssljax.load("ssljax://simclr-digit")
    with pytest.raises(ValueError, match="it has no stages"):
        ssljax.load("ssljax://simclr-digits", stage="pretrain")
