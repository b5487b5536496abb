"""BEiT's optimizer against its released code: schedules, rates per layer, weight decay, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from ssljax import layerwise
from ssljax.convert import beit as names_of
from ssljax.convert import weights
from ssljax.models.beit_vit import BeitViT
from ssljax.optim import make_optimizer


@pytest.mark.parametrize("case", ["beit0", "beit1", "beit2"])
def test_the_released_schedule(golden, case):
    """The warm-up ends with the peak, the cosine begins with it, and nothing reaches the end."""
    g = golden("schedules").under(case)
    total = int(g["epochs"]) * int(g["niter_per_ep"])
    schedule = layerwise.cosine(
        float(g["base_value"]),
        warmup_steps=int(g["warmup_steps"])
        if int(g["warmup_steps"]) > 0
        else int(g["warmup_epochs"]) * int(g["niter_per_ep"]),
        total_steps=total,
        start=float(g["start_warmup_value"]),
        end=float(g["final_value"]),
        share=1.0,
    )
    assert total == len(g["schedule"])
    found = jax.vmap(schedule)(jnp.arange(total))
    np.testing.assert_allclose(found, g["schedule"], rtol=1e-5, atol=1e-9)
    assert float(schedule(jnp.int32(total + 5))) == pytest.approx(float(g["final_value"]))


def test_a_cosine_that_ends_early_then_stays():
    """The dVAE's: 1e-4 to 1.25e-6 within two fifths of the run."""
    schedule = layerwise.cosine(1e-4, warmup_steps=0, total_steps=1000, start=0.0, end=1.25e-6, share=0.4)
    middle = (1e-4 + 1.25e-6) / 2
    values = [float(schedule(jnp.int32(step))) for step in (0, 200, 400, 900)]
    np.testing.assert_allclose(values, [1e-4, middle, 1.25e-6, 1.25e-6], rtol=1e-4)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="lower optim.warmup_epochs"):
        layerwise.cosine(1.0, warmup_steps=30, total_steps=20, start=0.0, end=0.0, share=1.0)


def paths(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.slow
@pytest.mark.parametrize("case, relative", [("beit_b_finetune", "blocks"), ("beit_b_shared_rel", "shared")])
def test_rates_and_decay_of_every_parameter(golden, case, relative):
    """Their parameters one by one, by their names."""
    g = golden("schedules").under(f"layer_decay/{case}")
    theirs = {str(name): i for i, name in enumerate(g["names"])}
    net = BeitViT(
        8,
        int(g["num_layers"]),
        2,
        2,
        absolute="pos_embed" in theirs,
        relative=relative,
        layer_scale=0.1 if "blocks.0.gamma_1" in theirs else 0.0,
        pooling="mean_then_norm",
    )
    image = jnp.zeros((1, 4, 4, 3), jnp.float32)
    encoder = jax.eval_shape(lambda key: net.init(key, image, train=False), jax.random.key(0))["params"]
    head = {"dense": {"kernel": jnp.zeros((8, 2)), "bias": jnp.zeros(2)}}
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), {"encoder": encoder, "head": head})
    scales = paths(layerwise.scales(params, float(g["layer_decay"])))
    decays = paths(layerwise.decayed(params))

    places = weights.places({"params": params}, names_of.family(net, 2, 2, "head"))
    assert sorted(place.theirs for place in places) == sorted(theirs)
    for place in places:
        ours = place.ours.removeprefix("params/")
        scale = np.broadcast_to(scales[ours], paths(params)[ours].shape)
        scale = scale if place.row < 0 else scale[place.row]
        np.testing.assert_allclose(scale, g["lr_scale"][theirs[place.theirs]], rtol=1e-5, err_msg=ours)
        assert decays[ours] == bool(g["weight_decay"][theirs[place.theirs]]), ours


def test_the_fourteen_rates_of_b():
    tree = {"encoder": {"patch": {"kernel": jnp.zeros((2, 2))}, "fc_norm": {"scale": jnp.zeros(2)}}}
    for i in range(12):
        tree["encoder"][f"block{i}"] = {"fc1": {"bias": jnp.zeros(2)}}
    found = sorted(float(leaf) for leaf in jax.tree.leaves(layerwise.scales(tree, 0.65)))
    expected = [0.003697, 0.005688, 0.008751, 0.013463, 0.020712, 0.031864, 0.049022]
    expected += [0.075419, 0.116029, 0.178506, 0.274625, 0.4225, 0.65, 1.0]
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@pytest.mark.slow
def test_the_rate_scales_the_weight_decay_too():
    """Two steps by hand: w - lr d^k (m / (sqrt(v) + eps) + wd w), after clipping to a norm of 1."""
    optim = ConfigDict(
        dict(name="beit_adamw", learning_rate=0.1, scaling="none", weight_decay=0.5, warmup_epochs=0)
        | dict(start=0.0, end=0.1, b2=0.999, clip=1.0, layer_decay=0.5, cosine_share=1.0)
    )
    tx, _ = make_optimizer(optim, batch_size=8, steps_per_epoch=10.0, total_steps=11)
    params = {
        "encoder": {
            "patch": {"kernel": jnp.full((2, 2), 2.0)},
            "block0": {"fc1": {"kernel": jnp.ones((1, 1))}},
        },
        "head": {"dense": {"bias": jnp.ones(1)}},
    }
    grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3.0), params)
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(grads, state, params)
    # The first update of Adam is 1 for every positive gradient.
    np.testing.assert_allclose(updates["encoder"]["patch"]["kernel"], -0.1 * 0.25 * (1 + 0.5 * 2), rtol=1e-4)
    np.testing.assert_allclose(updates["encoder"]["block0"]["fc1"]["kernel"], -0.1 * 0.5 * 1.5, rtol=1e-4)
    np.testing.assert_allclose(updates["head"]["dense"]["bias"], -0.1, rtol=1e-4)
    assert optax.tree.norm(grads) > 1
