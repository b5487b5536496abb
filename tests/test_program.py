"""What verbs share: facts of the data, branches of earlier runs, and the networks of runs on other data."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import deepcluster, deit, detection, segmentation, simclr, supervised
from ssljax import evaluate, models, sharding
from ssljax.config import resolve
from ssljax.data import sources, views
from ssljax.earlier import start_from
from ssljax.program import build, evaluated, fresh_shapes, method_of, open_run, placed, switched_on
from ssljax.results import read
from ssljax.run.checkpoint import Checkpoints
from ssljax.run.folder import RunFolder, facts_of
from ssljax.types import Facts, TrainState
from tests.methods.small import FACTS, assert_close, config_of, names, one_block, shaken

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]


def saved(folder, state):
    checkpoints = Checkpoints(str(folder))
    checkpoints.save(state, {})
    checkpoints.close()


# ------------------------------------------------------------------------------------------ facts


def test_facts_are_read_from_the_data_and_what_a_config_states_is_checked_against_them():
    data = simclr.get_config("digits").unlock().data
    source = sources.load(data, "train")
    assert sources.facts(data, source) == Facts(num_examples=1500, num_classes=10, num_ids=1500)
    part = source.select([0, 1, 1, 900])  # with a repeat; the ids keep their gaps
    assert part.facts == Facts(num_examples=4, num_classes=10, num_ids=901)
    data.num_examples = 1500
    data.num_classes = 10
    assert sources.facts(data, source) == source.facts
    data.num_examples = 1400
    with pytest.raises(
        ValueError, match="data.num_examples=1400, but digits has 1500 examples: leave it at 0"
    ):
        sources.facts(data, source)
    data.num_examples = 0
    data.num_classes = 7
    with pytest.raises(ValueError, match="data.num_classes=7, but digits has 10 classes"):
        sources.facts(data, source)


@pytest.mark.parametrize(
    "method, count, takes",
    [
        ("simclr", 3, 2),
        ("moco", 1, 2),
        ("byol", 3, 2),
        ("supervised", 2, 1),
        ("deit", 2, 1),
        ("deepcluster", 2, 1),
    ],
)
def test_a_view_too_many_or_too_few_is_refused(method, count, takes):
    with one_block():
        c = config_of(method) if method != "deit" else deit.get_config("digits").student
        c = c.copy_and_resolve_references().unlock()
        c.views = {f"view{i}": {} for i in range(count)}
        with pytest.raises(
            ValueError, match=f"config.views draws {count} views of each image, and {method} takes {takes}"
        ):
            method_of(c, FACTS)


# ------------------------------------------------------------------------------------------ earlier runs


def test_a_run_starts_from_the_branches_that_it_names(tmp_path):
    """Encoder and projector are taken with their statistics; the probe, which is not named, starts fresh."""
    with one_block():
        old = config_of("simclr")
        new = config_of("simclr", init_from=str(tmp_path), init_branches=("encoder", "projector"))
        program = build(new, FACTS)
        donor = shaken(program.shapes, 5).replace(step=jnp.int32(3))
        saved(tmp_path, donor)
        fresh = program.init(0)
        state = start_from(program, {})(fresh)
        for name in ("encoder", "projector"):
            assert_close(state.params[name], donor.params[name], rtol=0)
            assert_close(state.model_state[name], donor.model_state[name], rtol=0)
        assert_close(state.params["probe"], fresh.params["probe"], rtol=0)
        assert int(state.step) == 0 and old.model == new.model
        typo = config_of("simclr", init_from=str(tmp_path), init_branches=("encoder", "projecter"))
        with pytest.raises(
            ValueError,
            match="init_branches names 'projecter', and this network has encoder, probe, projector",
        ):
            start_from(build(typo, FACTS), {})(fresh)


@pytest.mark.parametrize("task", [detection, segmentation])
def test_detectors_and_segmentation_take_the_encoder_of_a_run_and_nothing_else(tmp_path, task):
    """A run with other settings is refused with the settings to type."""

    def pretraining(**model):
        c = simclr.get_config("digits").unlock()
        c.data.channels = 3
        c.augment.update(mean=(0.5,) * 3, std=(0.5,) * 3)
        c.model.update(model)
        (tmp_path / "config.json").write_text(c.to_json())
        return method_of(resolve(c), FACTS)

    def task_from(run):
        c = task.get_config("digits").unlock()
        c.init_from = str(run)
        return resolve(c).unlock()

    donor, _ = placed(sharding.make_mesh(), fresh_shapes(pretraining(stem="cifar")), pretraining())
    donor = shaken(donor, 5)
    saved(tmp_path, donor)
    pretraining(stem="imagenet", width=0.5)
    program = build(task_from(tmp_path), FACTS)
    fresh = program.init(0)
    state = start_from(program, {})(fresh)
    assert_close(state.params["encoder"], donor.params["encoder"], rtol=0)
    for name in set(state.params) - {"encoder"}:
        assert_close(state.params[name], fresh.params[name], rtol=0)
    if task is detection:
        assert_close(state.model_state["encoder"], donor.model_state["encoder"], rtol=0)
        assert_close(state.model_state["head"], fresh.model_state["head"], rtol=0)

    wider = task_from(tmp_path)
    wider.model.update(width=0.5, remat="blocks")
    message = r"the two runs must have the same model settings. Train with its settings, --config.model.stem="
    message += "imagenet, or that run with --config.model.stem=cifar$"
    with pytest.raises(ValueError, match=message):
        program = build(wider, FACTS)
        start_from(program, {})(program.shapes)


# ------------------------------------------------------------------------------------------ opening networks


@pytest.fixture
def folder(tmp_path):
    """Seven classes of noise, dark to light: 5 training and 2 test images each."""
    for label in range(7):
        for split, count in (("train", 5), ("test", 2)):
            for i in range(count):
                pixels = np.random.default_rng([label, i]).integers(0, 20, (20, 20, 3)) + 30 * label
                path = tmp_path / "photos" / split / f"class{label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize(
    "method, noted", [("simclr", True), ("deepcluster", True), ("deepcluster", False), ("supervised", False)]
)
def test_a_network_is_judged_on_data_that_it_was_not_trained_on(method, noted, folder, tmp_path):
    """Heads of ten classes and labels of 1500 ids are read as they are in the checkpoint.

    This also holds for an older folder without recorded facts. Protocols that need the old data refuse.
    """
    width = "--config.model.width=0.125"
    papers = {"simclr": simclr, "deepcluster": deepcluster, "supervised": supervised}
    c = papers[method].get_config("digits").unlock()
    c.model.width = 0.125
    run = tmp_path / "run"
    program = build(c.lock(), FACTS)
    state = switched_on(program.init(0))
    if method == "deepcluster":
        state = state.replace(extra=state.extra._replace(assignment=jnp.arange(1500, dtype=jnp.int32) % 5))
    with RunFolder(str(run), program.config, FACTS if noted else None) as opened:
        opened.save(state, {})
    assert facts_of(str(run)) == (FACTS if noted else None)
    argv = [
        f"--config=configs/{method}.py:digits",
        width,
        f"--workdir={run}",
        f"--config.data.source=folder:{folder}",
        "--config.evaluate.knn_k=3",
    ]
    evaluate.main([*argv, "--protocols=knn,linear", "--config.evaluate.linear_l2=0.01"])
    found = {row["protocol"]: row for row in read(run / "results.jsonl") if row["metric"] == "top1"}
    assert found["knn"]["n"] == found["linear_lbfgs"]["n"] == 14
    assert found["knn"]["data"] == "folder:PATH/photos"
    assert found["knn"]["value"] > 40  # even a random network tells dark from light
    refused = {
        "supervised": ("classifier", "tells 10 classes apart, folder:.* has 7"),
        "simclr": ("classifier", "no heads of its own"),
        "deepcluster": ("clusters", "folder:.* is not what it was trained on"),
    }
    protocol, message = refused[method]
    with pytest.raises(SystemExit, match=message):
        evaluate.main([*argv, f"--protocols={protocol}"])


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path):
    with one_block():
        saved(tmp_path, build(config_of("simclr"), FACTS).init(0))
        wider = config_of("simclr", model__width=8 / 64)
        with pytest.raises(
            ValueError, match="is of another network: model_state/encoder/.* is .4,. there and .8,. here"
        ):
            open_run(wider, FACTS, str(tmp_path))


def test_maps_tokens_and_attention_are_those_of_the_average(tmp_path):
    """DeiT keeps a moving average, and evaluation looks at that, not at the weights of the optimizer."""
    c = deit.get_config("digits").student.copy_and_resolve_references().unlock()
    c.distill.name = "none"
    c.ema.decay = 0.9
    c.model.name = "vit_xxs"
    c = resolve(c).lock()
    method = method_of(c, FACTS)
    params, model_state, extra = jax.jit(method.init)(jax.random.key(0), {})
    raw = shaken(params, 1)
    average = shaken(params, 2)
    extra = extra._replace(ema=extra.ema._replace(params=average))
    state = TrainState(step=jnp.int32(0), params=raw, model_state=model_state, opt_state=(), extra=extra)
    run = evaluated(c, FACTS, state, sharding.make_mesh())
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1)), jnp.uint8)
    net = models.backbone(c.model)
    x = views.for_network(image, c.augment)
    attention, tokens = (jax.jit(partial(look, net)) for look in (models.attention, models.tokens))
    look = (average["encoder"], model_state["encoder"], x)
    found = np.asarray(run.tokens(image))
    np.testing.assert_allclose(run.attention(image), attention(*look), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, tokens(*look), rtol=1e-4, atol=1e-5)
    assert np.abs(found - np.asarray(tokens(raw["encoder"], *look[1:]))).max() > 0.1
    assert jax.eval_shape(run.encode, image).shape == (2, 64)


def test_only_the_networks_are_read_from_a_checkpoint(tmp_path):
    """Evaluation does not depend on the optimizer in the config."""
    with one_block():
        wanted = build(config_of("simclr", optim__name="adamw"), FACTS).init(4)
        saved(tmp_path, wanted)
        c = config_of("simclr")
        run = open_run(c, FACTS, str(tmp_path))
        assert_close(run.params, wanted.params, rtol=0)
        assert names(run.params) == names(wanted.params) and run.step == 0
        shapes, places = placed(run.mesh, jax.eval_shape(lambda: wanted), run.method)
        assert jax.tree.structure(shapes) == jax.tree.structure(places)


def test_a_folder_without_recorded_facts_has_none(tmp_path):
    assert facts_of(str(tmp_path)) is None
    old = {"command": ["ssljax", "train"]}  # from before facts were recorded
    (tmp_path / "run.json").write_text(json.dumps(old) + "\n")
    assert facts_of(str(tmp_path)) is None
