"""NT-Xent against the released code (TensorFlow autodiff) and against numbers calculated by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.losses.contrastive import contrast_accuracy, nt_xent, nt_xent_with_memory

# Case 4 of the file switches the released function's normalisation off; ours always normalises.
NORMALISED = range(4)
Z1 = np.float32([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [3.0, 0.0, 1.0]])
Z2 = np.float32([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, -2.0, 1.0]])


loss_of = jax.jit(nt_xent)
with_memory = jax.jit(nt_xent_with_memory)


@jax.jit
def released(z1, z2, temperature):
    """The released loss: the sum of the means of the two directions."""
    return 2.0 * nt_xent(z1, z2, temperature=temperature).mean()


@pytest.mark.slow
@pytest.mark.parametrize("case", NORMALISED)
def test_loss_gradient_and_accuracy_equal_the_released_code(golden, case):
    g = golden("nt_xent").under(f"c{case}")
    n = len(g["hidden"]) // 2
    temperature = float(g["temperature"])
    hidden = g["hidden"]
    loss, grad = jax.jit(jax.value_and_grad(lambda z: released(z[:n], z[n:], temperature)))(hidden)
    np.testing.assert_allclose(loss, g["loss"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grad, g["grad_hidden"], rtol=1e-4, atol=1e-6)
    accuracy = jax.jit(contrast_accuracy)(hidden[:n], hidden[n:]).mean()
    np.testing.assert_allclose(accuracy, g["contrast_acc"], atol=1e-6)
    if "lightly_loss" in g:
        np.testing.assert_allclose(loss / 2, g["lightly_loss"], rtol=1e-5)


def test_four_replicas_of_the_released_code_are_one_global_batch(golden):
    g = golden("nt_xent").under("multi")
    replicas, twice, d = g["hidden"].shape
    z = g["hidden"].reshape(replicas, 2, twice // 2, d).transpose(1, 0, 2, 3).reshape(2, -1, d)
    rows = loss_of(*z, temperature=float(g["temperature"]))
    per_replica = 2 * rows.reshape(2, replicas, -1).mean(axis=(0, 2))
    np.testing.assert_allclose(per_replica, g["loss_per_replica"], rtol=1e-5)
    np.testing.assert_allclose(2 * rows.mean(), g["loss_mean"], rtol=1e-5)


@pytest.mark.parametrize("temperature, a, b", [(0.5, 1.7619573, 1.4794904), (0.1, 4.3742816, 3.0696393)])
def test_values_by_hand(temperature, a, b):
    rows = loss_of(Z1, Z2, temperature=temperature)
    np.testing.assert_allclose([rows[:3].mean(), rows[3:].mean()], [a, b], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 4096])
def test_equal_embeddings_cost_log_of_the_number_of_candidates(n):
    z = np.ones((n, 2), np.float32)
    np.testing.assert_allclose(loss_of(z, z, temperature=0.1), np.full(2 * n, np.log(2 * n - 1)), rtol=1e-6)


@pytest.mark.slow
def test_gradient_is_tangent_to_the_sphere_and_reaches_both_views():
    g1, g2 = jax.jit(jax.grad(released, argnums=(0, 1)))(Z1, Z2, 0.5)
    np.testing.assert_allclose([(g1 * Z1).sum(1), (g2 * Z2).sum(1)], np.zeros((2, 3)), atol=1e-6)
    assert np.abs(g1).min(axis=1).max() > 1e-3 and np.abs(g2).min(axis=1).max() > 1e-3


def test_pairing_matters_but_order_scale_and_rotation_do_not():
    base = released(Z1, Z2, 0.5)
    order = np.array([2, 0, 1])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0].astype(np.float32)
    scale = np.float32([[3.0], [0.1], [7.0]])
    for other in [
        released(Z1[order], Z2[order], 0.5),
        released(Z2, Z1, 0.5),
        released(Z1 @ rotation, Z2 @ rotation, 0.5),
        released(Z1 * scale.repeat(3, 1), Z2, 0.5),
    ]:
        np.testing.assert_allclose(other, base, rtol=2e-6)
    assert abs(released(Z1[order], Z2, 0.5) - base) > 0.1


def test_bfloat16_embeddings_are_compared_in_float32():
    z1 = Z1.astype(jnp.bfloat16)  # these values are exact in bfloat16
    z2 = Z2.astype(jnp.bfloat16)
    rows = loss_of(z1, z2, temperature=0.1)
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(rows, loss_of(Z1, Z2, temperature=0.1), rtol=1e-6)


def test_views_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 3\) and \(2, 3\)"):
        nt_xent(Z1, Z2[:2], temperature=0.5)


# ------------------------------------------------------------------------------------- SimCLRv2's memory


def by_definition(q1, q2, k1, k2, queue, temperature):
    """The rows of SimCLRv2's loss with a memory, term by term in float64."""
    q1, q2, k1, k2, queue = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (q1, q2, k1, k2, queue))
    rows = []
    for q, same, other in ((q1, k1, k2), (q2, k2, k1)):
        for i, query in enumerate(q):
            candidates = [*other, *np.delete(same, i, axis=0), *queue]
            terms = [np.exp(query @ candidate / temperature) for candidate in candidates]
            rows.append(-np.log(terms[i] / sum(terms)))
    return np.array(rows)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_memory_adds_its_rows_and_the_keys_of_both_views_to_the_candidates(temperature):
    rng = np.random.default_rng(3)
    views = [rng.normal(size=(5, 7)) for _ in range(4)]
    queue = rng.normal(size=(6, 7))
    found = with_memory(*(z.astype(np.float32) for z in (*views, queue)), temperature=temperature)
    np.testing.assert_allclose(found, by_definition(*views, queue, temperature), rtol=1e-5)


@pytest.mark.slow
def test_memory_of_no_rows_with_the_network_as_its_own_average_is_nt_xent(golden):
    """Loss and gradient, on the released code's data, where nothing stops the gradient to the keys."""
    g = golden("nt_xent").under("c0")
    n = len(g["hidden"]) // 2
    empty = jnp.zeros((0, g["hidden"].shape[1]), jnp.float32)

    def loss(z):
        rows = nt_xent_with_memory(z[:n], z[n:], z[:n], z[n:], empty, temperature=float(g["temperature"]))
        return 2.0 * rows.mean()

    value, grad = jax.jit(jax.value_and_grad(loss))(g["hidden"])
    np.testing.assert_allclose(value, g["loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, g["grad_hidden"], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_memory_of_equal_embeddings_costs_log_of_all_candidates():
    z = np.ones((4, 3), np.float32)
    queue = 2 * np.ones((8, 3), np.float32)
    np.testing.assert_allclose(
        with_memory(z, z, z, z, queue, temperature=0.1), np.full(8, np.log(15)), rtol=1e-6
    )


def test_memory_of_another_width_is_refused():
    z = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"queue \[K, D\], got .*\(8, 2\)"):
        nt_xent_with_memory(z, z, z, z, jnp.ones((8, 2)), temperature=0.1)
