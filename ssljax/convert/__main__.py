"""`ssljax convert`: turn weights of timm and torchvision into a checkpoint, and back.

    ssljax convert --config configs/x.py[:preset] --workdir DIR --from FILE.safetensors
    ssljax convert --config configs/x.py[:preset] --workdir DIR --from hf:timm/NAME      # or hf:FOLDER
    ssljax convert --config configs/x.py[:preset] --workdir DIR --from ENCODER.safetensors,DECODER.safetensors
    ssljax convert --config configs/x.py[:preset] --workdir DIR --to FILE.safetensors

`--from` writes a checkpoint of step 0 into a fresh folder. It also reads .pth, where PyTorch is installed.
`evaluate` and `preview` use the checkpoint like any other, `train` continues from it, and `init_from=DIR`
starts another run with its encoder. What a method adopts before its first step, such as BEiT's tokenizer, it
adopts here. DALL-E's tokenizer comes in two files. `hf:OWNER/NAME` downloads a network of the Hugging Face
Hub once and prints its licence; `hf:FOLDER` is such a folder on this machine.

`--to` writes the encoder and the heads of the newest checkpoint of any method, under the names of timm (ViT),
torchvision or BEiT: the network that evaluation reads, so the moving average where there is one. A tokenizer
is written in one file, whose names begin with "encoder." and "decoder.".

Both print the place of every array. A name or a shape that does not match is an error. The number of
classes is that of the file's head or of the run. In a config with stages this applies to the last one, or
to `--stage NAME`.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from ssljax import cli, convert
from ssljax.convert import hub, weights
from ssljax.convert.weights import Family
from ssljax.data import sources
from ssljax.program import Evaluated, Program, build, open_run, stage, stages
from ssljax.run.checkpoint import Checkpoints
from ssljax.run.folder import RunFolder, facts_of
from ssljax.types import Facts, Pytree

Stages = Mapping[str, tuple[ConfigDict, str]]


def facts_for(config: ConfigDict, classes: int) -> Facts:
    """Facts for a run without data: only the number of classes matters."""
    return Facts(num_examples=config.batch_size, num_classes=classes, num_ids=config.batch_size)


def import_weights(
    config: ConfigDict, workdir: str, file: str, earlier: Stages = types.MappingProxyType({})
) -> list[weights.Place]:
    """Write a state dict as a checkpoint of step 0.

    Args:
        config: one stage.
        workdir: its folder.
        file: its name; for a tokenizer the two names, with a comma between them.
        earlier: name -> config and folder of the other stages, which the method may adopt a network of.

    Returns:
        the place of every array.

    Raises:
        FileNotFoundError: there is no such file, or no run that the method adopts a network of.
        ValueError: a name or a shape does not match, the method has parameters that no such file holds, or
            the folder already has a checkpoint.
    """
    program = build(config, facts_for(config, config.data.num_classes or 1))
    state_dict = convert.read(config, file.split(","))
    _refuse_more(program)
    family = convert.family(config, state_dict)
    heads = [f"{name}.weight" for name in family.heads.values()]
    classes = len(state_dict[heads[0]]) if heads and heads[0] in state_dict else 1
    program = build(config, facts_for(config, config.data.num_classes or classes))

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
    state = program.init(config.seed).replace(**tree)
    if program.method.adopt is not None:
        state = program.method.adopt(state, functools.partial(_of_stage, earlier))
    with RunFolder(workdir, config, None) as folder:
        folder.save(state, {})
    return weights.places(like, family)


def _of_stage(earlier: Stages, run: str, like: Mapping[str, Pytree]) -> dict[str, Pytree]:
    """`types.LoadFn`, for the networks of other stages of the config."""
    if run not in earlier:
        raise ValueError(
            f"the method takes a network from {run!r}, and convert reads those of stages: name one of them, "
            f"{', '.join(earlier) or 'which this config has none of'}"
        )
    config, folder = earlier[run]
    facts = facts_of(folder) or facts_for(config, config.data.num_classes or 1)
    other = open_run(config, facts, folder)
    weights_read, statistics_read = other.method.evaluated(other.params, other.model_state, other.extra)
    roots = {
        "evaluated": {"params": weights_read, "model_state": statistics_read},
        "params": other.params,
        "model_state": other.model_state,
        "extra": other.extra,
    }

    def at(part: str) -> Pytree:
        root, *below = part.split("/")
        found = roots[root]
        for name in below:
            found = found[name] if isinstance(found, Mapping) else getattr(found, name)
        return found

    return {part: at(part) for part in like}


def _refuse_more(program: Program) -> None:
    """Raise a ValueError if the method keeps what neither a file holds nor the method adopts."""
    method = program.method
    other = [part for part in program.shapes.params if part not in weights.PARTS]
    adopts = method.adopt is not None and not method.frozen
    if other or (jax.tree.leaves(program.shapes.extra) and not adopts):
        more = ", ".join(other) or "a state of its own"
        raise ValueError(
            f"method {program.config.method!r} keeps more than a file can hold ({more}): read it with a "
            "config of method 'supervised' and start from that folder with --config.init_from=DIR"
        )


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
    tree = evaluated_tree(open_run(config, facts, workdir), family)
    weights.write(weights.dump(tree, family), file)
    return weights.places(tree, family)


def evaluated_tree(run: Evaluated, family: Family) -> Pytree:
    """What evaluation reads of a run, with the head or the decoder that lies beside it.

    Returns:
        {"params": ..., "model_state": ...}, the parts that a file of this family holds.
    """

    def convertible(branches: Pytree) -> Pytree:
        return {part: branch for part, branch in branches.items() if part in family.parts}

    weights_read, statistics_read = run.method.evaluated(run.params, run.model_state, run.extra)
    params = {**run.params, **_beside((run.params, run.extra), weights_read), "encoder": weights_read}
    statistics = {**run.model_state, "encoder": statistics_read}
    return {"params": convertible(params), "model_state": convertible(statistics)}


def _beside(tree: Pytree, branch: Pytree) -> Pytree:
    """The branches by name, somewhere in a tree, that `branch` is one of; {} if it is not there."""
    if isinstance(tree, Mapping):
        if any(each is branch for each in tree.values()):
            return tree
        tree = tuple(tree.values())
    if not isinstance(tree, tuple):
        return {}
    return next(filter(None, (_beside(child, branch) for child in tree)), {})


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
        if source:
            source, said = hub.weights_of(source, config.augment)
            print("\n".join(said), end="\n" if said else "")
            earlier = {name: (part, folder) for name, part, folder in stages(flags.config, flags.workdir)}
            found = import_weights(config, workdir, source, earlier)
        else:
            found = export_weights(config, workdir, target)
    for place in found:
        print(place)
    direction = f"from {source}" if source else f"to {target}"
    print(f"{len(found)} arrays {direction}")


if __name__ == "__main__":
    cli.run(main)
