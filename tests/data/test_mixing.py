"""Mixup and CutMix match timm's batches; erasing and all draws have the documented distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.data import mixing


def close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def g(golden):
    return golden("deit_distillation")


@pytest.fixture
def batch():
    """Six images of 8 x 10 whose pixels hold the row's number, and one-hot targets.

    So a result shows which rows it was mixed from.
    """
    images = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None, None], (6, 8, 10, 3))
    return jnp.asarray(images), jnp.eye(6, dtype=jnp.float32)


@pytest.mark.parametrize("case", ["mix0", "mix1", "mix2", "mix5"])
def test_mixed_images_and_targets_are_timms(g, case):
    """Mode "batch", and mode "pair" in which both pairs drew the same lambda."""
    x = np.moveaxis(g[f"{case}/x"], 1, 3)
    classes = int(g[f"{case}/num_classes"])
    smoothing = float(g[f"{case}/smoothing"])
    y = mixing.smoothed_one_hot(jnp.asarray(g[f"{case}/labels"], jnp.int32), classes, smoothing)
    if g[f"{case}/is_cutmix"]:
        y0, y1, x0, x1 = g[f"{case}/bbox_yl_yh_xl_xh"][0].tolist()
        images, targets = mixing.cutmix(x, y, (y0, y1, x0, x1))
        assert 1 - (y1 - y0) * (x1 - x0) / 80 == g[f"{case}/lam_corrected"][0]
    else:
        images, targets = mixing.mixup(x, y, float(np.ravel(g[f"{case}/lam_requested"])[0]))
    close(images, np.moveaxis(g[f"{case}/x_mixed"], 1, 3))
    close(targets, g[f"{case}/targets"])


def test_smoothing_by_hand():
    y = mixing.smoothed_one_hot(jnp.int32([3, 999]), 1000, 0.1)
    close(y.sum(1), 1.0)
    close(y.max(1), 0.9001)
    close(y.min(1), 0.0001)
    assert y.argmax(1).tolist() == [3, 999]
    np.testing.assert_array_equal(mixing.smoothed_one_hot(jnp.int32([1]), 3, 0.0), [[0, 1, 0]])


def test_partners_are_the_batch_in_reverse(batch):
    """Values by hand. Pasting the same box a second time restores the images."""
    images, targets = batch
    mixed, y = mixing.mixup(images, targets, 0.75)
    close(mixed[:, 0, 0, 0], [1.25, 1.75, 2.25, 2.75, 3.25, 3.75])
    close(y[0], [0.75, 0, 0, 0, 0, 0.25])
    for same, target in (mixing.mixup(images, targets, 1.0), mixing.cutmix(images, targets, (3, 3, 0, 10))):
        np.testing.assert_array_equal(same, images)
        np.testing.assert_array_equal(target, targets)
    box = (2, 6, 5, 10)
    pasted, y = mixing.cutmix(images, targets, box)
    assert (pasted[1, 2:6, 5:] == 4).all() and (np.asarray(pasted[1]) == 4).sum() == 4 * 5 * 3
    close(y[1], [0, 0.75, 0, 0, 0.25, 0])
    np.testing.assert_array_equal(mixing.cutmix(pasted, targets, box)[0], images)


def test_boxes_are_timms():
    """Sides are int(H sqrt(1 - lambda)) halved and doubled. The centre is uniform, the box is clipped."""
    lam = jnp.float32(0.7)
    n = 4000
    draw = jax.jit(jax.vmap(lambda k: mixing.cutmix_box(k, lam, 16, 20)))
    boxes = np.asarray(draw(jax.random.split(jax.random.key(0), n)))
    y0, y1, x0, x1 = boxes.T
    assert boxes.dtype == np.int32
    assert (y0 >= 0).all() and (y1 <= 16).all()
    assert (x0 >= 0).all() and (x1 <= 20).all()
    assert (y1 - y0).max() == 8 and (x1 - x0).max() == 10  # 16 sqrt(.3) = 8.76, 20 sqrt(.3) = 10.95
    assert (y1 - y0).min() == 4 and (x1 - x0).min() == 5  # a centre on the first row or column
    centre = np.where(y0 == 0, y1 - 4, y0 + 4)
    np.testing.assert_allclose(np.bincount(centre, minlength=16) / n, 1 / 16, atol=0.02)
    assert (mixing.cutmix_box(jax.random.key(1), jnp.float32(0.0), 16, 20) >= 0).all()


@pytest.fixture(scope="module")
def mixes():
    """`mix` of six rows with many keys: the pixels of row 0 (0 = its own, 5 = its partner's), all targets."""

    def run(mixup_alpha, cutmix_alpha, n=2000):
        images = jnp.broadcast_to(jnp.arange(6, dtype=jnp.float32)[:, None, None, None], (6, 8, 10, 1))
        targets = jnp.eye(6, dtype=jnp.float32)

        def one(key):
            x, y = mixing.mix(images, targets, key, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha)
            return x[0, :, :, 0], y

        pixels, mixed = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n))
        return np.asarray(pixels), np.asarray(mixed)

    return run


@pytest.mark.slow
def test_mix_draws_mixup_or_cutmix_and_corrects_lambda(mixes):
    pixels, targets = mixes(0.8, 1.0)
    close(targets.sum(2), 1.0, 1e-5)
    close(targets[:, 0, 0], targets[:, 3, 3], 1e-6)  # one lambda for the batch
    lam = targets[:, 0, 0]
    close(targets[:, 0, 5], 1 - lam, 1e-6)
    pasted = ((pixels == 0) | (pixels == 5)).all((1, 2))  # CutMix: no pixel is a blend
    assert abs(pasted.mean() - 0.5) < 0.05
    # The share of the image equals lambda, also for clipped boxes.
    close((pixels == 0)[pasted].mean((1, 2)), lam[pasted])
    blended = ~pasted
    expected = np.broadcast_to(5 * (1 - lam[blended])[:, None, None], pixels[blended].shape)
    close(pixels[blended], expected, 1e-5)
    beta = np.random.default_rng(0).beta(0.8, 0.8, 20_000)
    quantiles = np.linspace(0.1, 0.9, 9)
    below = np.searchsorted(np.sort(lam[blended]), np.quantile(beta, quantiles))
    assert np.abs(below / blended.sum() - quantiles).max() < 0.06


@pytest.mark.slow
def test_mix_with_one_alpha_or_none(mixes, batch):
    pixels, targets = mixes(0.0, 1.0, n=200)
    assert ((pixels == 0) | (pixels == 5)).all() and 0.4 < targets[:, 0, 0].mean() < 0.8
    pixels, targets = mixes(0.8, 0.0, n=200)
    assert (pixels == pixels[:, :1, :1]).all() and targets[:, 0, 0].std() > 0.2
    unmixed = mixing.mix(*batch, jax.random.key(0), mixup_alpha=0.0, cutmix_alpha=0.0)
    for before, after in zip(batch, unmixed, strict=True):
        assert after is before  # only label smoothing is left then
    with pytest.raises(ValueError, match="the batch has 5 rows.*even batch_size"):
        mixing.mix(batch[0][:5], batch[1][:5], jax.random.key(0), mixup_alpha=0.8, cutmix_alpha=1.0)


@pytest.mark.slow
def test_eight_devices_mix_the_global_batch_by_exchanging_shards():
    images = jnp.asarray(np.random.default_rng(0).standard_normal((16, 6, 6, 3)), jnp.float32)
    targets = jnp.eye(16, dtype=jnp.float32)
    mesh = jax.make_mesh((8,), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    mix = jax.jit(lambda x, y, k: mixing.mix(x, y, k, mixup_alpha=0.8, cutmix_alpha=1.0))
    x = jax.device_put(images, rows)
    y = jax.device_put(targets, rows)
    on_mesh = mix.lower(x, y, jax.random.key(0)).compile()
    for key in jax.random.split(jax.random.key(0), 4):  # both branches
        for one, shards in zip(mix(images, targets, key), on_mesh(x, y, key), strict=True):
            assert shards.sharding.is_equivalent_to(rows, shards.ndim)
            close(np.asarray(shards), np.asarray(one))
    hlo = on_mesh.as_text()
    assert "collective-permute" in hlo
    assert not any(name in hlo for name in ("all-gather(", "all-to-all(", "all-reduce("))


# ------------------------------------------------------------------------------------------- random erasing


def test_erased_boxes():
    """Area uniform in 2 % .. 1/3, aspect log-uniform, both sides shorter than the image's, place uniform."""
    n = 4000
    side = 100
    draw = jax.jit(jax.vmap(lambda k: mixing.erasing_box(k, side, side)))
    boxes = draw(jax.random.split(jax.random.key(0), n))
    y0, y1, x0, x1 = np.asarray(boxes).T
    h = y1 - y0
    w = x1 - x0
    assert y0.min() == x0.min() == 0
    assert y1.max() == x1.max() == side
    assert h.min() > 0 and max(h.max(), w.max()) < side
    area = h * w / side**2
    ratio = np.log(h / w)
    assert 0.018 < area.min() < 0.025 and 0.32 < area.max() < 0.345
    quantiles = np.linspace(0.1, 0.9, 9)
    uniform = 0.02 + quantiles * (1 / 3 - 0.02)
    assert np.abs(np.searchsorted(np.sort(area), uniform) / n - quantiles).max() < 0.03
    assert abs(ratio.mean()) < 0.05 and abs(ratio.std() - 2 * np.log(1 / 0.3) / np.sqrt(12)) < 0.03
    assert np.abs(ratio).max() < np.log(1 / 0.3) + 0.1
    place = y0[h < 50] / (side - h[h < 50])
    assert abs(place.mean() - 0.5) < 0.02 and abs(place.std() - 1 / np.sqrt(12)) < 0.02


def test_a_strip_is_erased_one_row_high_or_not_at_all():
    """In two rows of 200 pixels a box can only be one row high, and sometimes all ten tries fail."""
    draw = jax.jit(jax.vmap(lambda k: mixing.erasing_box(k, 2, 200)))
    boxes = np.asarray(draw(jax.random.split(jax.random.key(0), 200)))
    empty = (boxes == 0).all(1)
    assert empty.any() and ((boxes[:, 1] - boxes[:, 0])[~empty] == 1).all()


@pytest.mark.slow
def test_erasing_is_noise_of_unit_deviation_in_the_box_alone():
    image = jnp.full((32, 32, 3), 7.0, jnp.float32)
    many = jax.jit(jax.vmap(lambda k: mixing.random_erasing(image, k, probability=0.25)))
    erased = np.asarray(many(jax.random.split(jax.random.key(0), 800)))
    changed = (erased != 7.0).any(-1)
    hit = changed.any((1, 2))
    assert abs(hit.mean() - 0.25) < 0.05
    noise = erased[changed]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1.0) < 0.01
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.01  # every channel has its own noise
    first = changed[hit][0]
    one = erased[hit][0][first]
    assert len(np.unique(one)) > 0.99 * one.size  # and every pixel
    rows, columns = np.nonzero(first)
    assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == first.sum()  # a full rectangle
    np.testing.assert_array_equal(mixing.random_erasing(image, jax.random.key(0), probability=0.0), image)
