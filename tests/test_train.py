"""The training loop within this process: stages, what it refuses, and what it says about an unhealthy run."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssljax
from configs import simclr, supervised
from ssljax import evaluate, sharding, train
from ssljax.data import sampler, sources
from ssljax.program import build, with_seed
from ssljax.protocols.features import raw_pixels
from ssljax.results import read
from ssljax.run import few_labels, monitor, writers
from ssljax.run.checkpoint import Checkpoints, load_parts
from ssljax.run.folder import RunFolder
from ssljax.run.loop import fit, online_knn
from ssljax.run.start import harmless
from ssljax.types import TrainState
from tests.one_block import shrink
from tests.processes import SMALL
from tests.test_loggers import Recorder

pytestmark = pytest.mark.slow


def flags(workdir, *more: str) -> list[str]:
    return [*SMALL, "--config.epochs=1", "--config.optim.warmup_epochs=0", f"--workdir={workdir}", *more]


@pytest.fixture(autouse=True)
def small(monkeypatch, one_device):
    """One block: more makes no difference to what is asserted here."""
    shrink(monkeypatch.setitem)


@pytest.fixture(autouse=True)
def xla_cache(tmp_path_factory):
    """The entry points switch the compilation cache on. Keep it in a folder of this test session."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp() / "xla"))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_stage_starts_from_the_one_before_and_is_skipped_when_done(tmp_path, capsys):
    stage = [
        *("model.width=0.125", "model.stem=imagenet", "data.train_per_class=40"),
        *("epochs=1", "optim.warmup_epochs=0", "eval_every_epochs=0", "log_every=5"),
    ]
    argv = [
        "--config=configs/simclr.py:digits_finetune",
        f"--workdir={tmp_path}",
        "--config.pretrain.batch_size=48",
        "--config.finetune.batch_size=48",
        "--config.finetune.optim.learning_rate=0.0",
        "--config.pretrain.head.dim=16",
        *[f"--config.{name}.{setting}" for name in ("pretrain", "finetune") for setting in stage],
    ]
    train.main(argv)
    config = simclr.get_config("digits_finetune")
    assert config.finetune.init_from == "pretrain"
    with_learning_rate_zero = [read_encoder(tmp_path / name) for name in ("pretrain", "finetune")]
    for a, b in zip(*map(jax.tree.leaves, with_learning_rate_zero), strict=True):
        np.testing.assert_array_equal(a, b)
    evaluate.main(argv)
    rows = {row["metric"]: row for row in read(tmp_path / "finetune" / "results.jsonl")}
    assert rows["top1"]["protocol"] == "classifier" and rows["top1"]["n"] == 297
    # A head of zeros predicts "0" for every image, and 27 of the held-out digits are zeros.
    np.testing.assert_allclose(rows["top1"]["value"], 100 * 27 / 297, atol=1e-3)
    evaluate.main([*argv, "--stage=pretrain", "--protocols=knn"])
    (earlier,) = (row for row in read(tmp_path / "pretrain" / "results.jsonl") if row["metric"] == "top1")
    assert (earlier["features"], earlier["protocol"], earlier["n"]) == ("simclr", "knn", 297)
    with pytest.raises(SystemExit, match="--stage=tune: the stages of this config are pretrain, finetune"):
        evaluate.main([*argv, "--stage=tune"])
    capsys.readouterr()
    train.main(argv)
    assert "step 1" not in capsys.readouterr().out

    assert ssljax.load(str(tmp_path)).config.method == "supervised"  # the last stage
    assert ssljax.load(str(tmp_path), stage="pretrain").config.method == "simclr"
    with pytest.raises(ValueError, match="stage='tune': the stages of .* are pretrain, finetune"):
        ssljax.load(str(tmp_path), stage="tune")
    (tmp_path / "config.json").write_text('{"stages": ["teacher", "finetune"]}')
    with pytest.raises(
        SystemExit, match="holds a run of teacher, finetune, and the stages of this config are"
    ):
        train.main(argv)


@pytest.mark.parametrize(
    "preset, alone", [("digits_finetune", "digits"), ("imagenet_r50_finetune_1pct", "imagenet_r50")]
)
def test_fine_tuning_leaves_the_settings_of_pretraining_alone(preset, alone):
    config = simclr.get_config(preset)
    assert config.pretrain.to_dict() == simclr.get_config(alone).to_dict() | {"preset": preset}
    assert len(config.finetune.views) == 1
    assert config.finetune.augment.jitter_probability == 0.0
    assert config.finetune.optim.nesterov is True


@pytest.mark.parametrize(
    "derive", [lambda c: with_seed(c, 3), lambda c: few_labels.supervised_config(c, 32, 5)]
)
def test_a_derived_config_shares_nothing_with_its_own(derive):
    config = simclr.get_config("digits")
    before = config.to_dict()
    derive(config)
    assert config.to_dict() == before


def read_encoder(workdir):
    import orbax.checkpoint as ocp

    checkpoints = Checkpoints(str(workdir))
    newest = checkpoints.steps()[-1]
    checkpoints.close()
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(checkpoints.directory / str(newest) / "default")["params"]["encoder"]


def test_a_part_of_another_network_is_refused_by_name(tmp_path):
    config = small_config()
    source = sources.load(config.data, "train")
    program = build(config, source.facts)
    state = program.init(0)
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(state, {})
    checkpoints.close()
    wider = jax.tree.map(
        lambda x: jnp.zeros((*x.shape[:-1], x.shape[-1] + 1), x.dtype), state.params["encoder"]
    )
    with pytest.raises(ValueError, match="params/encoder.*the two runs must have the same model settings"):
        load_parts(str(tmp_path), {"params/encoder": wider})
    with pytest.raises(FileNotFoundError, match="train that run first"):
        load_parts(str(tmp_path / "nowhere"), {"params/encoder": wider})
    other = small_config(width=0.25)
    with pytest.raises(ValueError, match="is of another network: .* is \\(8,\\) there and \\(16,\\) here"):
        Checkpoints(str(tmp_path)).restore(build(other, source.facts).shapes)


def small_config(width: float = 0.125):
    c = simclr.get_config("digits").unlock()
    c.batch_size = 32
    c.epochs = 1
    c.optim.warmup_epochs = 0
    c.model.update(width=width, stem="imagenet")
    return c.lock()


@pytest.mark.parametrize("seed", [0, 7])
def test_the_loop_resumes_at_the_step_of_its_state(seed):
    """It runs from step 40 to the end at step 47, with the batches of these steps and this seed."""
    config = small_config()
    source = sources.load(config.data, "train")
    seen = []

    def step(state, batch, key):
        seen.append(np.asarray(batch["index"]))
        return state.replace(step=state.step + 1), {"loss": jnp.float32(0.0)}

    step.memory_analysis = lambda: None
    jitted = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=lambda: step))
    begun = TrainState(step=jnp.int32(40), params={}, model_state={}, opt_state=(), extra=())
    program = build(config, source.facts)._replace(init=lambda seed: begun, step=jitted)
    assert int(fit(program, source, seed=seed).step) == program.total_steps == 47
    expected = [sampler.order(seed, s // 46, 1500)[s % 46 * 32 :][:32] for s in range(40, 47)]
    np.testing.assert_array_equal(seen, expected)


def unlabelled(source, rows):
    labels = source.labels.copy()
    labels[rows] = -1
    return dataclasses.replace(source, labels=labels)


def test_knn_during_training_uses_labelled_images_only():
    """On pixels, which need no network. Half of both splits has no label, so a wrong selection would show."""
    config = small_config()
    source, test = sources.load(config.data, "train"), sources.load(config.data, "test")
    program = build(config, source.facts)._replace(
        encode=lambda params, model_state, extra, image: raw_pixels(image)
    )
    state = TrainState(step=jnp.int32(0), params={}, model_state={}, opt_state=(), extra=())
    half = [unlabelled(split, np.arange(1, len(split), 2)) for split in (source, test)]
    kept = [split.select(np.arange(0, len(split), 2)) for split in (source, test)]
    assert online_knn(program, state, *half) == online_knn(program, state, *kept) > 85


def test_a_method_that_learns_from_labels_names_the_image_that_has_none():
    config = supervised.get_config("digits")
    source = unlabelled(sources.load(config.data, "train"), [7, 900])
    program = build(config, source.facts)
    with pytest.raises(
        ValueError,
        match="method 'supervised' needs labels, and 2 of 1500 train images of digits have none "
        ".first: image 7 of digits, train",
    ):
        fit(program, source, seed=0)
    for method in ("supervised", "deit"):
        config = importlib.import_module(f"configs.{method}").get_config("digits")
        config = config.student if method == "deit" else config
        with pytest.raises(
            ValueError, match=f"{method} learns from labels, and data.source='digits' has none"
        ):
            build(config, unlabelled(source, slice(None)).facts)


def test_a_run_that_an_unreadable_image_ended_may_go_on_without_it(tmp_path):
    assert harmless("data.on_bad_image") and harmless("checkpoint.keep") and not harmless("data.source")
    config = simclr.get_config("folder")
    with RunFolder(str(tmp_path), config, None):
        pass
    changed = config.copy_and_resolve_references().unlock()
    changed.data.on_bad_image = "skip"
    with RunFolder(str(tmp_path), changed, None):
        pass
    changed.data.holdout = 0.2
    with pytest.raises(ValueError, match="another config: data.holdout was 0.1, now 0.2. Use another"):
        RunFolder(str(tmp_path), changed, None)
    with pytest.raises(ValueError, match="It ended before it trained, so you may delete the folder."):
        RunFolder(str(tmp_path), changed, None)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="or the old settings.$"):
        RunFolder(str(tmp_path), changed, None)


def test_a_diverged_run_stops_and_keeps_its_checkpoint(tmp_path):
    with pytest.raises(SystemExit, match=r"step \d+: .*loss = nan.*last good checkpoint is untouched"):
        train.main(flags(tmp_path, "--config.optim.learning_rate=1e30", "--config.checkpoint.every_steps=10"))
    assert 10 not in Checkpoints(str(tmp_path)).steps()


def test_the_monitor_reports_a_collapse(tmp_path, capsys, monkeypatch):
    """With the projector's last gamma at zero, all embeddings are the same vector and have no gradient."""
    monkeypatch.setattr(monitor, "QUIET_STEPS", 1)

    def collapse(state):
        params = jax.tree.map(lambda x: x, state.params)
        params["projector"]["norm2"]["scale"] = jnp.zeros_like(params["projector"]["norm2"]["scale"])
        return state.replace(params=params)

    config = small_config()
    source = sources.load(config.data, "train")
    program = build(config, source.facts)
    folder = RunFolder(str(tmp_path), program.config, program.facts)
    fit(program, source, seed=0, folder=folder, start=collapse)
    folder.close()
    assert "the representations have collapsed" in capsys.readouterr().out


def test_a_healthy_run_gets_no_warnings_and_its_loggers_get_its_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(monitor, "QUIET_STEPS", 1)
    monkeypatch.setitem(writers.WRITERS, "json", Recorder)  # a logger whose package is installed
    monkeypatch.setattr(Recorder, "given", [], raising=False)
    train.main(flags(tmp_path, "--log=json", "--config.checkpoint.every_steps=10"))
    assert Checkpoints(str(tmp_path)).steps()[-1] == 47
    assert "WARNING" not in capsys.readouterr().out
    _, *rows, _ = Recorder.given
    logged = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [(row.pop("step"), row) for row in logged] and rows[-1][1]["epoch"] == 1.0
    metrics = "loss embedding_std alignment uniformity effective_rank grad_norm update_norm learning_rate"
    assert set(metrics.split()) <= set(logged[0])
    assert list((tmp_path / "tensorboard").iterdir())
    run = json.loads((tmp_path / "run.json").read_text().splitlines()[0])
    assert run["commit"] and run["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    "change, message",
    [
        ("--config.batch_size=1504", "1500 examples do not fill one batch of 1504"),
        (
            "--config.method=simclrr",
            "a method's settings come with its own presets, e.g. --config byol:digits",
        ),
        ("--config.data.num_classes=7", "data.num_classes=7, but digits has 10 classes"),
        ("--config.model.name=resnet19", "resnet19"),
    ],
)
def test_wrong_settings_are_answered(tmp_path, change, message):
    with pytest.raises(SystemExit, match=message):
        train.main(flags(tmp_path, change))


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size=30 does not split over 8 devices: use 24 or 32"):
        sharding.check_batch(sharding.make_mesh(8), 30)


def test_one_stage_alone_starts_from_any_run(tmp_path, capsys):
    """`--stage` trains no other, and a run that is named is not trained again for nothing."""
    small = [
        *("model.width=0.125", "data.train_per_class=48", "epochs=1", "eval_every_epochs=0"),
        *("log_every=50", "batch_size=48"),
    ]
    first = [f"--config.{setting}" for setting in small]
    warm = "--config.optim.warmup_epochs=0"
    train.main(["--config=configs/simclr.py:digits", f"--workdir={tmp_path / 'run'}", warm, *first])
    argv = [
        "--config=configs/simclr.py:digits_linear",
        f"--workdir={tmp_path / 'probe'}",
        f"--config.linear.init_from={tmp_path / 'run'}",
        "--config.pretrain.optim.warmup_epochs=0",
        *[f"--config.{name}.{setting}" for name in ("pretrain", "linear") for setting in small],
    ]
    with pytest.raises(SystemExit, match="not from pretrain, which would be trained first. Add --stage lin"):
        train.main(argv)
    with pytest.raises(SystemExit, match="--stage=probe: the stages of this config are pretrain, linear"):
        train.main([*argv, "--stage=probe"])
    assert not (tmp_path / "probe" / "pretrain").exists()

    train.main([*argv, "--stage=linear"])
    assert not (tmp_path / "probe" / "pretrain").exists()
    probed, donor = (ssljax.load(str(tmp_path / name)) for name in ("probe", "run"))
    images = sources.load(donor.config.data, "test").images[:5]
    np.testing.assert_array_equal(probed.encode(images), donor.encode(images))
    assert probed.classify(images).shape == (5, 10)

    evaluate.main(argv)
    (row,) = (row for row in read(tmp_path / "probe" / "linear" / "results.jsonl") if row["metric"] == "top1")
    assert (row["features"], row["protocol"], row["n"]) == ("linear", "probe", 297)
    assert row["settings"]["recipe"] == "simclr" and row["settings"]["test_crops"] == 1
