"""`ssljax convert`: from files to checkpoints that evaluation and other runs start from, and back."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from configs.linear import get_config as linear_config
from configs.moco import get_config as moco_config
from configs.supervised import get_config
from ssljax import __main__ as console
from ssljax import convert, models
from ssljax.config import resolve
from ssljax.convert import regnet, weights
from ssljax.convert.__main__ import export_weights, import_weights, main
from ssljax.earlier import start_from
from ssljax.program import build
from ssljax.run.checkpoint import Checkpoints
from ssljax.run.folder import RunFolder
from tests.convert.foreign import like
from tests.methods.small import FACTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

FLAGS = ["--config=configs/supervised.py:digits", "--config.model.name=regnety_xs"]


def regnet_config():
    config = get_config("digits").copy_and_resolve_references().unlock()
    config.model.name = "regnety_xs"
    return resolve(config).lock()


def with_vit(**changes):
    """The small ViT of MoCo v3's digits preset, trained on labels, with learned positions."""
    config = moco_config("digits_vit_v3").copy_and_resolve_references().unlock()
    config.method = "supervised"
    config.views = dict(one=dict())
    config.model.update({"positions": "learned", "frozen_patch": False, "scan": True, **changes})
    return resolve(config).lock()


def random_state(config, family):
    """Random weights of this network, as a file has them and as our tree."""
    net = models.backbone(config.model)
    tree = filled(like(net, jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32), 10, "head"))
    return weights.dump(tree, family), tree


def filled(shapes):
    """Random arrays of these shapes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.6, leaf.shape).astype(leaf.dtype), shapes)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A folder with a file of random weights and the run that the command made of it.

    Also the config, the weights as in the file and the weights as our tree.
    """
    folder = tmp_path_factory.mktemp("convert")
    config = regnet_config()
    state, tree = random_state(config, regnet.TORCHVISION)
    save_file(state, folder / "regnet.safetensors")
    main([*FLAGS, f"--workdir={folder / 'run'}", f"--from={folder / 'regnet.safetensors'}"])
    return folder, config, state, tree


def test_a_file_becomes_a_checkpoint_that_predicts(imported):
    folder, config, _, tree = imported
    program = build(config, FACTS)
    state = Checkpoints(str(folder / "run"), read_only=True).restore(program.shapes)
    assert int(state.step) == 0 and (folder / "run" / "run.json").exists()
    assert_equal({"params": state.params, "model_state": state.model_state}, tree)
    image = jnp.asarray(np.random.default_rng(1).integers(0, 256, (2, 16, 16, 1)).astype(np.uint8))
    net = models.backbone(config.model)
    params = tree["params"]["encoder"]
    statistics = tree["model_state"]["encoder"]
    h = np.asarray(jax.jit(partial(models.infer, net))(params, statistics, np.float32(image) / 255))
    head = tree["params"]["head"]["dense"]
    features = program.encode(state.params, state.model_state, state.extra, image)
    found = program.method.classify(state.params, state.extra, features)["classifier"]
    np.testing.assert_allclose(found, h @ head["kernel"] + head["bias"][None], rtol=1e-4, atol=1e-5)


def started(config, folder):
    """The fresh state of a run with `init_from=folder`, and the same state after it took the weights."""
    config = config.copy_and_resolve_references().unlock()
    config.init_from = folder
    config.init_branches = ("encoder",)
    program = build(config.lock(), FACTS)
    return program.shapes, start_from(program, {})(program.shapes)


def test_another_run_starts_with_its_encoder(imported):
    folder, config, _, tree = imported
    fresh, state = started(config, str(folder / "run"))
    assert_equal(state.params["encoder"], tree["params"]["encoder"])
    assert_equal(state.model_state, tree["model_state"])
    assert state.params["head"] is fresh.params["head"]


def test_a_linear_probe_freezes_converted_weights_and_is_written_with_them(imported, tmp_path):
    folder, config, state, tree = imported
    probe = linear_config("digits").copy_and_resolve_references().unlock()
    probe.model = config.model.copy_and_resolve_references()
    probe.init_from = str(folder / "run")
    program = build(resolve(probe).lock(), FACTS)
    probed = start_from(program, {})(jax.device_put(filled(program.shapes)))
    assert_equal(probed.extra.params["encoder"], tree["params"]["encoder"])
    assert_equal(probed.extra.model_state, tree["model_state"])

    with RunFolder(str(tmp_path), program.config, FACTS) as run:
        run.save(probed, {})
    export_weights(program.config, str(tmp_path), str(tmp_path / "probe.safetensors"))
    again = load_file(tmp_path / "probe.safetensors")
    assert set(again) == set(state)
    assert_equal(
        {k: v for k, v in again.items() if "fc" not in k}, {k: state[k] for k in again if "fc" not in k}
    )


def test_the_file_that_is_written_is_the_one_that_was_read_and_the_map_is_printed(imported, capsys):
    folder, _, state, _ = imported
    main([*FLAGS, f"--workdir={folder / 'run'}", f"--to={folder / 'again.safetensors'}"])
    printed = capsys.readouterr().out
    again = load_file(folder / "again.safetensors")
    assert set(again) == set(state)
    assert_equal(again, state)
    assert "fc.weight [10, 32] -> params/head/dense/kernel\n" in printed
    assert "stem.1.running_var [16] -> model_state/encoder/stem_norm/var\n" in printed
    assert f"{len(state)} arrays to {folder / 'again.safetensors'}" in printed


@pytest.mark.parametrize(
    "more, message",
    [
        (["--workdir={run}", "--from={file}"], "run already has a checkpoint, of step 0: use another folder"),
        (
            ["--workdir={new}", "--from={file}", "--config.data.num_classes=7"],
            "its head has 10 classes, this configuration 7",
        ),
        (
            [
                "--workdir={new}",
                "--from={file}",
                "--config.model.name=resnet8",
                "--config.model.shortcut=torchvision",
            ],
            "the file has no 'layer1.0.conv1.weight'",
        ),
        (
            ["--workdir={new}", "--from={file}", "--config.model.name=resnet8"],
            "config.model.shortcut is 'simclr'",
        ),
        (["--workdir={new}", "--from={new}.safetensors"], "no file .*new.safetensors"),
        (["--workdir={new}", "--to={new}.safetensors"], "no checkpoint in"),
        (["--workdir={new}"], "say either --from=FILE.safetensors"),
        (["--workdir={new}", "--from={file}", "--to={file}"], "say either --from=FILE.safetensors"),
        (
            ["--config=configs/simclr.py:digits", "--workdir={new}", "--from={file}"],
            r"method 'simclr' keeps more .*\(probe, projector\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(imported, more, message):
    folder, *_ = imported
    words = {"run": folder / "run", "new": folder / "new", "file": folder / "regnet.safetensors"}
    argv = [word.format(**words) for word in more]
    with pytest.raises(SystemExit, match=f"ssljax convert: .*{message}"):
        main(argv if argv[0].startswith("--config=") else [*FLAGS, *argv])
    assert not (folder / "new").exists() and not (folder / "new.safetensors").exists()


def test_stacked_blocks_and_a_network_without_running_statistics(tmp_path):
    config = with_vit()
    state, tree = random_state(config, convert.family(config))
    save_file(state, tmp_path / "vit.safetensors")
    found = import_weights(config, str(tmp_path / "run"), str(tmp_path / "vit.safetensors"))
    assert "blocks.3.mlp.fc1.weight [256, 64] -> params/encoder/blocks/fc1/kernel[3]" in map(str, found)
    _, start = started(config, str(tmp_path / "run"))
    assert_equal(start.params["encoder"], tree["params"]["encoder"])
    export_weights(config, str(tmp_path / "run"), str(tmp_path / "again.safetensors"))
    assert_equal(load_file(tmp_path / "again.safetensors"), state)


def test_the_encoder_of_a_self_supervised_run_is_written_and_read_back(tmp_path):
    """MoCo v3: the patch projection is not a parameter, and the positions are not a leaf."""
    config = moco_config("digits_vit_v3")
    state = jax.device_put(filled(build(config, FACTS).shapes))
    with RunFolder(str(tmp_path / "moco"), config, FACTS) as folder:
        folder.save(state, {})
    export_weights(config, str(tmp_path / "moco"), str(tmp_path / "vit.safetensors"))
    arrays = load_file(tmp_path / "vit.safetensors")
    assert arrays["pos_embed"].shape == (1, 17, 64)
    assert not [name for name in arrays if "head" in name or "project" in name]
    tree = {
        "params": {"encoder": state.params["encoder"]},
        "model_state": {"encoder": state.model_state["encoder"]},
    }
    assert_equal(weights.load(arrays, tree, convert.family(config)), tree)
    flat = flatten_dict(state.model_state["encoder"], sep="/")
    np.testing.assert_array_equal(arrays["patch_embed.proj.bias"], flat["patch/bias"])


def test_the_console_script_knows_a_verb_that_is_a_package(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ssljax", "convert", "--help"])
    console.main()
    usage = "ssljax convert --config configs/x.py[:preset] --workdir DIR --from FILE.safetensors"
    assert usage in capsys.readouterr().out
    argv = ["ssljax", "convert", "--config=configs/supervised.py:digits", "--workdir=x"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="say either"):
        console.main()
