"""`ssljax convert`: turn weights of timm and torchvision into a checkpoint, and back.

    ssljax convert --config configs/x.py[:preset] --workdir DIR --from FILE.safetensors
    ssljax convert --config configs/x.py[:preset] --workdir DIR --to FILE.safetensors

`--from` writes a checkpoint of step 0 into a fresh folder. It also reads .pth, where PyTorch is installed.
`evaluate` and `preview` use the checkpoint like any other, `train` continues from it, and `init_from=DIR`
starts another run with its encoder.

`--to` writes the encoder and the heads of the newest checkpoint of any method, under timm's names (ViT) or
torchvision's.

Both print the place of every array. A name or a shape that does not match is an error. The number of
classes is that of the file's head or of the run. In a config with stages this applies to the last one, or
to `--stage NAME`.
"""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from ssljax import cli, convert
from ssljax.convert import weights
from ssljax.data import sources
from ssljax.program import build, open_run, stage
from ssljax.run.checkpoint import Checkpoints
from ssljax.run.folder import RunFolder, facts_of
from ssljax.types import Facts, Pytree


def facts_for(config: ConfigDict, classes: int) -> Facts:
    """Facts for a run without data: only the number of classes matters."""
    return Facts(num_examples=config.batch_size, num_classes=classes, num_ids=config.batch_size)


def import_weights(config: ConfigDict, workdir: str, file: str) -> list[weights.Place]:
    """Write a state dict as a checkpoint of step 0.

    Returns:
        the place of every array.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name or a shape does not match, the method has parameters that no such file holds, or
            the folder already has a checkpoint.
    """
    state_dict = weights.read(file)
    shapes = build(config, facts_for(config, config.data.num_classes or 1)).shapes
    other = [part for part in shapes.params if part not in weights.PARTS]
    if other or jax.tree.leaves(shapes.extra):
        more = ", ".join(other) or "a state of its own"
        raise ValueError(
            f"method {config.method!r} keeps more than a file can hold ({more}): read it with a config of "
            "method 'supervised' and start from that folder with --config.init_from=DIR"
        )

    family = convert.family(config, state_dict)
    head = state_dict.get(f"{family.heads['head']}.weight", np.zeros(1))
    program = build(config, facts_for(config, config.data.num_classes or len(head)))

    checkpoints = Checkpoints(workdir, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    if steps:
        raise ValueError(
            f"--workdir={workdir} already has a checkpoint, of step {steps[-1]}: use another folder"
        )

    like = {"params": program.shapes.params, "model_state": program.shapes.model_state}
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    tree = jax.device_put(weights.load(state_dict, like, family), shardings)
    with RunFolder(workdir, config, None) as folder:
        folder.save(program.init(config.seed).replace(**tree), {})
    return weights.places(like, family)


def export_weights(config: ConfigDict, workdir: str, file: str) -> list[weights.Place]:
    """Write the encoder and the heads of the newest checkpoint as a state dict.

    Returns:
        the place of every array.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it belongs to another network, or the network computes something that the other
            framework's network does not.
    """
    family = convert.family(config)
    facts = facts_of(workdir)
    if facts is None and config.data.num_classes:
        facts = facts_for(config, config.data.num_classes)
    if facts is None:
        facts = sources.load(config.data, "train").facts
    run = open_run(config, facts, workdir)

    def convertible(branches: Pytree) -> Pytree:
        return {part: branch for part, branch in branches.items() if part in weights.PARTS}

    params, statistics = run.params, run.model_state
    if run.method.frozen:
        params = {**params, **run.extra.params}
        statistics = {**statistics, **run.extra.model_state}
    tree = {"params": convertible(params), "model_state": convertible(statistics)}
    weights.write(weights.dump(tree, family), file)
    return weights.places(tree, family)


def main(argv: list[str] | None = None) -> None:
    """`ssljax convert`."""
    flags = cli.parse("convert", argv, **{"from": "", "to": "", "stage": ""})
    source = getattr(flags, "from")  # a keyword of Python
    target = flags.to
    if bool(source) == bool(target):
        raise SystemExit(
            "ssljax convert: say either --from=FILE.safetensors, to read weights into --workdir, "
            "or --to=FILE.safetensors"
        )
    with cli.answered("convert"):
        config, workdir = stage(flags.config, flags.workdir, flags.stage)
        convert_file = import_weights if source else export_weights
        found = convert_file(config, workdir, source or target)
    for place in found:
        print(place)
    direction = f"from {source}" if source else f"to {target}"
    print(f"{len(found)} arrays {direction}")


if __name__ == "__main__":
    cli.run(main)
