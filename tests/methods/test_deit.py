"""DeiT: what the loss is made of, which head counts, and what a stage takes over from earlier ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.deit import PRESETS, get_config
from ssljax import models, optim
from ssljax.config import resolve
from ssljax.data import sources
from ssljax.earlier import start_from
from ssljax.methods import METHODS
from ssljax.methods.deit import DeitState, joint
from ssljax.program import build, stages
from ssljax.run.checkpoint import Checkpoints
from ssljax.targets.ema import Ema
from ssljax.targets.frozen import Frozen
from ssljax.types import TrainState
from tests.methods.small import FACTS, SIZE, batch_of, one_block, shaken, watched

pytestmark = pytest.mark.slow

CLASSES = 4


def student(**changes):
    """The student of the digits on images of 8 pixels, with one residual block for a teacher."""
    c = get_config("digits").student.unlock()
    c.data.image_size = SIZE
    c.augment.update(crop="none", jitter_probability=0.0)
    c.model.update(name="vit_xxs", drop_path=0.0)
    c.teacher.update(name="one_block", width=4 / 64, stem="cifar")
    c.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    return resolve(c).lock()


def built(**changes):
    """Method, random state and batch."""
    with one_block():
        c = student(**changes)
        method = METHODS["deit"](c, FACTS._replace(num_classes=CLASSES))
        params, model_state, extra = jax.eval_shape(method.init, jax.random.key(0), {})
    batch = batch_of(8)
    batch["label"] = np.asarray(batch["label"]) % CLASSES
    if extra.teacher:
        teacher = Frozen(shaken(extra.teacher.params, 2), ones(extra.teacher.model_state))
        extra = extra._replace(teacher=teacher)
    if extra.ema:
        extra = extra._replace(ema=Ema(shaken(extra.ema.params, 3), model_state))
    return method, (shaken(params, 1), model_state, extra), batch


def ones(tree):
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), tree)


def dense(head, h):
    return np.asarray(h) @ np.asarray(head["dense"]["kernel"]) + np.asarray(head["dense"]["bias"])


def logits(params, tokens):
    return dense(params["head"], tokens[:, 0]), dense(params["distillation_head"], tokens[:, 1])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def seen(monkeypatch):
    """What the student and the teacher see, and what they make of it."""
    found = {}
    forward = models.forward
    infer = models.infer

    def student_pass(net, params, statistics, x, **rest):
        out = forward(net, params, statistics, x, **rest)
        found.update(student=x, tokens=out[0])
        return out

    def teacher_pass(net, params, statistics, x, **rest):
        out = infer(net, params, statistics, x, **rest)
        found.update(teacher=x, features=out)
        return out

    monkeypatch.setattr(models, "forward", student_pass)
    monkeypatch.setattr(models, "infer", teacher_pass)
    return found


def test_hard_distillation_of_a_mixed_image_by_numpy(seen):
    """Half comes from the mixed, smoothed label at the class token.

    The other half comes from the teacher's decision on the same mixed image at the distillation token.
    """
    method, (params, model_state, extra), batch = built(mix__mixup_alpha=0.8, mix__cutmix_alpha=0.0)
    key = jax.random.key(5)
    value, out = watched(seen, method.loss)(params, model_state, extra, batch, key, jnp.int32(0))
    np.testing.assert_array_equal(seen["teacher"], seen["student"])

    # lambda follows from the pixels, which are a mixture of a row and its mirror.
    x = np.asarray(seen["student"])
    plain = np.asarray(batch["image"], np.float32) / 255
    difference = plain - plain[::-1]
    lam = float((difference * (x - plain[::-1])).sum() / (difference**2).sum())
    np.testing.assert_allclose(x, lam * plain + (1 - lam) * plain[::-1], atol=1e-5)
    y = np.eye(CLASSES)[batch["label"]] * 0.9 + 0.1 / CLASSES
    y = lam * y + (1 - lam) * y[::-1]
    z, token = logits(params, seen["tokens"])
    decision = np.argmax(dense(extra.teacher.params["head"], seen["features"]), -1)
    expected = -0.5 * (y * np.log(softmax(z))).sum(-1) - 0.5 * np.log(softmax(token))[np.arange(8), decision]
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["agreement"], (token.argmax(-1) == decision).mean(), rtol=1e-6)


@pytest.mark.parametrize("normalization, scale", [("paper", 1), ("code", CLASSES)])
def test_soft_distillation_without_a_token_by_numpy(seen, normalization, scale):
    """Both terms are at the class head. The labels are smoothed without mixing too."""
    method, (params, model_state, extra), batch = built(
        model__distillation=False,
        distill__name="soft",
        distill__alpha=0.1,
        distill__normalization=normalization,
        mix__mixup_alpha=0.0,
        mix__cutmix_alpha=0.0,
    )
    loss = watched(seen, method.loss)
    value, _ = loss(params, model_state, extra, batch, jax.random.key(0), jnp.int32(0))
    z = dense(params["head"], seen["tokens"])
    t = dense(extra.teacher.params["head"], seen["features"])
    p = softmax(t / 3)
    log_s = np.log(softmax(z / 3))
    kl = (p * (np.log(p) - log_s)).sum(-1) / scale
    y = np.eye(CLASSES)[batch["label"]] * 0.9 + 0.1 / CLASSES
    base = -(y * np.log(softmax(z))).sum(-1)
    np.testing.assert_allclose(value, np.mean(0.9 * base + 0.1 * 9 * kl), rtol=2e-5)


def test_without_a_teacher_the_second_head_learns_nothing():
    method, (params, model_state, extra), batch = built(distill__name="none")
    assert extra == ((), ())
    loss = lambda p: method.loss(p, model_state, extra, batch, jax.random.key(0), jnp.int32(0))[0]
    grads = jax.jit(jax.grad(loss))(params)
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(grads["distillation_head"]))
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(grads["head"]))


def test_fine_tuning_in_evaluation_mode_trains_the_mean_of_two_heads_without_stochastic_depth():
    """As DeiT's code fine-tuned: model.eval(), whose output is one tensor, and labels alone."""
    settings = dict(distill__name="none", model__drop_path=0.5, mix__mixup_alpha=0.0, mix__cutmix_alpha=0.0)
    method, (params, model_state, extra), batch = built(evaluation_mode=True, **settings)
    loss = lambda p, key: method.loss(p, model_state, extra, batch, key, jnp.int32(0))[0]
    both = jax.jit(jax.value_and_grad(loss))
    value, grads = both(params, jax.random.key(0))
    np.testing.assert_array_equal(both(params, jax.random.key(1))[0], value)
    assert method.separable

    @jax.jit
    def scores(p):
        return method.classify(p, extra, method.encode(p, model_state, extra, batch["image"]))["classifier"]

    y = np.eye(CLASSES)[batch["label"]] * 0.9 + 0.1 / CLASSES
    expected = -(y * np.log(softmax(np.asarray(scores(params))))).sum(-1)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(grads["distillation_head"]))

    training, _, _ = built(evaluation_mode=False, **settings)
    loss = jax.jit(lambda p, key: training.loss(p, model_state, extra, batch, key, jnp.int32(0))[0])
    assert float(loss(params, jax.random.key(0))) != float(loss(params, jax.random.key(1)))


def test_the_presets_of_table_10():
    """They fine-tune in evaluation mode; the best has 1000 epochs at 224 pixels, then 30 at 384."""
    best = get_config("imagenet_b_distilled_e1000_384")
    assert (best.train.epochs, best.finetune.epochs, best.finetune.data.image_size) == (1000, 30, 384)
    assert best.finetune.evaluation_mode and not best.train.evaluation_mode
    assert [get_config(f"imagenet_b_distilled_e{n}").epochs for n in (500, 800)] == [500, 800]
    assert get_config("imagenet_b_384").finetune.evaluation_mode


def test_the_released_codes_prediction(golden):
    g = golden("arch_vit").under("deit_distilled")
    z = jnp.asarray(g["train_cls_logits"])
    token = jnp.asarray(g["train_dist_logits"])
    np.testing.assert_allclose(joint(z, token, "code"), g["eval_logits"], rtol=1e-4, atol=1e-5)


def test_averages_of_logits_and_of_probabilities_may_disagree():
    """Pitfall 1. The means of the logits are 0, 1/2, -1, which is the second class.

    One head is sure of the third class, which leaves it half of the averaged probability.
    """
    z = jnp.array([[0.0, 1.0, -20.0]])
    token = jnp.array([[0.0, 0.0, 18.0]])
    np.testing.assert_allclose(joint(z, token, "code"), [[0.0, 0.5, -1.0]])
    both = (softmax(np.asarray(z)) + softmax(np.asarray(token))) / 2
    np.testing.assert_allclose(np.exp(joint(z, token, "paper")), both, rtol=1e-4)
    assert joint(z, token, "code").argmax() == 1 and joint(z, token, "paper").argmax() == 2


def test_encode_and_classify_read_both_tokens_of_the_average():
    """Features are both tokens. If a moving average is kept, its network and its heads are used."""
    method, (params, model_state, extra), batch = built(ema__decay=0.5)
    chex.assert_trees_all_equal(extra.ema.model_state, model_state)
    after = jax.jit(method.update)(extra, params, model_state, jnp.int32(0))
    halfway = jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, extra.ema.params, params)
    chex.assert_trees_all_close(after.ema.params, halfway, rtol=1e-6)
    chex.assert_trees_all_equal(after.teacher, extra.teacher)
    features = jax.jit(method.encode)(params, model_state, after, batch["image"])
    chex.assert_shape(features, (8, 64))
    raw = METHODS["deit"](student(distill__name="none"), FACTS._replace(num_classes=CLASSES))
    same = jax.jit(raw.encode)(after.ema.params, model_state, DeitState((), ()), batch["image"])
    np.testing.assert_allclose(features, same, rtol=1e-5, atol=1e-6)
    heads = jax.jit(method.classify)(params, after, features)
    z, token = logits(after.ema.params, np.asarray(features).reshape(8, 2, 32))
    np.testing.assert_allclose(heads["classifier_class_token"], z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(heads["classifier_distillation_token"], token, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(heads["classifier"], (z + token) / 2, rtol=1e-4, atol=1e-4)
    assert next(iter(heads)) == "classifier"


def saved(folder, state):
    checkpoints = Checkpoints(str(folder))
    checkpoints.save(state, {})
    checkpoints.close()


def test_a_larger_stage_takes_network_heads_and_teacher_and_resizes_the_positions(tmp_path):
    """4 positions become 16; the class and the distillation token keep theirs to the last bit.

    The running statistics of the teacher come along.
    """
    with one_block():
        small = student()
        large = student(
            data__image_size=2 * SIZE,
            batch_size=8,
            init_from="small",
            ema__decay=0.5,
            init_branches=("encoder", "head", "distillation_head"),
        )
        source = sources.load(large.data, "train")
        program = build(large, source.facts)
        params, model_state, extra = jax.eval_shape(METHODS["deit"](small, FACTS).init, jax.random.key(7), {})
        teacher = Frozen(shaken(extra.teacher.params, 3), shaken(extra.teacher.model_state, 4))
    donor = TrainState(jnp.int32(3), shaken(params, 5), model_state, (), DeitState((), ()))
    saved(tmp_path / "small", donor)
    saved(tmp_path / "teacher", TrainState(jnp.int32(3), teacher.params, teacher.model_state, (), ()))
    start = start_from(program, {name: str(tmp_path / name) for name in ("small", "teacher")})
    state = start(program.init(0))
    old = donor.params["encoder"].pop("positions")
    new = state.params["encoder"].pop("positions")
    np.testing.assert_array_equal(new[:, :2], old[:, :2])
    chex.assert_shape([new, old], [(1, 2 + 16, 32), (1, 2 + 4, 32)])
    resize = jax.jit(lambda x: models.resize_positions(x, (4, 4), extra_tokens=2))
    np.testing.assert_allclose(new, resize(old), rtol=1e-6)
    chex.assert_trees_all_equal(state.params, donor.params)
    chex.assert_trees_all_equal(state.extra.teacher, teacher)
    np.testing.assert_array_equal(state.extra.ema.params["encoder"]["positions"], new)
    shardings = lambda tree: [leaf.sharding for leaf in jax.tree.leaves(tree)]
    assert shardings(program.shapes.extra) == shardings(state.extra)


def test_a_teacher_of_other_classes_or_none_at_all_is_refused(tmp_path):
    with one_block():
        c = student(batch_size=8)
        program = build(c, sources.load(c.data, "train").facts)
        orphan = METHODS["deit"](student(distill__teacher=""), FACTS)
    state = program.init(0)
    with pytest.raises(ValueError, match="config.distill.teacher is empty"):
        orphan.adopt(state, None)
    frozen = jax.tree.map(np.asarray, state.extra.teacher)
    frozen.params["head"]["dense"]["kernel"] = np.zeros((4, 7), np.float32)
    saved(tmp_path / "teacher", TrainState(jnp.int32(3), frozen.params, frozen.model_state, (), ()))
    with pytest.raises(ValueError, match=r"params/head/dense/kernel is \(4, 7\)"):
        start_from(program, {"teacher": str(tmp_path / "teacher")})(state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"distill__name": "hrad"}, "distill.name='hrad' is unknown"),
        ({"inference": "sum"}, "inference='sum' is unknown"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with one_block(), pytest.raises(ValueError, match=message):
        METHODS["deit"](student(**change), FACTS)


def test_every_preset_is_a_method_and_only_what_draws_nothing_is_separable():
    separable = []
    for preset in PRESETS:
        for name, config, _ in stages(get_config(preset), ""):
            method = METHODS["deit"](config, FACTS)
            separable += [(preset, name)] if method.separable else []
    in_evaluation_mode = ("imagenet_b_ablation_no_mixing", "finetune")  # without stochastic depth
    assert separable == [("digits", "teacher"), ("cifar10_teacher", ""), in_evaluation_mode]


def test_presets_are_the_papers_tables():
    """Tables 3, 8, 9 and 10: what the names promise, and that no two stages or sections share settings."""
    b = get_config("imagenet_b")
    assert (b.epochs, b.batch_size, b.data.repeats) == (300, 1024, 3)
    assert (b.optim.weight_decay, b.model.drop_path) == (0.05, 0.1)
    assert optim.scaled_learning_rate(b.optim.learning_rate, b.optim.scaling, 1024) == pytest.approx(1e-3)
    assert (b.mix.mixup_alpha, b.mix.cutmix_alpha, b.mix.label_smoothing) == (0.8, 1.0, 0.1)
    assert b.augment.erasing_probability == 0.25

    kinds = {kind: get_config(f"imagenet_s{kind}") for kind in ("", "_soft", "_hard", "_distilled")}
    taught = [(c.distill.name, c.model.distillation) for c in kinds.values()]
    assert taught == [("none", False), ("soft", False), ("hard", False), ("hard", True)]
    assert [kinds[kind].distill.alpha for kind in ("_soft", "_hard", "_distilled")] == [0.1, 0.5, 0.5]

    both = get_config("imagenet_b_distilled_384")
    assert both.stages == ("train", "finetune")
    assert (both.train.data.image_size, both.finetune.data.image_size) == (224, 384)
    assert both.finetune.optim.learning_rate * 512 / 256 == both.finetune.optim.end == 5e-6
    assert both.train.optim.weight_decay == 0.05

    off = get_config("imagenet_b_ablation_no_mixing")
    assert off.train.mix.mixup_alpha == off.finetune.mix.cutmix_alpha == 0 and b.mix.mixup_alpha == 0.8
    only = get_config("imagenet_b_ablation_sgd_finetune")
    assert (only.train.optim.name, only.finetune.optim.name) == ("timm_adamw", "timm_sgd")
    jitter = get_config("imagenet_b_ablation_no_randaugment").train.augment
    assert (jitter.policy, jitter.jitter_probability, jitter.jitter_hue) == ("none", 1.0, 0.0)
    assert 0.8 * jitter.jitter_strength == pytest.approx(0.3)
    for preset in PRESETS:
        c = get_config(preset)
        for stage in [c[name] for name in c.stages] if "stages" in c else [c]:
            assert (stage.name, stage.preset) == ("deit", preset)
            if stage.augment.policy != "none":
                assert stage.augment.jitter_probability == 0 and stage.data.crop_on == "host", preset
    stds = {preset: get_config(preset).head.std for preset in ("imagenet_b", "imagenet_regnety_16gf")}
    assert stds == {"imagenet_b": 0.02, "imagenet_regnety_16gf": 0.01}
    for student, teacher in (
        ("cifar10_small_hard", "cifar10_teacher"),
        ("imagenet_b_distilled", "imagenet_regnety_16gf"),
    ):
        inside = get_config(student).teacher.to_dict()
        run = get_config(teacher).model.to_dict()
        assert inside | {"drop_path": 0.0} == run | {"drop_path": 0.0}, student
    digits = get_config("digits")
    assert digits.student.teacher.name == digits.teacher.model.name == "resnet8"
    assert digits.student.distill.teacher == "teacher"
