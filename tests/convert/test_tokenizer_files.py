"""`ssljax convert` for DALL-E's tokenizer and BEiT's networks: whole runs from files of random weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import beit
from ssljax import cli, convert, train
from ssljax.convert import __main__ as command
from ssljax.convert import dalle, weights
from ssljax.convert.__main__ import export_weights, main
from ssljax.models import dvae as nets
from ssljax.program import build, stage
from ssljax.run.checkpoint import Checkpoints
from ssljax.run.folder import RunFolder
from ssljax.train import run_stages
from tests.methods.small import FACTS, blank, shaken

SMALL = {"pretrain.model.name": "beit_xxs", "finetune.model.name": "beit_xxs"}
FLAGS = ["--config=configs/beit.py:digits", *(f"--config.{name}={value}" for name, value in SMALL.items())]


pytestmark = pytest.mark.usefixtures("one_device")


def begin_blank(patch):
    """Runs begin with zeros."""

    def built(*facts):
        program = build(*facts)
        return program._replace(init=lambda seed: blank(program))

    for module in (command, train):
        patch.setattr(module, "build", built)


def settings():
    """The config of FLAGS."""
    config, _ = cli.overridden(beit.get_config("digits"), SMALL)
    return config


def random_file(config):
    """Random weights of a stage's network, under the names of a file, and as our tree."""
    shapes = build(config, FACTS).shapes
    rng = np.random.default_rng(0)
    like = {"params": shapes.params, "model_state": shapes.model_state}
    tree = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), like)
    return weights.dump(tree, convert.family(config)), tree


def tokenizer_files(folder):
    """DALL-E's two files in small, and our tree."""
    state, tree = random_file(settings().tokenizer)
    files = []
    for part in ("encoder", "decoder"):
        file = folder / f"{part}.safetensors"
        save_file({k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(part)}, file)
        files.append(str(file))
    return files, tree


def restored(config, folder):
    return Checkpoints(str(folder), read_only=True).restore(build(config, FACTS).shapes)


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_names_are_those_of_the_released_files(golden):
    g = golden("dalle_dvae")
    for part, read in (("encoder", dalle.encoder), ("decoder", dalle.decoder)):
        state = g.under(part)
        paths = jax.tree_util.tree_leaves_with_path(read(state))
        assert len(paths) == len(state)
        for path, leaf in paths:
            name, reorder = dalle.rename(jax.tree_util.keystr(path, simple=True, separator="/"))
            np.testing.assert_array_equal(reorder.theirs(leaf), state[name])


@pytest.mark.slow
def test_two_files_become_a_tokenizer_that_beit_trains_on(tmp_path, capsys, monkeypatch):
    config = settings()
    (encoder, decoder), tree = tokenizer_files(tmp_path)
    run = tmp_path / "run"
    main([*FLAGS, "--stage=tokenizer", f"--workdir={run}", f"--from={decoder},{encoder}"])
    assert "encoder.blocks.group_1.block_1.res_path.conv_1.w [4, 16, 3, 3] ->" in capsys.readouterr().out
    state = restored(config.tokenizer, run / "tokenizer")
    assert int(state.step) == 0
    assert_equal(state.params, tree["params"])
    assert_equal(state.extra.ema.params, tree["params"])
    assert_equal(state.extra.input["pixels"], nets.pixel_map("dall-e"))

    # A pretraining run adopts it, and so does a file of BEiT's own.
    begin_blank(monkeypatch)
    file, pretrained = random_file(config.pretrain)
    save_file(file, tmp_path / "beit.safetensors")
    main([*FLAGS, "--stage=pretrain", f"--workdir={run}", f"--from={tmp_path / 'beit.safetensors'}"])
    state = restored(config.pretrain, run / "pretrain")
    assert_equal(state.params, pretrained["params"])
    assert_equal(state.extra.params["encoder"], tree["params"]["encoder"])

    # Fine-tuning starts with its network, and a second pretraining with the tokenizer's folder by name.
    chain = config.copy_and_resolve_references().unlock()
    for part in (chain.finetune, chain.pretrain):
        part.epochs = 1
        part.optim.warmup_epochs = 0
        part.eval_every_epochs = 0
        part.augment.update(rotate=0.0, shift=0.0, zoom=0.0, shear=0.0)
    chain.pretrain.data.train_per_class = 13
    chain.pretrain.recover.tokenizer = str(run / "tokenizer")
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam
        run_stages(chain.lock(), str(run), only="finetune")
        run_stages(chain, str(tmp_path / "second"), only="pretrain")
    assert restored(chain.finetune, run / "finetune").step > 0
    state = restored(chain.pretrain, tmp_path / "second" / "pretrain")
    assert_equal(state.extra.params["encoder"], tree["params"]["encoder"])


@pytest.mark.slow
def test_what_was_read_is_written_again(tmp_path, monkeypatch):
    begin_blank(monkeypatch)
    config = settings()
    files, _ = tokenizer_files(tmp_path)
    flags = [*FLAGS, "--stage=tokenizer"]
    main([*flags, f"--workdir={tmp_path / 'run'}", f"--from={','.join(files)}"])
    one = tmp_path / "both.safetensors"
    main([*flags, f"--workdir={tmp_path / 'run'}", f"--to={one}"])
    found = load_file(one)
    for part, file in zip(("encoder", "decoder"), files, strict=True):
        assert_equal({k: found[f"{part}.{k}"] for k in load_file(file)}, load_file(file))
    main([*flags, f"--workdir={tmp_path / 'again'}", f"--from={one}"])
    assert_equal(
        restored(config.tokenizer, tmp_path / "again" / "tokenizer").params,
        restored(config.tokenizer, tmp_path / "run" / "tokenizer").params,
    )

    # The networks of both stages of BEiT: with one table of positions, and with one per block.
    for name in ("finetune", "pretrain"):
        part, folder = stage(config, str(tmp_path / "run"), name)
        file, _ = random_file(part)
        save_file(file, tmp_path / f"{name}.safetensors")
        source, target = tmp_path / f"{name}.safetensors", tmp_path / f"{name}_again.safetensors"
        main([*FLAGS, f"--stage={name}", f"--workdir={tmp_path / 'run'}", f"--from={source}"])
        main([*FLAGS, f"--stage={name}", f"--workdir={tmp_path / 'run'}", f"--to={target}"])
        again = load_file(target)
        assert set(again) == set(file)
        assert_equal(again, file)
        last = {"finetune": "blocks.1.attn.", "pretrain": "rel_pos_bias."}[name]
        assert again[f"{last}relative_position_index"].shape == (17, 17)
    assert load_file(tmp_path / "pretrain_again.safetensors")["mask_token"].shape == (1, 1, 32)


@pytest.mark.slow
def test_the_average_is_what_is_written(tmp_path):
    config = settings().tokenizer
    program = build(config, FACTS)
    state = blank(program)
    raw, average = (shaken(state.params, seed) for seed in (0, 1))
    extra = state.extra._replace(ema=state.extra.ema._replace(params=average))
    state = state.replace(params=raw, extra=extra)
    with RunFolder(str(tmp_path), config, FACTS) as folder:
        folder.save(state, {})
    export_weights(config, str(tmp_path), str(tmp_path / "both.safetensors"))
    found = load_file(tmp_path / "both.safetensors")
    np.testing.assert_array_equal(found["encoder.blocks.input.b"], average["encoder"]["input"]["bias"])
    np.testing.assert_array_equal(found["decoder.blocks.input.b"], average["decoder"]["input"]["bias"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "names", "message"),
    [
        ([], ("encoder",), "hold no decoder of DALL-E's, and a tokenizer needs both"),
        ([], ("encoder", "encoder"), "hold no decoder of DALL-E's"),
        ([], ("encoder", "other"), "other.safetensors has no 'blocks.input.w'"),
        (
            ["--config.tokenizer.model.pixels=customized", "--config.tokenizer.dvae.loss=l2"],
            ("encoder", "decoder"),
            r"trained on pixels mapped to \[0.1, 0.9\].* --config.model.pixels=dall-e",
        ),
        (
            ["--config.tokenizer.model.vocabulary=32"],
            ("encoder", "decoder"),
            r"decoder.blocks.input.w is \[32, 64, 1, 1\] in the file and \[32, 32, 1, 1\] here",
        ),
    ],
)
def test_files_of_another_network_are_refused(tmp_path, more, names, message):
    tokenizer_files(tmp_path)
    save_file({"blocks.input.x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    source = ",".join(str(tmp_path / f"{name}.safetensors") for name in names)
    flags = [*FLAGS, *more, "--stage=tokenizer", f"--workdir={tmp_path / 'run'}", f"--from={source}"]
    with pytest.raises(SystemExit, match=message):
        main(flags)
    assert not (tmp_path / "run" / "tokenizer" / "checkpoints").exists()


@pytest.mark.slow
def test_beit_refuses_two_files_another_grid_and_a_folder_without_tokenizer(tmp_path, monkeypatch):
    begin_blank(monkeypatch)
    config = settings()
    file, _ = random_file(config.pretrain)
    save_file(file, tmp_path / "beit.safetensors")
    flags = [*FLAGS, "--stage=pretrain", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit, match="names 2 files, and only a tokenizer"):
        main([*flags, f"--from={tmp_path / 'beit.safetensors'},x.safetensors"])
    with pytest.raises(SystemExit, match="no checkpoint in .*tokenizer"):
        main([*flags, f"--from={tmp_path / 'beit.safetensors'}"])
    wrong = {**file, "rel_pos_bias.relative_position_index": np.zeros((17, 17), np.int64)}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(SystemExit, match="a grid of 4 x 4 patches has: correct config.data.image_size"):
        main([*flags, f"--from={tmp_path / 'wrong.safetensors'}"])
