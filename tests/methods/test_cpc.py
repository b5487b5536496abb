"""CPC put together by hand: the loss from grids, directions, groups, the average, the two classifications."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.cpc import get_config
from ssljax import benches, models, optim
from ssljax.config import resolve, stages
from ssljax.data import patches, sources, views
from ssljax.methods import METHODS
from ssljax.methods.cpc import contrasted
from ssljax.program import build, encoder, evaluated
from ssljax.sharding import make_mesh
from ssljax.types import Facts, TrainState
from tests.methods import small
from tests.methods.small import shaken

FACTS = Facts(num_examples=1500, num_classes=10, num_ids=1500)
KEY = jax.random.key(0)


def config_of(preset="digits", stage="", **changes):
    """A stage with a network of four channels and one context block, whose patches change their colours."""
    c = get_config(preset).unlock()
    c = stages(c)[stage] if stage else c
    c.batch_size = 4
    c.log_every = 1
    c.model.width = 4 / 64
    c.augment.crop = "none"
    c.patches.update(deform_probability=0.0, histogram_probability=0.0)
    if c.task == "pretrain":
        c.context.update(blocks=1, hidden=8, target_dim=8)
        c.cpc.local_images = 2
    if c.task == "classify":
        c.classifier.update(blocks=1, bottleneck=4)
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c).lock()


batch_of = functools.partial(small.batch_of, size=16)


def started(c):
    """The method and a fresh state."""
    method = METHODS["cpc"](c, FACTS)
    return method, *jax.jit(method.init)(KEY, {})


def random_state(c):
    """The method and a state of random values."""
    method = METHODS["cpc"](c, FACTS)
    return method, *shaken(jax.eval_shape(method.init, KEY, {}), 1)


def evaluated_loss(method, params, model_state, extra, batch):
    return jax.jit(method.loss)(params, model_state, extra, batch, KEY, jnp.int32(0))


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------ pretraining


def naive(p, t, step, images):
    """The mean loss of one direction and step by loops over sources, in double precision."""
    p, t = np.asarray(p, np.float64), np.asarray(t, np.float64)
    _, height, width, _ = t.shape
    losses = []
    for b, r, c in np.ndindex(len(t), height - step - 1, width):
        first = b // images * images
        logits = (t[first : first + images] @ p[b, r, c]).ravel()
        right = ((b - first) * height + r + step + 1) * width + c
        losses.append(np.log(np.exp(logits).sum()) - logits[right])
    return np.mean(losses)


@pytest.mark.parametrize("images", (2, 4))
def test_every_prediction_meets_the_right_target_of_its_group(images):
    """On a grid of 5 x 7, where rows and columns cannot be confused."""
    t = random((4, 5, 7, 3))
    p = random((4, 3, 7, 3), 1)
    compared = jax.jit(functools.partial(contrasted, step=1, images=images))
    rows, hits = compared(p, t)
    assert rows.shape == hits.shape == (4 * 3 * 7,)
    np.testing.assert_allclose(rows.mean(), naive(p, t, 1, images), rtol=1e-5)
    t /= np.linalg.norm(t, axis=-1, keepdims=True)
    _, hits = compared(t[:, 2:], t)  # the target itself is predicted
    assert hits.mean() == 1


class Parts:
    """The loss of two steps and four directions, and its parts by another way."""

    def __init__(self):
        self.config = config_of(cpc__step_indices=(1, 2))
        self.method, self.params, self.model_state, self.extra = random_state(self.config)
        self.batch = batch_of(4)
        self.total, self.out = evaluated_loss(
            self.method, self.params, self.model_state, self.extra, self.batch
        )

    @functools.cached_property
    def grid(self):
        return jax.jit(self._grid)()

    def _grid(self):
        x = views.stacked(self.batch, KEY, self.config)[:, 0]
        x = patches.changed(models.cut(x, 6, 2), self.batch, KEY, self.config)
        net = models.backbone(self.config.model)
        return net.apply({"params": self.params["encoder"]}, x, train=True, grid=True)


@pytest.fixture(scope="module")
def parts():
    return Parts()


@pytest.mark.slow
def test_the_loss_is_the_sum_over_directions_and_steps_of_the_means(parts):
    z = np.asarray(parts.grid)
    assert z.shape[:3] == (4, 6, 6)
    apply = jax.jit(models.cpc_direction(parts.config.context, parts.config.model, (1, 2)).apply)
    total = 0.0
    for turns, name in enumerate(("down", "left", "up", "right")):
        turned = np.rot90(z, turns, axes=(1, 2))  # what lies in that direction is below now
        t, predictions = apply({"params": parts.params["directions"][name]}, turned)
        found = [naive(0.1 * p, t, i, 2) for i, p in zip((1, 2), predictions, strict=True)]
        np.testing.assert_allclose(parts.out.metrics[f"loss_{name}"], sum(found), rtol=1e-4)
        total += sum(found)
    np.testing.assert_allclose(parts.total, total, rtol=1e-4)
    assert parts.out.metrics["candidates"] == 2 * 36
    np.testing.assert_allclose(parts.out.metrics["loss_per_term"], total / 8, rtol=1e-4)


def test_the_parameters_of_directions_and_steps():
    """As many predictions as directions times steps, and targets and a context for each direction."""
    method = METHODS["cpc"](config_of(cpc__step_indices=(1, 2, 3)), FACTS)
    params, _, extra = jax.eval_shape(lambda key: method.init(key, {}), KEY)
    assert set(params) == {"encoder", "directions"} and set(extra.params) == {"encoder"}
    assert set(params["directions"]) == {"down", "left", "up", "right"}
    for learned in params["directions"].values():
        assert set(learned) == {"context", "targets", "prediction1", "prediction2", "prediction3"}
    for number, names in ((1, {"down"}), (2, {"down", "up"})):
        method = METHODS["cpc"](config_of(cpc__directions=number), FACTS)
        assert set(jax.eval_shape(method.init, KEY, {})[0]["directions"]) == names


@pytest.mark.slow
def test_turning_an_image_permutes_the_losses_of_equal_directions(parts, monkeypatch):
    """With one set of weights for all directions, half a turn of the grid exchanges up and down."""
    down = parts.params["directions"]["down"]
    params = {**parts.params, "directions": dict.fromkeys(parts.params["directions"], down)}
    turned = np.rot90(parts.grid, 2, axes=(1, 2))

    @jax.jit
    def losses(z):
        monkeypatch.setattr(models, "forward", lambda *args, **call: (z, {}))
        _, out = parts.method.loss(params, parts.model_state, parts.extra, parts.batch, KEY, jnp.int32(0))
        return {name: out.metrics[f"loss_{name}"] for name in models.DIRECTIONS}

    before, after = losses(parts.grid), losses(turned)
    opposite = dict(down="up", up="down", left="right", right="left")
    for name, other in opposite.items():
        np.testing.assert_allclose(after[other], before[name], rtol=1e-5)
    assert abs(before["down"] - before["up"]) > 1e-4


@pytest.mark.slow
def test_an_untrained_network_is_near_the_log_of_the_candidates():
    """Sixteen images: ln 576 = 6.356 per direction, 25.42 for four; all of 32 images: ln 1152."""
    c = config_of(batch_size=32, cpc__local_images=16, cpc__scale=1e-4)
    _, *state = started(c)
    for changes, candidates in (({}, 576), ({"negatives": "global"}, 1152)):
        c = c.copy_and_resolve_references().unlock()
        c.cpc.update(changes)
        method = METHODS["cpc"](c, FACTS)
        total, out = evaluated_loss(method, *state, batch_of(32))
        np.testing.assert_allclose(total, 4 * np.log(candidates), rtol=1e-3)
        assert out.metrics["candidates"] == candidates


def test_groups_and_steps_that_do_not_fit_are_refused():
    method = METHODS["cpc"](config_of(cpc__local_images=3), FACTS)
    state = jax.eval_shape(lambda: method.init(KEY, {}))
    with pytest.raises(ValueError, match="config.cpc.local_images=3 does not divide the batch of 4"):
        jax.eval_shape(method.loss, *state, batch_of(4), KEY, jnp.int32(0))
    with pytest.raises(ValueError, match="on a grid of 6 rows"):
        METHODS["cpc"](config_of(cpc__step_indices=(2, 5)), FACTS)
    with pytest.raises(ValueError, match=r"config.model.whole=True"):
        METHODS["cpc"](config_of(model__whole=True), FACTS)


def test_the_average_is_evaluated_and_not_the_network():
    c = config_of(ema__decay=0.75)
    method, params, model_state, extra = random_state(c)
    encode = encoder(method, c)

    @jax.jit
    def run(params, extra, image):
        moved = method.update(extra, params, (), jnp.int32(0))
        x = views.for_network(image, c.augment)
        by_hand = models.infer(models.backbone(c.model), moved.params["encoder"], {}, x)
        return moved, encode(params, model_state, moved, image), by_hand

    moved, features, by_hand = run(params, extra, batch_of(4)["image"])
    start, end = jax.tree.map(np.asarray, (extra.params["encoder"], params["encoder"]))
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start, end)
    chex.assert_trees_all_close(moved.params["encoder"], expected, rtol=1e-5, atol=1e-6)
    found, _ = method.evaluated(params, model_state, moved)
    chex.assert_trees_all_equal(found, moved.params["encoder"])
    np.testing.assert_allclose(features, by_hand, rtol=1e-5, atol=1e-6)


def test_the_gradient_is_clipped_before_adam():
    """0.01, Adam with .8 and .999: two steps against NumPy. A constant rate."""
    c = get_config("imagenet_r161").optim
    assert (c.learning_rate, c.b1, c.b2, c.epsilon, c.clip) == (4e-4, 0.8, 0.999, 1e-8, 0.01)
    with jax.numpy_dtype_promotion("standard"):
        tx, rate = optim.make_optimizer(c, batch_size=512, steps_per_epoch=10.0, total_steps=100)
        assert rate(jnp.int32(0)) == rate(jnp.int32(99)) == 4e-4
        params = {"encoder": {"kernel": np.ones(2, np.float32)}}
        state = jax.jit(tx.init)(params)
        update = jax.jit(tx.update)
        found = []
        for g in ((3.0, 4.0), (0.006, 0.0)):  # norms of 5, which is clipped, and of 0.006, which is not
            updates, state = update({"encoder": {"kernel": np.float32(g)}}, state, params)
            found.append(np.asarray(updates["encoder"]["kernel"]))
    m = v = 0.0
    for count, g in enumerate(([0.006, 0.008], [0.006, 0.0]), start=1):
        g = np.asarray(g)
        m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g**2
        step = -4e-4 * (m / (1 - 0.8**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
        np.testing.assert_allclose(found[count - 1], step, rtol=1e-4)


def test_sgd_trains_the_classifier_and_adam_the_encoder():
    c = config_of("digits_finetune", "finetune").optim
    with jax.numpy_dtype_promotion("standard"):
        tx, rate = optim.make_optimizer(c, batch_size=50, steps_per_epoch=2.0, total_steps=80)
        params = {name: {"kernel": np.ones(3, np.float32)} for name in ("encoder", "classifier", "head")}
        grads = jax.tree.map(lambda leaf: 5 * leaf, params)
        updates, _ = jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params))(grads, params)
    peak = float(rate(jnp.int32(0)))
    np.testing.assert_allclose(updates["encoder"]["kernel"], -peak * c.encoder_rate, rtol=1e-4)
    for name in ("classifier", "head"):
        np.testing.assert_allclose(updates[name]["kernel"], -peak * (5 + c.weight_decay), rtol=1e-5)


# ------------------------------------------------------------------------------------------- classification


@pytest.mark.slow
def test_the_linear_probe_reads_changed_patches_and_trains_nothing_else():
    c = config_of("digits_linear", "linear")
    method, params, model_state, extra = started(c)
    assert set(params) == {"head"} and method.frozen
    params = shaken(params, 1)
    batch = batch_of(4)
    loss, out = evaluated_loss(method, params, model_state, extra, batch)

    @jax.jit
    def grid(batch):
        x = patches.changed(models.cut(views.stacked(batch, KEY, c)[:, 0], 6, 2), batch, KEY, c)
        net = models.backbone(c.model)
        return net.apply({"params": extra.params["encoder"]}, x, train=False, grid=True)

    z = np.asarray(grid(batch), np.float64)
    mean, var = z.mean((0, 1, 2)), z.var((0, 1, 2))
    head = jax.tree.map(np.asarray, params["head"])
    w, b = head["logits"]["dense"]["kernel"], head["logits"]["dense"]["bias"]
    logits = (((z - mean) / np.sqrt(var + 1e-5) + head["norm"]["bias"]) @ w + b).mean((1, 2))
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), batch["label"]]
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-3)
    np.testing.assert_allclose(out.carry["norm"]["mean"], 0.1 * mean, rtol=1e-3, atol=1e-6)

    extra = method.update(extra, params, out.carry, jnp.int32(0))
    features = jax.jit(encoder(method, c))(params, model_state, extra, batch["image"])
    found = jax.jit(method.classify)(params, extra, features)["probe"]
    x = np.asarray(features, np.float64) - np.asarray(extra.model_state["head"]["norm"]["mean"])
    x = x / np.sqrt(np.asarray(extra.model_state["head"]["norm"]["var"]) + 1e-5) + head["norm"]["bias"]
    np.testing.assert_allclose(found, x @ w + b, rtol=1e-3, atol=1e-4)


def loads(values):
    """A LoadFn that answers with the parts' names, and notes them."""
    asked = []

    def load(run, like):
        asked.append((run, tuple(like)))
        return {
            part: jax.tree.map(lambda leaf: np.full(leaf.shape, values, leaf.dtype), branch)
            for part, branch in like.items()
        }

    return load, asked


@pytest.mark.parametrize("preset, stage", (("digits_linear", "linear"), ("digits_finetune", "frozen")))
def test_a_frozen_encoder_is_the_average_of_pretraining(preset, stage):
    c = config_of(preset, stage)
    method, params, model_state, extra = random_state(c)
    assert "encoder" not in params
    load, asked = loads(0.5)
    state = TrainState(0, params, model_state, (), extra)
    state = method.adopt(state, load)
    assert asked == [("pretrain", ("evaluated/params",))]
    weights, _ = method.evaluated(state.params, state.model_state, state.extra)
    assert all((np.asarray(leaf) == 0.5).all() for leaf in jax.tree.leaves(weights))


@pytest.mark.slow
def test_the_classifier_on_the_frozen_encoder_is_judged_by_its_own_head():
    c = config_of("digits_finetune", "frozen", batch_size=8)
    test = sources.load(c.data, "test")
    program = build(c, FACTS, make_mesh(1))
    network = evaluated(c, FACTS, shaken(program.shapes, 1), program.mesh)
    predicted = benches.of_network(network, "cpc", test, test).predictions(test)
    assert set(predicted) == {"classifier"} and predicted["classifier"].shape == (len(test), 10)


@pytest.mark.slow
def test_the_classifier_reads_maps_of_whole_images_and_both_are_trained_in_the_end():
    c = config_of("digits_finetune", "finetune")
    assert (c.init_from, c.init_branches) == ("frozen", ("classifier", "head")) and c.model.whole
    method, params, model_state, extra = random_state(c)
    assert set(params) == {"encoder", "classifier", "head"} and extra == () and not method.frozen
    load, asked = loads(0.25)
    state = TrainState(0, params, model_state, (), extra)
    adopted = method.adopt(state, load)
    assert asked == [("frozen", ("evaluated/params",))]
    assert all((np.asarray(leaf) == 0.25).all() for leaf in jax.tree.leaves(adopted.params["encoder"]))
    chex.assert_trees_all_equal(adopted.params["classifier"], params["classifier"])

    batch = batch_of(4)
    (loss, _), grads = jax.jit(jax.value_and_grad(method.loss, has_aux=True))(
        params, model_state, extra, batch, KEY, jnp.int32(0)
    )
    assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(grads["encoder"]))

    @jax.jit
    def by_hand(params, batch):
        x = views.stacked(batch, KEY, c)[:, 0]
        x = patches.changed(x[:, None, None], batch, KEY, c)[:, 0, 0]
        maps = models.backbone(c.model).apply({"params": params["encoder"]}, x, train=False, grid=True)
        assert maps.ndim == 4 and maps.shape[1] > 1
        network = models.cpc_classifier(c.classifier, c.model)
        h = network.apply({"params": params["classifier"]}, maps, train=False)
        return models.logits(params["head"], h)

    logits = np.asarray(by_hand(params, batch), np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), batch["label"]]
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-4)


def test_patches_of_a_whole_image_are_refused_by_the_classifier():
    with pytest.raises(ValueError, match="config.model.whole=False"):
        METHODS["cpc"](config_of("digits_finetune", "finetune", model__whole=False), FACTS)
    with pytest.raises(ValueError, match="config.task='probe' is unknown"):
        c = config_of().copy_and_resolve_references().unlock()
        c.task = "probe"
        METHODS["cpc"](c, FACTS)


# --------------------------------------------------------------------------------------------------- recipes


def test_the_papers_recipe():
    c = get_config("imagenet_r161")
    grid = (c.data.image_size - c.model.patch) / c.model.stride + 1
    assert (c.data.image_size, c.model.patch, c.model.stride, grid) == (260, 80, 36, 6)
    assert round(c.data.image_size / c.augment.min_area**0.5) == 300
    assert (c.epochs, c.batch_size, c.ema.decay, c.optim.weight_decay) == (200, 512, 0.9999, 0.0)
    assert (c.cpc.directions, c.cpc.step_indices, c.cpc.scale, c.cpc.local_images) == (4, (2,), 0.1, 16)
    assert (c.context.blocks, c.context.hidden, c.context.target_dim) == (5, 256, 64)
    linear = get_config("imagenet_r161_linear").linear
    assert (linear.optim.name, linear.optim.learning_rate, linear.batch_size) == ("adam", 5e-4, 512)
    assert linear.patches.to_dict() == c.patches.to_dict()


@pytest.mark.parametrize("percent", (1, 2, 5, 10, 20, 50, 100))
def test_efficient_classification_has_three_stages_and_a_supervised_rival(percent):
    c = get_config(f"imagenet_r161_finetune_{percent}pct")
    assert c.stages == ("pretrain", "frozen", "finetune")
    for stage in (c.frozen, c.finetune):
        assert stage.data.label_fraction == percent / 100 and stage.data.image_size == 224
        assert (stage.classifier.blocks, stage.classifier.bottleneck) == (11, 1024)
        recipe = stage.augment
        assert (recipe.crop, recipe.min_area, recipe.interpolation) == ("tf", 0.05, "bilinear")
        assert not recipe.antialias and c.pretrain.augment.antialias
    assert (c.frozen.classifier.frozen, c.finetune.classifier.frozen) == (True, False)
    rival = get_config(f"imagenet_r200_supervised_{percent}pct")
    assert (rival.method, rival.model.name, rival.data.label_fraction) == (
        "supervised",
        "resnet200",
        percent / 100,
    )
