"""`ssljax convert`: weights of timm and torchvision as a checkpoint of ours, and back.

    ssljax convert --config configs/x.py[:preset] --workdir DIR --from FILE.safetensors     # or .pth, where PyTorch is installed
    ssljax convert --config configs/x.py[:preset] --workdir DIR --to FILE.safetensors

`--from` writes a checkpoint of step 0 into a fresh folder: `evaluate` and `preview` use it like any other, `train` goes on from it, and
`init_from=DIR` starts another run with its encoder. `--to` writes the encoder and the heads of the newest checkpoint of any method under
timm's (ViT) or torchvision's names. Both print which array lies where; a name or a shape that does not match is an error. The data set is
not looked at unless config.data.num_classes is 0. Of a config with stages the last one is meant.
"""

from __future__ import annotations

import dataclasses

import jax
from ml_collections import ConfigDict

from ssljax import cli, convert, train
from ssljax.checkpoint import Checkpoints, load_part
from ssljax.convert import weights
from ssljax.data import sources
from ssljax.run_folder import RunFolder
from ssljax.types import Pytree


@dataclasses.dataclass(frozen=True)
class Unread:
    """What `train.build` looks at of a training split, when the data itself is of no interest."""

    images: int
    num_classes: int

    def __len__(self) -> int:
        return self.images

    @property
    def num_ids(self) -> int:
        return self.images


def program_of(config: ConfigDict) -> train.Program:
    """The run that the weights belong to; reads the data only to count its classes, or the images of a method that keeps something for
    each, where the config leaves that to it."""
    if config.data.num_classes and config.method != "deepcluster":
        return train.build(config, Unread(config.batch_size, config.data.num_classes))
    return train.build(config, sources.load(config.data, "train"))


def import_weights(config: ConfigDict, workdir: str, file: str) -> list[weights.Place]:
    """Writes a state dict as a checkpoint of step 0 and returns what lay where.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name or a shape does not match, the method has parameters that no such file holds, or the folder has a checkpoint.
    """
    program, state_dict = program_of(config), weights.read(file)
    other = [part for part in program.shapes.params if part not in weights.PARTS]
    if other or jax.tree.leaves(program.shapes.extra):
        raise ValueError(f"method {config.method!r} keeps more than a file can hold ({', '.join(other) or 'a state of its own'}): "
                         "read it with a config of method 'supervised' and start from that folder with --config.init_from=DIR")
    found = Checkpoints(workdir, read_only=True)
    steps = found.steps()
    found.close()
    if steps:
        raise ValueError(f"--workdir={workdir} already has a checkpoint, of step {steps[-1]}: use another folder")
    family = convert.family(program.config, state_dict)
    like = {"params": program.shapes.params, "model_state": program.shapes.model_state}
    tree = jax.device_put(weights.load(state_dict, like, family), jax.tree.map(lambda leaf: leaf.sharding, like))
    with RunFolder(workdir, config) as folder:
        folder.save(program.init(config.seed).replace(**tree), {})
    return weights.places(like, family)


def export_weights(config: ConfigDict, workdir: str, file: str) -> list[weights.Place]:
    """Writes the encoder and the heads of the newest checkpoint as a state dict and returns what lay where.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it belongs to another network, or the network computes something that the other framework's does not.
    """
    program = program_of(config)
    family = convert.family(program.config)

    def branch(name: str, shapes: Pytree) -> Pytree:
        return {part: load_part(workdir, shapes[part], f"{name}/{part}") for part in weights.PARTS if part in shapes}
    tree = {name: branch(name, getattr(program.shapes, name)) for name in ("params", "model_state")}
    weights.write(weights.dump(tree, family), file)
    return weights.places(tree, family)


def main(argv: list[str] | None = None) -> None:
    """`ssljax convert`."""
    flags = cli.parse("convert", argv, **{"from": "", "to": ""})
    source, target = getattr(flags, "from"), flags.to          # "from" is a keyword
    if bool(source) == bool(target):
        raise SystemExit("ssljax convert: say either --from=FILE.safetensors, to read weights into --workdir, or --to=FILE.safetensors")
    _, config, workdir = train.stages(flags.config, flags.workdir)[-1]
    try:
        found = import_weights(config, workdir, source) if source else export_weights(config, workdir, target)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"ssljax convert: {error}") from error
    for place in found:
        print(place)
    print(f"{len(found)} arrays {'from ' + source if source else 'to ' + target}")


if __name__ == "__main__":
    main()
