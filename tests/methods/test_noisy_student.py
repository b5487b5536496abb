"""Noisy Student: its loss by hand, its labels against the teacher itself, its stages on the digits."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.noisy_student import NETS, PRESETS, get_config
from ssljax import models, sharding
from ssljax.config import resolve, stages
from ssljax.data import loader, sources, views
from ssljax.methods import METHODS
from ssljax.models import efficientnet
from ssljax.program import build, epoch_of
from ssljax.run import refresh
from ssljax.run.loop import refreshed
from ssljax.targets.frozen import Frozen
from ssljax.types import Facts
from tests.methods.small import batch_of, blank, positive, shaken

FACTS = Facts(num_examples=1500, num_classes=10, num_ids=1500, num_unlabelled=1450)
KEY = jax.random.key(5)


@pytest.fixture(scope="module", autouse=True)
def three_stages():
    """EfficientNets of three stages; these tests look at what surrounds the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, "STAGES", efficientnet.STAGES[:3])
        yield


def a_config(**changes):
    c = get_config("digits").unlock().student
    c.batch_size = 8
    c.data.image_size = 16
    for section in (c.model, c.teacher):
        section.update(width=0.5, dropout=0.0, drop_path=0.0)
    c.augment.update(crop="none", policy="none")
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c).lock()


def a_method(**changes):
    config = a_config(**changes)
    return config, METHODS["noisy_student"](config, FACTS)


def mixed_batch():
    label = np.array([3, 9, -1, -1, -1, -1, -1, -1], np.int32)
    return {**batch_of(8, size=16), "label": label}


@pytest.fixture(scope="module")
def start():
    config, method = a_method()
    params, model_state, extra = jax.jit(method.init)(jax.random.key(0), {})
    rng = np.random.default_rng(1)
    q = rng.random((1500, 10)).astype(np.float32)
    labels = extra.labels._replace(probabilities=q / q.sum(1, keepdims=True))
    return config, params, model_state, extra._replace(labels=labels)


@pytest.fixture(scope="module")
def log_p(start):
    """The student's logarithms of the probabilities of the mixed batch."""
    config, params, model_state, _ = start

    @jax.jit
    def scores(batch):
        x = views.stacked(batch, KEY, config)[:, 0]
        net = models.backbone(config.model)
        h, _ = models.forward(net, params["encoder"], model_state["encoder"], x)
        return models.logits(params["head"], h)

    z = np.asarray(scores(mixed_batch()), np.float64)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("weighting", ["ratio", "mean"])
def test_the_loss_by_hand(start, log_p, kind, weighting):
    """Labelled rows are smoothed; soft labels are not; the sum is that of the code or the paper's mean."""
    _, params, model_state, extra = start
    _, method = a_method(pseudo__kind=kind, pseudo__weighting=weighting)
    batch = mixed_batch()
    found, out = jax.jit(method.loss)(params, model_state, extra, batch, KEY, jnp.int32(0))

    smooth = lambda one_hot: 0.9 * one_hot + 0.01
    of_labels = -(smooth(np.eye(10)[[3, 9]]) * log_p[:2]).sum(1)
    q = np.asarray(extra.labels.probabilities)[np.asarray(batch["index"])[2:]]
    target = q if kind == "soft" else smooth(np.eye(10)[q.argmax(1)])
    of_teacher = -(target * log_p[2:]).sum(1)
    if weighting == "ratio":
        expected = of_labels.mean() + 3 * of_teacher.mean()
    else:
        expected = np.concatenate([of_labels, of_teacher]).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(out.metrics["unlabelled_loss"], of_teacher.mean(), rtol=1e-5)


@pytest.mark.slow
def test_without_unlabelled_images_it_is_supervised(start, log_p):
    config, params, model_state, _ = start
    c = config.copy_and_resolve_references().unlock()
    c.pseudo.ratio = 0
    method = METHODS["noisy_student"](c, FACTS)
    assert method.refresh is None and method.balance is None and method.needs_labels
    batch = {**mixed_batch(), "label": np.arange(8, dtype=np.int32)}
    extra = shaken(jax.eval_shape(method.init, KEY, {})[2], 3)
    found, _ = jax.jit(method.loss)(params, model_state, extra, batch, KEY, jnp.int32(0))
    expected = -((0.9 * np.eye(10)[:8] + 0.01) * log_p).sum(1).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_teacher_of_another_size_sees_the_crop_of_that_size(monkeypatch):
    asked = []
    monkeypatch.setattr(refresh.loader, "eval_batches", lambda _, c, **rest: asked.append(c.data) or [])
    c = a_config(data__image_size=475, data__eval_crop=475 / 507)
    run = refresh.Run(SimpleNamespace(mesh=sharding.make_mesh(1), config=c), [], 0, None, None)
    for size in (800, 0):
        assert not list(run.looked(None, np.arange(4), size=size))
    assert [data.image_size for data in asked] == [800, 475]
    assert [data.eval_crop for data in asked] == pytest.approx([800 / 832, 475 / 507])


@pytest.mark.slow
def test_labels_are_the_teachers_own_without_noise_and_are_made_once():
    """Softmax of its logits on the evaluation crops, by the id of the image, whatever the student is."""
    small = {"name": "resnet8", "width": 0.125, "stem": "imagenet"}
    networks = {f"{part}__{key}": value for part in ("model", "teacher") for key, value in small.items()}
    c = a_config(**networks).copy_and_resolve_references().unlock()
    c.pseudo.update(threshold=0.2, per_class=30)
    c.data.train_per_class = 20
    source = sources.load(c.data, "train")
    program = build(c, source.facts)
    state = blank(program)
    teacher = shaken(state.extra.teacher, 1)
    shaken_teacher = Frozen(teacher.params, positive(teacher.model_state))
    state = state.replace(extra=state.extra._replace(teacher=shaken_teacher))
    after = refreshed(program, source, state, 0, None)

    positions = np.flatnonzero(source.labels < 0)[:40]
    (batch,) = loader.eval_batches(source, c, batch_size=40, positions=positions)
    net = models.backbone(c.teacher)

    @jax.jit
    def by_hand(teacher, images):
        x = views.for_network(images, c.augment)
        h = models.infer(net, teacher.params["encoder"], teacher.model_state["encoder"], x)
        return jax.nn.softmax(models.logits(teacher.params["head"], h))

    expected = by_hand(shaken_teacher, batch["image"])
    assert not after.extra.labels.probabilities.sharding.is_fully_replicated
    found = np.asarray(after.extra.labels.probabilities)
    np.testing.assert_allclose(found[source.index[positions]], expected, rtol=2e-3, atol=1e-5)
    assert not found[source.index[source.labels >= 0]].any()
    copies = np.asarray(after.extra.labels.copies)
    assert not copies[source.index[source.labels >= 0]].any() and copies.sum() > 0

    later = after.replace(step=after.step + program.steps_per_epoch)
    assert refreshed(program, source, later, 0, None) is later

    # Of the three largest alone, the same images are taken as often.
    c.pseudo.top = 3
    few = build(c, source.facts)
    labels = blank(few).extra.labels
    after = refreshed(few, source, state.replace(extra=state.extra._replace(labels=labels)), 0, None)
    np.testing.assert_array_equal(after.extra.labels.copies, copies)
    ids = source.index[source.labels < 0]
    np.testing.assert_array_equal(after.extra.labels.probabilities[ids], -np.sort(-found[ids])[:, :3])
    np.testing.assert_array_equal(after.extra.labels.classes[ids, 0], found[ids].argmax(1))


def test_epochs_are_counted_on_the_images_that_the_config_names():
    _, method = a_method()
    assert epoch_of(method, FACTS, 8) == (1450, 6)
    _, method = a_method(pseudo__epochs_of="labelled")
    assert epoch_of(method, FACTS, 8) == (50, 2)
    with pytest.raises(ValueError, match="the data have 1500 and 0 of them: hide some labels"):
        epoch_of(method, FACTS._replace(num_unlabelled=0), 8)


def test_a_batch_of_both_kinds_is_not_cut_into_pieces():
    """The labelled images come first, so a piece has another ratio, and its loss is another mean."""
    assert not a_method()[1].separable
    assert a_method(pseudo__ratio=0)[1].separable


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="batch_size=10 does not split .* choose a multiple of 4"):
        a_method(batch_size=10)
    with pytest.raises(
        ValueError, match="config.pseudo.top=11 is more than the 10 classes: 0 keeps them all"
    ):
        a_method(pseudo__top=11)
    with pytest.raises(ValueError, match="config.pseudo.kind='firm' is unknown. Use 'soft' or 'hard'."):
        a_method(pseudo__kind="firm")


def test_the_papers_recipes():
    """Steps count labelled images: 350 epochs at batch 2048 are 218,949 steps on all labels."""
    for name, net in NETS.items():
        c = get_config(f"imagenet_{name}_10pct")
        first, second = c.teacher, c.student
        assert first.data.image_size == net.size and first.data.eval_crop == net.size / (net.size + 32)
        assert second.batch_size == 2048 * (1 + net.ratio)
        rate = second.optim.learning_rate * second.batch_size / 256
        np.testing.assert_allclose(rate, 0.128, rtol=1e-6)
        np.testing.assert_allclose(second.optim.decay_epochs, 2.4 * net.epochs / 350)
        assert second.ema.decay == 0.9999 and second.pseudo.epochs_of == "labelled"
    facts = Facts(num_examples=2_562_334, num_classes=1000, num_ids=2_562_334, num_unlabelled=1_281_167)
    b7 = get_config("imagenet_b7_10pct").student
    examples, rows = epoch_of(METHODS["noisy_student"](b7, facts), facts, b7.batch_size)
    assert (examples * 350) // rows == 218_949


def test_every_preset_is_there():
    for preset in PRESETS:
        found = stages(get_config(preset))
        assert all(stage.method == "noisy_student" for stage in found.values())
    assert list(stages(get_config("fashion_mnist_1pct_two_rounds"))) == ["teacher", "student", "student2"]


@pytest.mark.slow
def test_frozen_blocks_do_not_move_and_are_not_decayed():
    c = a_config().copy_and_resolve_references().unlock()
    c.pseudo.ratio = 0
    c.model.frozen_blocks = 2
    c.optim = {"name": "tf_rmsprop", "weight_decay": 0.5, "warmup_epochs": 0, "learning_rate": 1.0}
    c = resolve(c)
    program = build(c, FACTS._replace(num_unlabelled=0))
    params = shaken(program.shapes.params, 1)
    zeros = blank(program).params
    update = jax.jit(lambda zeros, params: program.tx.update(zeros, program.tx.init(params), params))
    updates, _ = update(zeros, params)
    for branch, leaf in updates["encoder"].items():
        moved = any(np.any(x) for x in jax.tree.leaves(leaf))
        frozen = branch in ("stem_conv", "stem_norm", "stage1_block1", "stage2_block1")
        assert moved == (not frozen and not branch.endswith("norm")), branch
