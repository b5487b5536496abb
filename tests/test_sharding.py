"""Meshes, the sharding rule for every leaf, and activations that stay sharded along the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssljax import sharding
from ssljax.models.placement import along_batch


def test_an_fsdp_that_does_not_divide_the_devices_lists_those_that_do():
    assert sharding.make_mesh(8, fsdp=2).shape == {"data": 4, "fsdp": 2}
    with pytest.raises(ValueError, match="sharding.fsdp=3 does not divide 8 devices: use one of 1, 2, 4, 8"):
        sharding.make_mesh(8, fsdp=3)


def test_every_leaf_has_its_place():
    mesh = sharding.make_mesh(8, fsdp=2)
    shape = jax.ShapeDtypeStruct
    state = {
        "longest": shape((3, 3, 64, 128), jnp.float32),
        "first_is_longest": shape((512, 64), jnp.float32),
        "last_of_equals": shape((256, 256), jnp.float32),
        "odd_longest": shape((257, 128), jnp.float32),
        "small": shape((64, 64), jnp.float32),
        "nothing_divides": shape((255, 255), jnp.float32),
        "extra": {"queue": shape((64, 8), jnp.float32), "pointer": shape((), jnp.int32)},
    }
    placed = jax.tree.map(lambda place: place.spec, sharding.state_sharding(mesh, state, ("queue",)))
    assert placed == {
        "longest": P(None, None, None, "fsdp"),
        "first_is_longest": P("fsdp", None),
        "last_of_equals": P(None, "fsdp"),
        "odd_longest": P(None, "fsdp"),
        "small": P(),
        "nothing_divides": P(),
        "extra": {"queue": P(("data", "fsdp")), "pointer": P()},
    }
    alone = sharding.state_sharding(sharding.make_mesh(8), state, ("queue",))
    assert alone["longest"].spec == P() and alone["extra"]["queue"].spec == P(("data", "fsdp"))


def test_activations_keep_their_rows_under_a_mesh():
    """With kernels sharded over fsdp the compiler would split channels: the output's sharding shows it."""
    mesh = sharding.make_mesh(8, fsdp=2)
    x = jax.device_put(np.ones((16, 32), np.float32), sharding.batch_sharding(mesh))
    w = jax.device_put(np.ones((32, 64), np.float32), jax.sharding.NamedSharding(mesh, P(None, "fsdp")))
    y = jax.jit(sharding.on_mesh(mesh, lambda x, w: along_batch(x @ w)))(x, w)
    assert y.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 2)
    np.testing.assert_array_equal(along_batch(x), x)  # no mesh, no change


def test_a_batch_must_divide_into_devices_and_micro_batches():
    mesh = sharding.make_mesh(8)
    sharding.check_batch(mesh, 32, accumulate=2)
    message = r"batch_size=24 does not split over 8 devices in 2 micro-batches \(accumulate=2\): use 16 or 32"
    with pytest.raises(ValueError, match=message):
        sharding.check_batch(mesh, 24, accumulate=2)
