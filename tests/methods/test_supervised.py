"""The supervised baseline: its presets, and what no other method's test covers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import deit
from configs.supervised import PRESETS, VITS, get_config
from ssljax import models
from ssljax.methods.supervised import supervised
from ssljax.models import ViT
from tests.methods.small import FACTS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_its_network_with_a_silent_head(preset):
    c = get_config(preset)
    method = supervised(c, FACTS)
    params, _, extra = jax.eval_shape(method.init, jax.random.key(0), {})
    assert set(params) == {"encoder", "head"} and extra == () and method.separable
    assert {leaf.shape[-1] for leaf in jax.tree.leaves(params["head"])} == {FACTS.num_classes}
    assert c.augment.flip is not preset.startswith("digits")
    assert c.augment.policy == "none" and c.augment.jitter_probability == 0.0


def test_the_vits_are_deits_without_the_recipe():
    for preset, theirs in VITS.items():
        c = get_config(preset)
        d = deit.get_config(theirs)
        d = d.student if "stages" in d else d
        ours = models.backbone(c.model)
        net = models.backbone(d.model)
        assert isinstance(ours, ViT) and ours == net.clone(distillation=False, drop_path=0.0)
        assert c.optim == d.optim and c.data.repeats == 1 and c.augment.erasing_probability == 0.0
    labels = [get_config(f"imagenet_vit_s{part}").data.label_fraction for part in ("", "_1pct", "_10pct")]
    assert labels == [1.0, 0.01, 0.1]


def test_a_step_may_draw_stochastic_depth():
    batch = {"image": jnp.full((8, 16, 16, 1), 99, jnp.uint8), "label": jnp.arange(8), "index": jnp.arange(8)}
    found = {}
    for rate in (0.0, 0.5):
        c = get_config("digits_vit").unlock()
        c.model.drop_path = rate
        method = supervised(c.lock(), FACTS)
        params, state, extra = jax.jit(method.init)(jax.random.key(0), {})
        # A random head: behind one that starts from zero, no draw would show.
        draw = lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape)
        params["head"] = jax.tree.map(draw, params["head"])
        loss, _ = jax.jit(method.loss)(params, state, extra, batch, jax.random.key(2), 0)
        found[rate] = float(loss)
        assert method.separable is (rate == 0)  # each micro-batch would have its own draw
    assert np.isfinite(list(found.values())).all() and abs(found[0.0] - found[0.5]) > 1e-3
