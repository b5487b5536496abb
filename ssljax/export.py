"""A trained network as a file, or a folder, that runs without ssljax.

    ssljax export --workdir runs/digits --to stablehlo:digits.stablehlo [--stage NAME]
    ssljax export --workdir runs/vit --to hf:vit [--stage NAME]

stablehlo: writes any network. The file holds the program and its weights, for CPU, GPU and TPU, and needs
JAX alone (and flatbuffers, a package that `jax.export` reads it with):

    network = jax.export.deserialize(bytearray(open("digits.stablehlo", "rb").read()))
    out = network.call(images)      # uint8 [N, S, S, C] -> {"features": float32 [N, D], "logits": [N, K]}

N is any number. S and C are those of the run: its images, already cropped and resized as in evaluation; the
pixels are normalised inside. `logits` are those of the run's own classifier, if it has one.

hf: writes a folder for PyTorch, as the Hugging Face Hub keeps it: config.json and model.safetensors, which
timm reads, and a model card. ViT, DeiT and BEiT have their like in timm, and so do ResNets of torchvision's
padding, RegNets and EfficientNets of the papers' sizes:

    model = timm.create_model("local-dir:vit", pretrained=True)

Of a run with stages the last one is taken, or `--stage NAME`. Weights alone, under the names of timm or
torchvision, are written by `ssljax convert --to`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from ssljax import card, cli, convert
from ssljax.convert import hub, timm, weights
from ssljax.convert.__main__ import evaluated_tree
from ssljax.network import Network, load
from ssljax.program import encoder

PLATFORMS = ("cpu", "cuda", "tpu")
KIND = "stablehlo:"


def export(workdir: str, to: str, *, stage: str = "") -> str:
    """Write the network of a run's newest checkpoint.

    Args:
        workdir: of the run.
        to: stablehlo:FILE or hf:DIR.
        stage: of a run with stages.

    Returns:
        What was written, for the terminal.

    Raises:
        FileNotFoundError: there is no run, or no folder to write to.
        ValueError: `to` names no format, or timm has no such network.
    """
    kind, _, name = to.partition(":")
    if f"{kind}:" not in (KIND, hub.KIND) or not name:
        raise ValueError(
            f"--to={to}: say {KIND}FILE or {hub.KIND}DIR; weights alone, under the names of timm or "
            "torchvision, are written by `ssljax convert --to=FILE.safetensors`"
        )
    path = Path(name)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--to={to}: there is no folder {path.parent}, make it first")
    if f"{kind}:" == KIND:
        return _stablehlo(load(workdir, stage), path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"--to={to}: {path} is there already and not an empty folder: name another")
    return _hub(load(workdir, stage), path)


def _hub(network: Network, folder: Path) -> str:
    """Write a folder that timm reads."""
    run, config = network.evaluated, network.config
    size, channels = config.data.image_size, config.data.channels
    family = convert.family(config, timm.family_names(config.model))
    state = weights.dump(evaluated_tree(run, family), family)
    state = {name: array for name, array in state.items() if timm.belongs(name, config.model)}
    heads = [f"{name}." for name in family.heads.values()]
    if run.method.classify is None:  # its head is of the method's own, such as DeepCluster's clusters
        state = {name: array for name, array in state.items() if not name.startswith(tuple(heads))}
    classes = max((len(state[f"{head}bias"]) for head in heads if f"{head}bias" in state), default=0)
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.uint8)
    tokens = 2 if config.model.get("distillation") else 1  # side by side in ours
    features = jax.eval_shape(run.encode, image).shape[-1] // tokens
    described = timm.describe(config, classes, features)

    unfinished = folder.with_name(folder.name + ".part")
    unfinished.mkdir(exist_ok=True)
    weights.write(state, str(unfinished / hub.WEIGHTS))
    (unfinished / hub.CONFIG).write_text(json.dumps(described, indent=2) + "\n")
    (unfinished / hub.CARD).write_text(card.card(network, described))
    os.replace(unfinished, folder)
    return (
        f"{folder}: {described['architecture']} of timm, {features} features, {classes} classes; load it "
        f"with timm.create_model('local-dir:{folder}', pretrained=True)"
    )


def _stablehlo(network: Network, file: Path) -> str:
    """Write a file that `jax.export` reads."""
    run = network.evaluated
    encode = encoder(run.method, run.config)

    def look(images: jax.Array) -> dict[str, jax.Array]:
        features = encode(run.params, run.model_state, run.extra, images).astype(jnp.float32)
        if run.method.classify is None:
            return {"features": features}
        heads = run.method.classify(run.params, run.extra, features)
        return {"features": features, "logits": next(iter(heads.values())).astype(jnp.float32)}

    size, channels = run.config.data.image_size, run.config.data.channels
    (count,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, size, size, channels), jnp.uint8)
    program = jax.export.export(jax.jit(look), platforms=PLATFORMS)(images)

    unfinished = file.with_name(file.name + ".part")
    unfinished.write_bytes(program.serialize())
    os.replace(unfinished, file)
    outputs = ", ".join(f"{name} [N, {leaf.shape[1]}]" for name, leaf in _outputs(program).items())
    return (
        f"{file}: {file.stat().st_size / 1e6:.1f} MB, uint8 [N, {size}, {size}, {channels}] -> {outputs}, "
        f"for {', '.join(PLATFORMS)}"
    )


def _outputs(program: jax.export.Exported) -> dict[str, jax.core.ShapedArray]:
    return jax.tree.unflatten(program.out_tree, program.out_avals)


def main(argv: list[str] | None = None) -> None:
    """`ssljax export`."""
    parser = argparse.ArgumentParser(
        prog="ssljax export", description="A trained network that runs without ssljax."
    )
    parser.add_argument("--workdir", required=True, help="the folder of a run of `ssljax train`")
    parser.add_argument("--to", required=True, help="stablehlo:FILE or hf:DIR")
    parser.add_argument("--stage", default="", help="of a run with stages; the last by default")
    flags = parser.parse_args(argv)
    with cli.answered("export"):
        print(export(**vars(flags)))


if __name__ == "__main__":
    cli.run(main)
