"""CMC's step put together from its parts, and what the fact sheet says about two views and more."""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.cmc import LINEAR, PRESETS, get_config
from ssljax import models
from ssljax.config import stages
from ssljax.data import views
from ssljax.methods import METHODS
from ssljax.methods.cmc import Banks
from ssljax.models import pairs_of
from ssljax.optim import by_epoch
from tests.methods.small import FACTS, batch_of, config_of, one_block, shaken

pytestmark = pytest.mark.slow

B = 6
THREE = ("luminance", "gradient", "low")
FOUR = (*THREE, "all")


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with one_block():
        yield


class Pass:
    """One loss of a preset with random parameters everywhere."""

    def __init__(self, split=THREE[:2], seed=1, z=-1.0, **changes):
        changes = {"contrast__name": "nce", "bank__negatives": 5, "loss__temperature": 0.4, **changes}
        self.config = config_of("cmc", "digits", model__split=split, **changes)
        self.method = METHODS["cmc"](self.config, FACTS)
        self.batch = batch_of(B)
        self.key = jax.random.key(3)
        params, state, extra = jax.eval_shape(lambda key: self.method.init(key, {}), jax.random.key(0))
        self.params = shaken(params, seed)
        self.state = jax.tree.map_with_path(
            lambda path, s: jnp.full(s.shape, float(path[-1].key == "var"), s.dtype), state
        )
        self.extra = extra
        if extra != ():
            rows = tuple(shaken(row, 10 + view) for view, row in enumerate(extra.rows))
            ids = jnp.arange(FACTS.num_examples, dtype=jnp.int32)
            self.extra = Banks(rows, jnp.full(extra.z.shape, z, jnp.float32), ids)

    def arguments(self, batch=None, extra=None):
        extra = self.extra if extra is None else extra
        return (self.params, self.state, extra, batch or self.batch, self.key, jnp.int32(0))

    def loss(self, batch=None, extra=None):
        return jax.jit(self.method.loss)(*self.arguments(batch, extra))

    def embeddings(self):
        """v of every view, from the parts, in float64."""

        @jax.jit
        def features(params, state, batch):
            x = views.stacked(batch, self.key, self.config)[:, 0]
            return models.forward(models.backbone(self.config.model), params, state, x)[0]

        h = features(self.params["encoder"], self.state["encoder"], self.batch)
        found = []
        split = self.config.model.split
        for view, part in zip(split, np.split(np.asarray(h), len(split), 1), strict=True):
            dense = self.params["projector"][view]
            v = np.float64(part) @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
            found.append(v / np.linalg.norm(v, axis=1, keepdims=True))
        return found

    def drawn(self):
        key = jax.random.fold_in(self.key, jnp.uint32(2**32 - 4))
        return np.asarray(jax.random.randint(key, (B, self.config.bank.negatives), 0, FACTS.num_examples))


def by_hand(one, i, j, v, n=FACTS.num_examples, z=None):
    """(NCE [B], cross entropy [B], Z) of the direction i -> j, in float64."""
    rows = np.asarray(one.extra.rows[j], np.float64)
    tau = one.config.loss.temperature
    index = np.concatenate([np.asarray(one.batch["index"])[:, None], one.drawn()], axis=1)
    s = np.einsum("bd,bkd->bk", v[i], rows[index]) / tau
    z = np.exp(s).mean() * n if z is None else z
    p = np.exp(s) / z
    m = index.shape[1] - 1
    positive = np.log(p[:, 0] / (p[:, 0] + m / n + 1e-7))
    negative = np.log((m / n) / (p[:, 1:] + m / n + 1e-7)).sum(1)
    return -(positive + negative), np.log(np.exp(s).sum(1)) - s[:, 0], z


@pytest.fixture(scope="module")
def two():
    return Pass()


def test_the_loss_is_both_directions_against_the_other_views_bank_before_this_batch(two):
    total, out = two.loss()
    v = two.embeddings()
    there, entropy, z = by_hand(two, 0, 1, v)
    back, entropy_back, z_back = by_hand(two, 1, 0, v)
    np.testing.assert_allclose(total, there.mean() + back.mean(), rtol=1e-4)
    np.testing.assert_allclose([out.carry.z[0, 1], out.carry.z[1, 0]], [z, z_back], rtol=1e-4)
    bound = np.log(5) - 0.5 * (entropy.mean() + entropy_back.mean())
    np.testing.assert_allclose(out.metrics["bound_luminance_gradient"], bound, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(out.carry.v, v, rtol=1e-3, atol=1e-5)


def test_the_positive_is_the_banks_row_so_one_direction_teaches_one_view():
    """The gradient of the direction 0 -> 1 does not reach the network of view 1."""
    one = Pass(z=50.0)
    other_bank = one.extra._replace(rows=(one.extra.rows[0], -one.extra.rows[1]))
    gradient = jax.jit(jax.grad(lambda *args: one.method.loss(*args)[0]))
    grads = [gradient(*one.arguments(extra=extra)) for extra in (one.extra, other_bank)]
    for branch in ("encoder", "projector"):
        # Only the direction 0 -> 1 depends on bank 1.
        chex.assert_trees_all_equal(*(grad[branch]["gradient"] for grad in grads))
        first, second = (jax.tree.leaves(grad[branch]["luminance"]) for grad in grads)
        assert all(np.any(a != b) for a, b in zip(first, second, strict=True))


def test_the_bank_is_updated_after_it_was_scored(two):
    """With the row of an image opposite to its embedding, the score of the positive is minus one."""
    v = jnp.asarray(np.stack(two.embeddings()), jnp.float32)
    index = two.batch["index"]
    rows = tuple(row.at[index].set(-v[1 - view]) for view, row in enumerate(two.extra.rows))
    extra = two.extra._replace(rows=rows, z=jnp.full((2, 2), 60.0))
    total, out = two.loss(extra=extra)
    hand = SimpleNamespace(config=two.config, batch=two.batch, extra=extra, drawn=two.drawn)
    expected = sum(by_hand(hand, i, j, np.float64(v), z=60.0)[0].mean() for i, j in ((0, 1), (1, 0)))
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    after = two.method.update(extra, two.params, out.carry, jnp.int32(0))
    mixed = 0.5 * np.asarray(rows[0][index]) + 0.5 * np.asarray(v[0])
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    np.testing.assert_allclose(after.rows[0][index], mixed, rtol=1e-3, atol=1e-4)
    rest = np.setdiff1d(np.arange(1500), index)
    np.testing.assert_array_equal(after.rows[0][rest], rows[0][rest])


def test_z_is_kept_from_the_first_batch_or_follows_slowly():
    kept = Pass(z=77.0)
    total, out = kept.loss()
    off = ~np.eye(2, dtype=bool)
    np.testing.assert_array_equal(out.carry.z[off], [77.0, 77.0])
    v = kept.embeddings()
    expected = sum(by_hand(kept, i, j, v, z=77.0)[0].mean() for i, j in ((0, 1), (1, 0)))
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    _, out = Pass(z=77.0, bank__z="ema").loss()
    estimates = [by_hand(kept, 0, 1, v)[2], by_hand(kept, 1, 0, v)[2]]
    np.testing.assert_allclose(out.carry.z[off], 0.99 * 77.0 + 0.01 * np.array(estimates), rtol=1e-4)


def test_softmax_and_shared_negatives(two):
    soft = Pass(contrast__name="softmax")
    v = soft.embeddings()
    entropies = [by_hand(soft, i, j, v)[1].mean() for i, j in ((0, 1), (1, 0))]
    total, out = soft.loss()
    np.testing.assert_allclose(total, sum(entropies), rtol=1e-4)
    np.testing.assert_array_equal(out.carry.z, -np.ones((2, 2)))

    shared = Pass(contrast__name="softmax", bank__draw="shared")
    key = jax.random.fold_in(shared.key, jnp.uint32(2**32 - 4))
    drawn = np.asarray(jax.random.randint(key, (5,), 0, FACTS.num_examples))
    shared.drawn = lambda: np.tile(drawn, (B, 1))
    entropies = [by_hand(shared, i, j, v)[1].mean() for i, j in ((0, 1), (1, 0))]
    np.testing.assert_allclose(shared.loss()[0], sum(entropies), rtol=1e-4)


def test_in_the_batch_both_sides_learn_and_nothing_is_remembered():
    one = Pass(contrast__name="in_batch")
    assert one.extra == () and one.method.refresh is None
    v = one.embeddings()
    s = v[0] @ v[1].T / one.config.loss.temperature
    rows = [np.log(np.exp(t).sum(1)) - np.diag(t) for t in (s, s.T)]
    total, out = one.loss()
    np.testing.assert_allclose(total, rows[0].mean() + rows[1].mean(), rtol=1e-4)
    bound = np.log(B - 1) - 0.5 * (rows[0].mean() + rows[1].mean())
    np.testing.assert_allclose(out.metrics["bound_luminance_gradient"], bound, rtol=1e-3, atol=1e-4)


def test_pairs_of_core_view_and_full_graph():
    assert pairs_of(2, "core") == pairs_of(2, "full") == [(0, 1)]
    assert pairs_of(4, "core") == [(0, 1), (0, 2), (0, 3)]
    assert len(pairs_of(4, "full")) == 6


def test_core_view_and_full_graph_sum_their_pairs():
    core = Pass(split=THREE, contrast__name="softmax")
    full = Pass(split=THREE, contrast__name="softmax", contrast__graph="full")
    v = core.embeddings()
    pair = {(i, j): by_hand(core, i, j, v)[1].mean() for i in range(3) for j in range(3) if i != j}
    np.testing.assert_allclose(core.loss()[0], pair[0, 1] + pair[1, 0] + pair[0, 2] + pair[2, 0], rtol=1e-4)
    total, out = full.loss()
    np.testing.assert_allclose(total, sum(pair.values()), rtol=1e-4)
    assert {"bound_luminance_gradient", "bound_luminance_low", "bound_gradient_low"} <= set(out.metrics)


def test_views_may_change_places():
    there = Pass(z=50.0)
    back = Pass(split=THREE[:2][::-1], z=50.0)
    back.params = there.params
    back.extra = there.extra._replace(rows=there.extra.rows[::-1])
    np.testing.assert_allclose(back.loss()[0], there.loss()[0], rtol=1e-5)


def test_an_absent_view_counts_in_no_pair_and_keeps_its_row():
    one = Pass(split=THREE, z=50.0, contrast__graph="full")
    present = jnp.ones((B, 3), bool).at[2, 1].set(False).at[4, 0].set(False)
    total, out = one.loss(batch={**one.batch, "present": present})
    v = one.embeddings()
    expected = 0.0
    for i, j in pairs_of(3, "full"):
        both = np.asarray(present[:, i] & present[:, j])
        for a, b in ((i, j), (j, i)):
            expected += by_hand(one, a, b, v, z=50.0)[0][both].mean()
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    after = one.method.update(one.extra, one.params, out.carry, jnp.int32(0))
    moved = [
        np.any(np.asarray(new != old), axis=1) for new, old in zip(after.rows, one.extra.rows, strict=True)
    ]
    for view in range(3):
        expected = np.zeros(len(moved[view]), bool)
        expected[np.asarray(one.batch["index"])[np.asarray(present[:, view])]] = True
        np.testing.assert_array_equal(moved[view], expected)


def test_negatives_are_training_images_only():
    """Where the training images are a part of the data, their ids are read before the first step."""
    one = Pass(contrast__name="softmax")
    ids = jnp.arange(0, 1500, 2, dtype=jnp.int32)
    facts = FACTS._replace(num_examples=750)
    method = METHODS["cmc"](one.config, facts)
    state = SimpleNamespace(step=jnp.int32(0), extra=one.extra)
    state.replace = lambda extra: SimpleNamespace(step=state.step, extra=extra)
    extra = method.refresh(state, SimpleNamespace(ids=np.asarray(ids), place=lambda state: state)).extra
    np.testing.assert_array_equal(extra.ids, ids)
    odd = tuple(row.at[1::2].multiply(7.0) for row in extra.rows)
    one.batch["index"] = one.batch["index"] * 2 % 1500
    losses = [
        jax.jit(method.loss)(
            one.params, one.state, extra._replace(rows=rows), one.batch, one.key, jnp.int32(0)
        )[0]
        for rows in (extra.rows, odd)
    ]
    assert losses[0] == losses[1]


def test_one_view_alone_is_a_part_of_the_representation(two):
    image = two.batch["image"]
    whole = two.method.encode(two.params, two.state, two.extra, image)
    parts = []
    for view in two.config.model.split:
        config = two.config.copy_and_resolve_references().unlock()
        config.evaluate.view = view
        method = METHODS["cmc"](config, FACTS)
        parts.append(method.encode(two.params, two.state, two.extra, image))
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model__split=("luminance",)), "needs at least two"),
        (dict(evaluate__view="depth"), "'depth' is not one of"),
        (dict(bn__groups=5), "bn.groups=5 does not divide"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        METHODS["cmc"](config_of("cmc", "digits", **change), FACTS)


def test_recipes_are_not_mixed():
    for preset in PRESETS:
        for c in stages(get_config(preset)).values():
            pycontrast = preset.startswith("cmc_pycontrast")
            if "imagenet" in preset or pycontrast:
                assert c.augment.color_space == ("ydbdr" if pycontrast else "lab"), preset
                jitters = pycontrast and c.method == "cmc"
                assert (c.augment.jitter_probability > 0) == jitters, preset
    for preset, area in (("imagenet_alexnet_linear", 0.2), ("imagenet_r50_v1_linear", 0.08)):
        for c in stages(get_config(preset)).values():
            assert c.augment.min_area == area
    rates = {name: get_config(name).linear.optim.learning_rate for name in LINEAR}
    assert rates["imagenet_alexnet_linear"] == 0.1 and rates["imagenet_r50_v2_linear"] == 30.0
    assert rates["imagenet_r50_v3_linear"] == 50.0 and rates["cmc_pycontrast_linear"] == 30.0
    assert {
        get_config(n).batch_size // get_config(n).bn.groups for n in ("imagenet_r50_v1", "cmc_pycontrast")
    } == {32}
    assert get_config("imagenet_alexnet").bn.groups == 1


def test_learning_rates_of_the_released_schedules():
    c = get_config("imagenet_r50_v1_linear")
    for stage, at in (
        (c.pretrain, {120: 0.03, 121: 0.003, 160: 0.003, 161: 3e-4, 200: 3e-4, 201: 3e-5}),
        (c.linear, {30: 30.0, 31: 6.0, 40: 6.0, 41: 1.2, 51: 0.24}),
    ):
        rate = by_epoch(
            stage.optim.learning_rate,
            steps_per_epoch=10,
            epochs=stage.epochs,
            milestones=stage.optim.milestones,
            factor=stage.optim.milestone_factor,
        )
        for epoch, expected in at.items():  # the released code counts epochs from 1
            np.testing.assert_allclose(rate(10 * (epoch - 1)), expected, rtol=1e-5)
