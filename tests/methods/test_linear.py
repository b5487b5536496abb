"""The linear evaluation: the authors' updates in NumPy, what is frozen, what is probed, and the recipes."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import byol, deepcluster, moco, simclr
from ssljax import benches, models, optim
from ssljax.config import resolve
from ssljax.data import sources
from ssljax.earlier import evaluated_part, start_from
from ssljax.methods import METHODS
from ssljax.models.pooling import pooled
from ssljax.program import build, device_batches, encoder, evaluated, open_run
from ssljax.run.folder import RunFolder
from ssljax.run.loop import fit
from ssljax.types import TrainState
from tests.methods.small import FACTS, SIZE, blank, config_of, one_block, positive, saved, shaken

pytestmark = pytest.mark.slow

EPOCHS = 4
IMAGES = 43  # five batches of 8 an epoch, and a rest that is dropped


@pytest.fixture(autouse=True)
def small_networks(one_device):
    with one_block():
        yield


def few_digits(config):
    return sources.load(config.data, "train").select(range(IMAGES))


def with_backbone(state, seed: int) -> TrainState:
    """The state with a random frozen backbone, statistics included; variances are positive."""
    frozen = shaken(state.extra, seed)
    return state.replace(extra=frozen._replace(model_state=positive(frozen.model_state)))


def by_flax(config, extra, images) -> np.ndarray:
    """The frozen backbone's features of whole images, in inference mode, by its own module."""
    variables = {"params": extra.params["encoder"], "batch_stats": extra.model_state["encoder"]}
    x = (images / 255.0 - np.array(config.augment.mean)) / np.array(config.augment.std)
    apply = jax.jit(lambda x: models.backbone(config.model).apply(variables, x, train=False))
    return np.asarray(apply(np.float32(x)), np.float64)


# ------------------------------------------------------------------------------ the authors' updates in NumPy


def cosine(t: float, total: float) -> float:
    return 0.5 * (1 + np.cos(np.pi * t / total))


def rates(name: str, config, steps: int) -> list[float]:
    """The learning rate of every step, as each paper's code sets it."""
    o = config.optim
    spe = IMAGES // config.batch_size
    scaled = o.learning_rate * config.batch_size / 256
    if name in ("simclr", "byol"):  # a cosine over all steps
        return [scaled * cosine(t, steps) for t in range(steps)]
    if name == "moco":  # adjust_learning_rate: x 0.1 for each milestone that the epoch has reached
        return [o.learning_rate * 0.1 ** sum(t // spe >= m for m in o.milestones) for t in range(steps)]
    if name == "moco_v3":  # the cosine of the epoch
        return [scaled * cosine(min(t // spe, EPOCHS), EPOCHS) for t in range(steps)]
    if name == "deepcluster_v2":  # CosineAnnealingLR, stepped once per epoch, of the rate as it is
        return [o.learning_rate * cosine(min(t // spe, EPOCHS), EPOCHS) for t in range(steps)]
    return [o.learning_rate / np.sqrt(1 + o.learning_rate * o.weight_decay * t) for t in range(steps)]


def by_hand(name: str, config, layer: dict, h: np.ndarray, labels: np.ndarray, batches: list) -> list:
    """The logits of all images after every step of torch.optim.SGD, or of TensorFlow's Nesterov momentum."""
    w = {key: np.asarray(value, np.float64) for key, value in layer.items()}
    velocity = {key: np.zeros_like(value) for key, value in w.items()}
    found = []
    for rate, rows in zip(rates(name, config, len(batches)), batches, strict=True):
        scores = h[rows] @ w["kernel"] + w["bias"]
        p = np.exp(scores - scores.max(1, keepdims=True))
        wrong = (p / p.sum(1, keepdims=True) - np.eye(10)[labels[rows]]) / len(rows)
        gradient = {"kernel": h[rows].T @ wrong, "bias": wrong.sum(0)}
        for key in w:
            g = gradient[key] + config.optim.weight_decay * w[key]
            velocity[key] = config.optim.momentum * velocity[key] + g
            nesterov = name in ("simclr", "byol")
            w[key] = w[key] - rate * (
                g + config.optim.momentum * velocity[key] if nesterov else velocity[key]
            )
        found.append(h @ w["kernel"] + w["bias"])
    return found


RECIPES = {
    "simclr": simclr.get_config("imagenet_r50_linear").linear,
    "moco": moco.get_config("imagenet_r50_v2_e200_linear").linear,
    "moco_v3": moco.get_config("imagenet_vit_b_v3_linear").linear,
    "byol": byol.get_config("imagenet_r50_e1000_linear").linear,
    "deepcluster": deepcluster.get_config("imagenet_alexnet_linear_conv1").linear,
    "deepcluster_v2": deepcluster.get_config("imagenet_r50_v2_e400_linear").linear,
}


# What would not show within 22 steps.
SHORTENED = {
    "moco": dict(milestones=(1, 3)),
    "deepcluster": dict(learning_rate=0.1, weight_decay=0.5),
    "deepcluster_v2": dict(weight_decay=0.1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_logits_follow_the_authors_update_and_the_backbone_keeps_every_bit(name):
    """Without crops the features are constant, and NumPy trains the same layer on them."""
    recipe = RECIPES[name]
    c = config_of("linear", batch_size=8, epochs=EPOCHS, optim=recipe.optim.copy_and_resolve_references())
    c = c.copy_and_resolve_references().unlock()
    c.head.scheme = recipe.head.scheme
    c.optim.update(SHORTENED.get(name, {}))
    source = few_digits(c)
    program = build(c.lock(), source.facts)
    state = blank(program)
    state = with_backbone(state.replace(params=shaken(state.params, 9)), 1)
    before = jax.tree.map(np.array, state.extra)
    h = by_flax(c, state.extra, source.images)
    assert h.std() > 0.1

    batches = []
    ours = []
    layer = jax.tree.map(np.array, state.params["head"]["dense"])
    for batch, _ in zip(device_batches(program, source, 0, 0), range(program.total_steps), strict=False):
        batches.append(np.asarray(batch["index"]))
        state, _ = program.step(state, batch, jax.random.key(0))
        trained = jax.tree.map(np.asarray, state.params["head"]["dense"])
        ours.append(h @ trained["kernel"] + trained["bias"])
    theirs = by_hand(name, c, layer, h, source.labels, batches)
    assert len(ours) == IMAGES * EPOCHS // 8 + 1
    assert np.abs(theirs[-1] - theirs[0]).max() > 1e-3
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4 * np.abs(theirs).max())
    chex.assert_trees_all_equal(state.extra, before, strict=True)
    assert jax.tree.leaves(state.model_state) == []


def test_the_head_is_all_that_is_trained():
    method = METHODS["linear"](config_of("linear"), FACTS)
    params, model_state, extra = jax.eval_shape(lambda key: method.init(key, {}), jax.random.key(0))
    assert set(params) == {"head"} and model_state == {}
    assert set(extra.params) == set(extra.model_state) == {"encoder"}
    assert method.frozen and method.separable and method.needs_labels


def test_the_running_statistics_normalise_whatever_the_rest_of_the_batch_is():
    c = config_of("linear", augment__mean=(0.2,), augment__std=(0.3,))
    method = METHODS["linear"](c, FACTS)
    params, model_state, extra = jax.eval_shape(method.init, jax.random.key(0), {})
    state = with_backbone(TrainState(0, shaken(params, 9), model_state, (), extra), 3)
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 1)).astype(np.uint8)
    expected = by_flax(c, state.extra, images)
    found = jax.jit(encoder(method, c))(state.params, state.model_state, state.extra, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    head = state.params["head"]["dense"]
    scores = expected @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    label = np.arange(5)
    losses = np.log(np.exp(scores).sum(1)) - scores[label, label]
    for rows in (slice(0, 5), slice(1, 3)):
        batch = {"image": images[rows], "label": label[rows].astype(np.int32)}
        batch["index"] = batch["label"]
        loss, out = jax.jit(method.loss)(
            state.params, {}, state.extra, batch, jax.random.key(0), jnp.int32(0)
        )
        np.testing.assert_allclose(loss, losses[rows].mean(), rtol=1e-5)
        assert out.carry == () and set(out.metrics) == {"accuracy"}


def test_a_layer_is_pooled_as_the_cached_probe_pools_it():
    c = config_of("linear", probe__layer="group1", probe__layer_dim=40)
    source = few_digits(c)
    program = build(c, source.facts)
    state = with_backbone(blank(program), 2)
    found = program.encode(state.params, state.model_state, state.extra, source.images[:3])
    network = evaluated(c, source.facts, state, program.mesh)
    maps = network.maps(source.images[:3], "group1")
    assert maps.shape == (3, SIZE, SIZE, 4) and found.shape == (3, 36)
    np.testing.assert_allclose(found, pooled(maps, 40), rtol=1e-4, atol=1e-6)
    assert state.params["head"]["dense"]["kernel"].shape == (36, 10)


# ------------------------------------------------------------------------------------------- what is probed


def earlier_run(folder, method: str, **changes):
    """A run of another method with random weights in every branch, and its state."""
    config = config_of(method, **changes)
    program = build(config, FACTS)
    state = blank(program)
    state = state.replace(params=shaken(state.params, 5), model_state=positive(shaken(state.model_state, 6)))
    if method == "moco":
        state = state.replace(extra=state.extra._replace(key_params=shaken(state.extra.key_params, 7)))
    if method == "byol":
        state = state.replace(extra=state.extra._replace(target_params=shaken(state.extra.target_params, 7)))
    return saved(folder, config, state), state


@pytest.mark.parametrize("method", ["simclr", "moco", "byol", "deepcluster", "supervised"])
def test_the_network_that_the_earlier_run_evaluates_is_probed(method, tmp_path):
    """The query encoder and the online network with their own statistics, not the key encoder or target."""
    folder, donor = earlier_run(tmp_path / "run", method)
    c = config_of("linear", init_from="pretrain", model=config_of(method).model.copy_and_resolve_references())
    program = build(c, FACTS)
    begun = blank(program)
    begun = begun.replace(params=shaken(begun.params, 9))
    state = start_from(program, {"pretrain": folder})(begun)
    chex.assert_trees_all_equal(state.extra.params["encoder"], donor.params["encoder"])
    chex.assert_trees_all_equal(state.extra.model_state["encoder"], donor.model_state["encoder"])
    chex.assert_trees_all_equal(state.params, begun.params)

    # A probe of the probe's own folder finds the same backbone.
    again = saved(tmp_path / "probe", c, state)
    second = build(config_of("linear", init_from=again, model=c.model.copy_and_resolve_references()), FACTS)
    chex.assert_trees_all_equal(start_from(second, {})(blank(second)).extra, state.extra)
    run = open_run(c, FACTS, again)
    chex.assert_trees_all_equal(run.extra, state.extra)


def test_a_moving_average_is_probed_where_the_run_evaluates_it(tmp_path):
    student = importlib.import_module("configs.deit").get_config("digits").student
    c = student.copy_and_resolve_references().unlock()
    c.distill.name = "none"
    c.ema.decay = 0.9
    c.init_from = ""
    c.model.update(name="vit_xxs", distillation=False)
    c = resolve(c).lock()
    program = build(c, FACTS)
    state = blank(program)
    average = state.extra.ema._replace(params=shaken(state.params, 8))
    folder = saved(tmp_path / "deit", c, state.replace(extra=state.extra._replace(ema=average)))
    assert evaluated_part(folder, "params") == "extra/ema/params/encoder"

    model = c.model.copy_and_resolve_references()
    probe = config_of("linear", init_from=folder, model=model, data__image_size=c.data.image_size)
    program = build(probe, FACTS)
    found = start_from(program, {})(blank(program)).extra.params["encoder"]
    chex.assert_trees_all_equal(found, average.params["encoder"])


def test_a_folder_that_cannot_be_probed_is_named_with_what_to_do(tmp_path):
    folder, _ = earlier_run(tmp_path / "run", "simclr")

    def started(run, **changes):
        program = build(config_of("linear", init_from=run, **changes), FACTS)
        begun = with_backbone(blank(program), 1)
        return start_from(program, {})(begun), begun

    with pytest.raises(FileNotFoundError, match=r"no run in .*nowhere \(no config.json\): train it first"):
        started(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="the two runs must have the same model settings"):
        started(folder, model__width=8 / 64)
    (tmp_path / "config.json").write_text('{"stages": ["pretrain", "linear"]}')
    with pytest.raises(ValueError, match=rf"holds the stages pretrain, linear; .* e.g. {tmp_path}/pretrain"):
        started(str(tmp_path))
    state, begun = started("")
    chex.assert_trees_all_equal(state.extra, begun.extra)  # a random network, the baseline


@pytest.mark.slow
def test_training_leaves_the_adopted_backbone_alone_and_evaluation_reads_it(tmp_path):
    """The whole loop with crops and flips on, from the first step to the opened run."""
    folder, donor = earlier_run(tmp_path / "run", "byol")
    crops = dict(augment__crop="torchvision", augment__flip=True, augment__min_area=0.3)
    c = config_of("linear", init_from=folder, epochs=3, **crops)
    source = few_digits(c)
    program = build(c, source.facts)
    with RunFolder(str(tmp_path / "probe"), c, source.facts) as run:
        fit(program, source, seed=0, folder=run, start=start_from(program, {}))
    opened = open_run(c, source.facts, str(tmp_path / "probe"))
    chex.assert_trees_all_equal(opened.extra.params["encoder"], donor.params["encoder"])
    chex.assert_trees_all_equal(opened.extra.model_state["encoder"], donor.model_state["encoder"])
    features = by_flax(c, opened.extra, source.images[:4])
    np.testing.assert_allclose(opened.encode(source.images[:4]), features, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- ten crops


def test_ten_crops_are_averaged_as_probabilities(monkeypatch):
    """Of an image of 40 pixels, squares of 35: four corners, the centre, and each mirrored."""
    c = config_of("linear", data__image_size=40, data__eval_crop=0.875, evaluate__ten_crops=True)
    source = sources.load(c.data, "test").select(range(6))
    program = build(c, FACTS)
    state = with_backbone(blank(program), 4)
    network = evaluated(c, FACTS, state.replace(params=shaken(state.params, 9)), program.mesh)
    seen = []
    encode = network.encode

    def noting(image):
        seen.append(np.asarray(image)[: len(source)])
        return encode(image)

    bench = benches.of_network(network._replace(encode=noting), "linear", source, source)
    (found,) = bench.predictions(source).values()
    assert len(seen) == 10
    for plain, mirrored in zip(seen[::2], seen[1::2], strict=True):
        np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    head = jax.tree.map(np.asarray, network.params["head"]["dense"])
    total = 0.0
    for images in seen:
        scores = np.asarray(encode(images)) @ head["kernel"] + head["bias"]
        total += np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(found), total / 10, rtol=1e-4)
    plain = benches.of_network(network, "linear", source, source)
    assert len({images.tobytes() for images in seen}) == 10

    with c.unlocked():
        c.evaluate.ten_crops = False
    (alone,) = plain.predictions(source).values()
    h = np.asarray(encode(seen[8]))
    np.testing.assert_allclose(alone, h @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the recipes

# Optimizer, learning rate, scaling, Nesterov, weight decay, batch size, epochs, initialisation.
TABLE = [
    (simclr, "imagenet_r50", ("sgd", 0.1, "linear", True, 0.0, 4096, 90, "zeros")),
    (simclr, "imagenet_r50_x4", ("sgd", 0.1, "linear", True, 0.0, 4096, 90, "zeros")),
    (simclr, "imagenet_r50_e100_b256", ("sgd", 0.1, "linear", True, 0.0, 4096, 90, "zeros")),
    (moco, "imagenet_r50_v1", ("torch_sgd", 30.0, "none", False, 0.0, 256, 100, "normal_0.01")),
    (moco, "imagenet_r50_v2_e800", ("torch_sgd", 30.0, "none", False, 0.0, 256, 100, "normal_0.01")),
    (moco, "imagenet_r50_v3_e300", ("torch_sgd", 0.1, "linear", False, 0.0, 1024, 90, "normal_0.01")),
    (moco, "imagenet_vit_h_v3", ("torch_sgd", 3.0, "linear", False, 0.0, 1024, 90, "normal_0.01")),
    (byol, "imagenet_r50_e1000", ("sgd", 0.2, "linear", True, 0.0, 1024, 80, "truncated_normal")),
    (byol, "imagenet_r200_x2", ("sgd", 0.2, "linear", True, 0.0, 1024, 80, "truncated_normal")),
    (
        deepcluster,
        "imagenet_alexnet",
        ("deepcluster_probe_sgd", 0.01, "none", False, 1e-7, 256, 90, "uniform"),
    ),
    (deepcluster, "imagenet_vgg16", ("deepcluster_probe_sgd", 0.01, "none", False, 1e-4, 256, 90, "uniform")),
    (deepcluster, "imagenet_r50_v2_e400", ("torch_sgd", 0.3, "none", False, 1e-6, 256, 100, "normal_0.01")),
]


@pytest.mark.parametrize("paper, preset, expected", TABLE, ids=[preset for _, preset, _ in TABLE])
def test_the_recipe_is_the_papers(paper, preset, expected):
    c = paper.get_config(f"{preset}_linear")
    assert c.stages == ("pretrain", "linear") and c.linear.init_from == "pretrain"
    alone = paper.get_config(preset)
    assert c.pretrain.to_dict() == alone.to_dict() | {"preset": f"{preset}_linear"}
    p = c.linear
    nesterov = p.optim.name == "sgd" and p.optim.nesterov
    found = (p.optim.name, p.optim.learning_rate, p.optim.scaling, nesterov, p.optim.weight_decay)
    assert (*found, p.batch_size, p.epochs, p.head.scheme) == expected
    assert p.optim.momentum == 0.9
    assert p.model.to_dict().items() <= c.pretrain.model.to_dict().items()  # less what only heads read
    assert p.augment.mean == c.pretrain.augment.mean and p.augment.std == c.pretrain.augment.std
    assert p.augment.flip and p.augment.policy == "none" and len(p.views) == 1
    for operation in ("jitter", "grayscale", "blur", "solarize", "erasing"):
        assert p.augment[f"{operation}_probability"] == 0.0
    if p.optim.name == "deepcluster_probe_sgd":
        assert p.augment.crop == "square" and np.isclose(256 * p.augment.min_area**0.5, 224)
        assert p.probe.layer_dim == 9600 and p.evaluate.ten_crops
    else:
        assert p.augment.min_area == 0.08 and p.probe.layer == "" and not p.evaluate.ten_crops


def test_the_rate_of_the_layer_probe_after_a_million_steps():
    rate = optim.inverse_sqrt(0.01, weight_decay=1e-4)
    np.testing.assert_allclose([rate(0), rate(10**6)], [0.01, 0.01 / np.sqrt(2)], rtol=1e-6)
    assert optim.inverse_sqrt(0.01, weight_decay=0.0)(10**6) == np.float32(0.01)


def test_milestones_and_layers_are_those_released():
    v2 = moco.get_config("imagenet_r50_v2_e200_linear").linear
    v3 = moco.get_config("imagenet_r50_v3_e100_linear").linear
    assert v2.optim.milestones == (60, 80) and v3.optim.milestones == ()
    decay = {"conv1": 1e-4, "conv2": 1e-4, "conv3": 1e-7, "conv4": 1e-4, "conv5": 1e-4}
    for layer, expected in decay.items():
        p = deepcluster.get_config(f"imagenet_alexnet_linear_{layer}").linear
        assert (p.probe.layer, p.optim.weight_decay) == (layer, expected)


@pytest.mark.parametrize("paper", [simclr, moco, byol, deepcluster])
def test_every_pretraining_preset_of_imagenet_has_its_linear_evaluation(paper):
    presets = set(paper.PRESETS)
    other = ("_finetune_", "_linear")
    pretraining = {p for p in presets if p.startswith("imagenet_") and not any(o in p for o in other)}
    assert len(pretraining) >= 5
    assert {f"{p}_linear" for p in pretraining} <= presets


def test_the_head_starts_as_the_authors_does():
    h = np.zeros((2, 400), np.float32)
    for scheme, low, high in (
        ("zeros", 0.0, 0.0),
        ("normal_0.01", 0.0095, 0.0105),
        ("uniform", 0.0275, 0.0302),  # 1 / sqrt(3 * 400) = 0.0289
        ("truncated_normal", 0.0430, 0.0450),  # 0.8796 / sqrt(400) = 0.0440
    ):
        head = models.LinearClassifier(50, scheme=scheme).init(jax.random.key(0), h)["params"]["dense"]
        assert low <= float(np.std(head["kernel"])) <= high, scheme
        assert not np.any(head["bias"])
