"""A trained network as one file that runs without ssljax.

    ssljax export --workdir runs/digits --to stablehlo:digits.stablehlo [--stage NAME]

The file holds the program and its weights, for CPU, GPU and TPU, and needs JAX alone (and flatbuffers, a
package that `jax.export` reads it with):

    network = jax.export.deserialize(bytearray(open("digits.stablehlo", "rb").read()))
    out = network.call(images)      # uint8 [N, S, S, C] -> {"features": float32 [N, D], "logits": [N, K]}

N is any number. S and C are those of the run: its images, already cropped and resized as in evaluation; the
pixels are normalised inside. `logits` are those of the run's own classifier, if it has one. Of a run with
stages the last one is taken, or `--stage NAME`. For weights under the names of timm or torchvision use
`ssljax convert --to`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

from ssljax import cli
from ssljax.network import load
from ssljax.program import encoder

PLATFORMS = ("cpu", "cuda", "tpu")
KIND = "stablehlo:"


def export(workdir: str, to: str, *, stage: str = "") -> str:
    """Write the network of a run's newest checkpoint.

    Args:
        workdir: of the run.
        to: stablehlo:FILE.
        stage: of a run with stages.

    Returns:
        What was written, for the terminal.

    Raises:
        FileNotFoundError: there is no run, or no folder to write to.
        ValueError: `to` names no format.
    """
    file = Path(to.removeprefix(KIND))
    if not to.startswith(KIND) or not file.name:
        raise ValueError(
            f"--to={to}: say {KIND}FILE; weights alone, under the names of timm or torchvision, are written "
            "by `ssljax convert --to=FILE.safetensors`"
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(f"--to={to}: there is no folder {file.parent}, make it first")

    network = load(workdir, stage)
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
        prog="ssljax export", description="A trained network as one file that runs without ssljax."
    )
    parser.add_argument("--workdir", required=True, help="the folder of a run of `ssljax train`")
    parser.add_argument("--to", required=True, help="stablehlo:FILE")
    parser.add_argument("--stage", default="", help="of a run with stages; the last by default")
    flags = parser.parse_args(argv)
    with cli.answered("export"):
        print(export(**vars(flags)))


if __name__ == "__main__":
    cli.run(main)
