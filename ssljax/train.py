"""`ssljax train`: train every stage of a config. Each stage is one run of the loop in `run/loop.py`.

    ssljax train --config configs/simclr.py:digits --workdir runs/digits \\
        [--config.optim.learning_rate=0.1] [--profile 5]

After an interruption of any kind, the same command resumes from the last checkpoint and ends with
bit-identical parameters. `--profile N` records N steps for TensorBoard and XProf in <workdir>/profile and
prints where their time went.
"""

from __future__ import annotations

import signal
import sys

import jax
from ml_collections import ConfigDict

from ssljax import cli
from ssljax.data import sources
from ssljax.program import build, stages, start_from, use_compilation_cache
from ssljax.run import hosts, memory, profile
from ssljax.run.folder import RunFolder, describe_stages
from ssljax.run.loop import fit


def run_stage(
    config: ConfigDict, workdir: str, earlier: dict[str, str], *, name: str = "", profile_steps: int = 0
) -> None:
    """Run the loop once, to the end. An interrupted run is resumed; a finished one is left alone.

    Args:
        config: the config of this stage.
        workdir: the folder of this stage.
        earlier: name -> folder of the stages before it, for `init_from`.
        name: of this stage, for messages; "" for a run without stages.
        profile_steps: how many steps to record in `workdir/profile`, after the first ten; 0 records none.
    """
    source = sources.load(config.data, "train")
    test = sources.load(config.data, "test")
    program = build(config, sources.facts(config.data, source))

    with RunFolder(workdir, config, program.facts) as folder:
        if profile_steps:
            step = profile.recorded(program.step, profile_steps, workdir, left=program.total_steps)
            program = program._replace(step=step)
        in_pieces = program.method.separable or program.method.two_pass is not None
        with memory.explained(config, name, verb="train", pieces=in_pieces):
            start = start_from(program, earlier)
            fit(program, source, seed=config.seed, folder=folder, test=test, start=start)


def run_stages(config: ConfigDict, workdir: str, *, profile_steps: int = 0) -> None:
    """Run every stage of a config in its order, each in a folder of its own below `workdir`."""
    if "stages" in config:
        describe_stages(workdir, config)
    earlier: dict[str, str] = {}
    for name, stage, folder in stages(config, workdir):
        run_stage(stage, folder, earlier, name=name, profile_steps=profile_steps)
        earlier[name] = folder


def main(argv: list[str] | None = None) -> None:
    """`ssljax train`."""
    flags = cli.parse("train", argv, profile=0, **hosts.FLAGS)

    with hosts.together("train", flags.coordinator, flags.processes, flags.process):
        use_compilation_cache(flags.workdir)
        try:
            with cli.answered("train"):
                run_stages(flags.config, flags.workdir, profile_steps=flags.profile)
        except KeyboardInterrupt:
            print(
                "ssljax train: left at once; the same command resumes from the last checkpoint",
                file=sys.stderr,
            )
            raise SystemExit(128 + signal.SIGINT) from None
        if jax.process_index() == 0:
            print(f"done: {flags.workdir}")


if __name__ == "__main__":
    cli.run(main)
