"""CMC's losses and memory banks: the released code, the fact sheet's limits, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.contrastive import bank_info_nce, nce, nce_z
from ssljax.losses.information import info_nce_bound
from ssljax.targets import bank

CASES = (0, 1, 2)
gather = jax.jit(bank.gather)
scatter = jax.jit(bank.scatter)


def project(grad, v):
    """The gradient of a function of v / |v| at a v of unit length."""
    return grad - (grad * v).sum(1, keepdims=True) * v


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_gradients_constants_and_banks_of_the_released_code(golden, case):
    """Every step of a run: both directions, and the banks after it."""
    g = golden("cmc").under(f"c{case}")
    softmax, n, _, temperature, momentum = (float(x) for x in g["settings"])
    banks = g["memory_init"]  # of l and ab
    kind = dict(temperature=temperature, n_data=int(n))

    @jax.jit
    def constant(v, rows):
        return nce_z(v, rows[:, 0], rows[:, 1:], **kind)

    @jax.jit
    @jax.value_and_grad
    def scored(v, rows, z):
        drawn = (v, rows[:, 0], rows[:, 1:])
        found = bank_info_nce(*drawn, temperature=temperature) if softmax else nce(*drawn, **kind, z=z)
        return found.mean()

    z = {}
    for step, v in enumerate(g["v"]):
        idx = g["idx"][step].astype(np.int32)
        for view in (0, 1):
            rows = gather(banks[1 - view], idx)
            if not softmax:
                if step == 0:
                    z[view] = constant(v[view], rows)
                np.testing.assert_allclose(z[view], g["z"][step, view], rtol=1e-5)
            value, grad = scored(v[view], rows, z.get(view))
            np.testing.assert_allclose(value, g["loss"][step, view], rtol=1e-5)
            expected = project(g["grad"][step, view], g["v"][step, view])
            np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=2e-5)
        # The banks move after both directions were scored.
        banks = [scatter(banks[i], idx[:, 0], v[i], momentum) for i in (0, 1)]
        np.testing.assert_allclose(banks, g["memory_after"][step], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("m, expected, softmax", [(4096, 10.11, 9.12), (16384, 11.50, 10.51)])
def test_loss_at_the_start_of_training_on_imagenet(m, expected, softmax):
    """Random features against a fresh bank: positive 10.50 and negatives 1.00 at m = 16384.

    The released epsilon adds n * 1e-7 = 0.13 to the negatives, whatever m is.
    """
    n = 1_281_167
    expected += n * 1e-7
    b = 24

    @jax.jit
    def found():
        rows = bank.init(jax.random.key(0), b * (m + 1), 128).reshape(b, m + 1, 128)
        v = jax.random.normal(jax.random.key(1), (b, 128))
        z = nce_z(v, rows[:, 0], rows[:, 1:], temperature=0.07, n_data=n)
        drawn = [(v, positive, rows[:, 1:]) for positive in (rows[:, 0], jnp.zeros((b, 128)))]
        nces = [nce(*d, temperature=0.07, n_data=n, z=z).mean() for d in drawn]
        return z, nces, [bank_info_nce(*d, temperature=0.07).mean() for d in drawn]

    z, nces, soft = found()
    np.testing.assert_allclose(z, 2.84e6, rtol=0.01)
    np.testing.assert_allclose(nces[0], expected, atol=0.8)  # positives vary by 1.6 / sqrt(b)
    np.testing.assert_allclose(soft[0], softmax, atol=0.8)
    # Without the positives' share: the loss of a positive with score 0.
    np.testing.assert_allclose(nces[1], expected, atol=0.01)
    np.testing.assert_allclose(soft[1], softmax, atol=0.02)


def test_small_probabilities_keep_their_digits():
    """A P_k of 1e-9 among a noise of 1e-2 is lost in float32 if the two are added."""
    v = np.float32([[1.0, 0.0]])
    negatives = np.tile(np.float32([[[-1.0, 0.0]]]), (1, 10_000, 1))
    found = jax.jit(lambda *a: nce(*a, temperature=0.1, n_data=1_000_000, z=1e6))(v, v, negatives)
    p = np.exp(np.float64([10, -10])) / 1e6
    expected = np.log1p((0.01 + 1e-7) / p[0]) + 10_000 * np.log1p((p[1] + 1e-7) / 0.01)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.slow
def test_only_the_anchor_is_normalised_and_gets_a_gradient():
    v, positives = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    negatives = np.random.default_rng(1).normal(size=(4, 3, 6)).astype(np.float32)
    for loss in map(
        jax.jit,
        (
            lambda *a: nce(*a, temperature=0.5, n_data=30, z=40.0),
            lambda *a: bank_info_nce(*a, temperature=0.5),
        ),
    ):
        rows = loss(v, positives, negatives)
        assert rows.shape == (4,)
        np.testing.assert_allclose(loss(3 * v, positives, negatives), rows, rtol=1e-5)
        assert np.abs(loss(v, 2 * positives, negatives) - rows).max() > 0.1
        grad = jax.jit(jax.grad(lambda *a, loss=loss: loss(*a).sum(), argnums=(0, 1, 2)))
        own, *others = grad(v, positives, negatives)
        assert np.any(own) and not any(np.any(leaf) for leaf in others)
        shared = np.broadcast_to(negatives[:1], negatives.shape)
        np.testing.assert_allclose(loss(v, positives, negatives[0]), loss(v, positives, shared), rtol=1e-5)
    z = lambda v: nce_z(v, positives, negatives, temperature=0.5, n_data=30)
    value, grad = jax.jit(jax.value_and_grad(z))(v)
    assert not np.any(grad)
    rows = np.concatenate([positives[:, None], negatives], 1)
    scores = np.einsum("bd,bmd->bm", v / np.linalg.norm(v, axis=1, keepdims=True), rows)
    np.testing.assert_allclose(value, 30 * np.exp(scores / 0.5).mean(), rtol=1e-5)


def test_shapes_that_do_not_fit_are_refused():
    v = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 3\) and \(3, 5, 3\)"):
        bank_info_nce(v, v, jnp.ones((3, 5, 3)), temperature=1.0)


def test_one_update_of_a_bank_by_hand():
    rows = np.float32([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    found = scatter(rows, np.int32([0]), np.float32([[0.0, 1.0]]), 0.5)
    np.testing.assert_allclose(found, [[0.70710677, 0.70710677], [0, 2], [5, 5]], rtol=1e-6)
    np.testing.assert_array_equal(found[1:], rows[1:])
    np.testing.assert_array_equal(gather(rows, np.int32([[2, 0]])), [[[5, 5], [1, 0]]])


def test_of_two_updates_of_a_row_the_later_counts_and_no_row_is_beyond_the_end():
    rows = np.float32([[1.0, 0.0], [0.0, 1.0]])
    new = np.float32([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    for index in ([0, 0, 2], [0, 0, 7]):
        found = scatter(rows, np.int32(index), new, 0.5)
        np.testing.assert_allclose(found, [[0.70710677, -0.70710677], [0, 1]], rtol=1e-6)


def test_a_fresh_bank_has_rows_of_length_one_on_average():
    rows = np.asarray(bank.init(jax.random.key(0), 4000, 128))
    np.testing.assert_allclose((rows**2).sum(1).mean(), 1.0, rtol=0.01)
    np.testing.assert_allclose(np.abs(rows).max(), (3 / 128) ** 0.5, rtol=1e-3)


def test_the_bound_is_log_of_the_negatives_less_the_loss():
    found = info_nce_bound(jnp.float32([0.0, 2.0]), 1024)
    np.testing.assert_allclose(found, [6.9314718, 4.9314718], rtol=1e-6)
