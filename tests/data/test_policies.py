"""RandAugment and AutoAugment match timm's pixels, arguments, tables and the documented random stream."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.simclr import get_config
from ssljax.config import resolve
from ssljax.data import policies, sampler

BILINEAR = Image.Resampling.BILINEAR
NEAREST = Image.Resampling.NEAREST
OPS = sorted(
    {*policies.RANDAUGMENT["randaugment"], *policies.RANDAUGMENT["randaugment_plain"], "PosterizeOriginal"}
)


@pytest.fixture(scope="module")
def g(golden):
    return golden("augment")


@pytest.fixture(scope="module")
def image(g):
    return g["image_uint8"]


def a_config(policy, **augment):
    config = get_config("imagenet_r50").unlock()
    config.augment.update(policy=policy, jitter_probability=0.0, **augment)
    return resolve(config)


@pytest.mark.parametrize("op", OPS)
def test_pixels_and_arguments_are_timms(g, image, op):
    fill = tuple(g["timm/img_mean_fill"].tolist())
    assert fill == policies.IMAGENET_FILL
    arguments = g[f"timm/arg/{op}"]
    for i, level in enumerate(g["timm/levels"]):
        value = policies.argument(op, level, negative=False)
        np.testing.assert_allclose(value, arguments[i] if arguments.size else 0.0, atol=1e-12)
        if g[f"timm/valid/{op}"][i]:
            found = policies.apply(op, image, value, fill=fill, resample=BILINEAR)
            np.testing.assert_array_equal(found, g[f"timm/img/{op}"][i])
            if f"timm/img_nearest/{op}" in g:
                nearest = policies.apply(op, image, value, fill=(128, 128, 128), resample=NEAREST)
                np.testing.assert_array_equal(nearest, g[f"timm/img_nearest/{op}"][i])
        else:
            assert (op, value) == ("Posterize", 0.0)  # Pillow refuses to keep 0 bits; it used to return black
            assert not policies.apply(op, image, value).any()


def test_tables_are_timms(g):
    for name, field in (
        ("randaugment", "timm/rand_increasing_transforms"),
        ("randaugment_plain", "timm/rand_transforms"),
    ):
        assert list(policies.RANDAUGMENT[name]) == g[field].tolist()
    tables = json.loads(str(g["autoaugment_tables_json"]))
    for name in ("original", "v0"):
        ours = [[list(op) for op in pair] for pair in policies.AUTOAUGMENT[f"autoaugment_{name}"]]
        assert ours == tables[f"timm_{name}"]


def test_negative_arguments_by_hand():
    expected = {
        "Rotate": -27.0,
        "ShearX": -0.27,
        "TranslateYRel": -0.405,
        "ColorIncreasing": 0.19,
        "Color": 1.72,
        "SolarizeAdd": 99,
    }
    assert {op: policies.argument(op, 9.0, negative=True) for op in expected} == pytest.approx(expected)
    assert policies.argument("ContrastIncreasing", 10.0, negative=True) == 0.1
    assert policies.argument("PosterizeIncreasing", 10.0, negative=False) == 0.0
    assert policies.argument("SolarizeIncreasing", 10.0, negative=False) == 0.0


@pytest.mark.parametrize(
    "op, argument",
    [
        ("PosterizeOriginal", 8),
        ("Solarize", 256),
        ("SolarizeAdd", 0),
        ("TranslateXRel", 0.0),
        ("TranslateYRel", 0.0),
        ("Rotate", 0.0),
        ("ShearX", 0.0),
        ("ColorIncreasing", 1.0),
        ("SharpnessIncreasing", 1.0),
    ],
)
def test_identities(image, op, argument):
    np.testing.assert_array_equal(policies.apply(op, image, argument), image)


def test_geometric_operations_move_and_fill(image):
    """Moved by a quarter of 24 columns and by half of 26 rows: whole pixels, to the left and downwards."""
    right = policies.apply("TranslateXRel", image, 0.25, fill=(1, 2, 3))
    np.testing.assert_array_equal(right[:, :18], image[:, 6:])
    assert (right[:, 18:] == (1, 2, 3)).all()
    np.testing.assert_array_equal(policies.apply("TranslateYRel", image, -0.5)[13:], image[:13])


def test_uniforms_are_the_documented_stream_and_not_that_of_the_order():
    words = np.random.Philox(key=[7, 2], counter=[0, 0, 41, 4]).random_raw(6)
    assert policies.uniforms((7, 2, 41, 3), 6) == [int(w) // 2**11 / 2**53 for w in words]
    first = policies.uniforms((7, 2, 0, 0), 50)
    for other in ((8, 2, 0, 0), (7, 3, 0, 0), (7, 2, 1, 0), (7, 2, 0, 1), (2, 7, 0, 0)):
        assert not set(first) & set(policies.uniforms(other, 50))
    order = np.random.Philox(key=[7, 2]).random_raw(50)  # what `sampler.order(7, 2, 50)` sorts
    assert not set(first) & {int(w) // 2**11 / 2**53 for w in order}
    assert sampler.order(7, 2, 50)[0] == order.argmin()


def arguments_of(op, augment, n):
    """The absolute arguments that an operation gets in n views."""
    drawn = [policies.draw((0, 0, i, 0), augment) for i in range(n)]
    return {abs(step.argument) for steps in drawn for step in steps if step.op == op}


def test_randaugment_draws_as_timm_does():
    n = 6000
    augment = a_config("randaugment").augment
    drawn = [policies.draw((0, 0, i, 0), augment) for i in range(n)]
    counts = np.bincount([len(steps) for steps in drawn], minlength=3)
    # Two draws, each applied with probability 1/2.
    np.testing.assert_allclose(counts / n, [0.25, 0.5, 0.25], atol=0.03)
    steps = [step for view in drawn for step in view]
    for op in policies.RANDAUGMENT["randaugment"]:
        assert abs(sum(step.op == op for step in steps) / len(steps) - 1 / 15) < 0.015
    twice = [a.op == b.op for a, b in (view for view in drawn if len(view) == 2)]
    assert abs(np.mean(twice) - 1 / 15) < 0.03  # with replacement
    degrees = np.array([step.argument for step in steps if step.op == "Rotate"])
    assert abs((degrees < 0).mean() - 0.5) < 0.12  # a fair coin
    magnitude = np.abs(degrees) / 3
    assert abs(magnitude.mean() - 9.0) < 0.1 and abs(magnitude.std() - 0.5) < 0.1 and magnitude.max() <= 10.0

    augment.update(policy_magnitude=10.0, policy_std=0.0, policy_ops=40)
    strongest = policies.draw((0, 0, 0, 0), augment)
    assert 8 < len(strongest) < 32
    assert all(step.argument in (30.0, -30.0) for step in strongest if step.op == "Rotate")
    augment.policy_std = 100.0
    assert arguments_of("ShearX", augment, n=60) >= {0.0, 0.3}


def test_normal_by_hand():
    assert policies.normal(0.0, 0.3, 4.0, 1.0) == 4.0
    assert policies.normal(1 - np.exp(-2.0), 0.0, 4.0, 1.5) == pytest.approx(7.0)  # two standard deviations
    assert policies.normal(1 - np.exp(-2.0), 0.5, 4.0, 1.5) == pytest.approx(1.0)
    assert (policies.normal(0.99, 0.0, 9.0, 5.0), policies.normal(0.99, 0.5, 1.0, 5.0)) == (10.0, 0.0)


@pytest.mark.parametrize("name", ["autoaugment_original", "autoaugment_v0"])
def test_autoaugment_draws_one_pair_with_its_probabilities(name):
    n = 8000
    augment = a_config(name).augment
    drawn = [tuple(step.op for step in policies.draw((1, 0, i, 0), augment)) for i in range(n)]
    expected = {}
    for (first, p, _), (second, q, _) in policies.AUTOAUGMENT[name]:
        for ops, share in (
            ((first, second), p * q),
            ((first,), p * (1 - q)),
            ((second,), (1 - p) * q),
            ((), (1 - p) * (1 - q)),
        ):
            expected[ops] = expected.get(ops, 0.0) + share / 25
    found = {ops: drawn.count(ops) / n for ops in set(drawn)}
    assert set(found) <= {ops for ops, share in expected.items() if share > 0}
    for ops, share in expected.items():
        assert abs(found.get(ops, 0.0) - share) < 5 * np.sqrt(share / n) + 1e-3, ops


def test_autoaugment_takes_its_magnitudes_from_the_table_alone():
    augment = a_config("autoaugment_original", policy_magnitude=1.0, policy_std=3.0, policy_ops=7).augment
    assert sorted(arguments_of("Rotate", augment, n=800)) == pytest.approx([9.0, 24.0, 27.0])


def test_policy_applies_the_drawn_operations_in_turn(image):
    augment = a_config("randaugment", mean=(0.5, 0.25, 1.0)).augment
    assert policies.fill(augment.mean) == (128, 64, 255)
    assert policies.fill((0.0, 0.0, 0.0)) == policies.fill((0.485, 0.456, 0.406)) == (124, 116, 104)
    changed = 0
    for i in range(40):
        expected = image
        for op, argument in policies.draw((3, 1, i, 2), augment):
            expected = policies.apply(op, expected, argument, fill=(128, 64, 255))
        found = policies.policy(image, (3, 1, i, 2), augment)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)
        changed += (found != image).any()
    assert changed > 20
    augment.policy = "none"
    assert policies.policy(image, (3, 1, 0, 2), augment) is image


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(augment=dict(policy="randaug")),
            "'randaug' is unknown. Use 'none', 'randaugment', 'randaugment_plain', ",
        ),
        (dict(data=dict(crop_on="device")), "data.crop_on='device'.*set data.crop_on='host'"),
        (dict(data=dict(channels=1)), "data.channels=1.*three channels"),
        (
            dict(augment=dict(jitter_probability=0.8)),
            "jitter_probability=0.8 do not go together: RandAugment and AutoAugment replace the colour jitter"
            ".*jitter_probability=0.0",
        ),
    ],
    ids=["unknown", "device", "grey", "jitter"],
)
def test_impossible_policies_are_refused(change, message):
    config = a_config("randaugment")
    policies.check(config)
    for section, values in change.items():
        config[section].update(values)
    with pytest.raises(ValueError, match=message):
        policies.check(config)


def test_no_policy_is_accepted():
    policies.check(get_config("digits"))
