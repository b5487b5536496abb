"""`ssljax train`: every stage of a config, each a run of THE loop (`run/loop.py`).

    ssljax train --config configs/simclr.py:digits --workdir runs/digits [--config.optim.learning_rate=0.1] [--profile 5]

The same command after an interruption of any kind goes on from the last checkpoint and ends with bit-identical parameters.
`--profile N` records N steps for TensorBoard and XProf into <workdir>/profile and prints what they were spent on.
"""

from __future__ import annotations

import jax
from ml_collections import ConfigDict

from ssljax import cli
from ssljax.data import sources
from ssljax.program import build, stages, start_from, use_compilation_cache
from ssljax.run import hosts, monitor, profile
from ssljax.run.folder import RunFolder
from ssljax.run.loop import fit


def run_stage(config: ConfigDict, workdir: str, earlier: dict[str, str], *, profile_steps: int = 0) -> None:
    """One complete run of the loop, resumed if it was begun and left alone if it was finished.

    Args:
        config: of this stage.
        workdir: of this stage.
        earlier: folders of the stages before it, by name, for `init_from`.
        profile_steps: record so many steps into `workdir/profile`, from the tenth on; 0 = none.
    """
    source, test = sources.load(config.data, "train"), sources.load(config.data, "test")
    program = build(config, sources.facts(config.data, source))

    with RunFolder(workdir, config, program.facts) as folder:
        if profile_steps:
            program = program._replace(
                step=profile.recorded(program.step, profile_steps, workdir, left=program.total_steps)
            )
        fit(program, source, seed=config.seed, folder=folder, test=test, start=start_from(program, earlier))


def main(argv: list[str] | None = None) -> None:
    """`ssljax train`."""
    flags = cli.parse("train", argv, profile=0, **hosts.FLAGS)
    earlier: dict[str, str] = {}
    with hosts.together("train", flags.coordinator, flags.processes, flags.process):
        use_compilation_cache(flags.workdir)
        for name, config, folder in stages(flags.config, flags.workdir):
            try:
                run_stage(config, folder, earlier, profile_steps=flags.profile)
            except (ValueError, FileNotFoundError, ImportError, MemoryError, monitor.NotFinite) as error:
                raise SystemExit(f"ssljax train: {error}") from error
            earlier[name] = folder
        if jax.process_index() == 0:
            print(f"done: {flags.workdir}")


if __name__ == "__main__":
    main()
