"""`ssljax train`: train every stage of a config. Each stage is one run of the loop in `run/loop.py`.

    ssljax train --config configs/simclr.py:digits --workdir runs/digits \\
        [--config.optim.learning_rate=0.1] [--profile 5] [--accept-changed-data] [--stage NAME] \\
        [--log wandb,mlflow]

After an interruption of any kind, the same command resumes from the last checkpoint and ends with
bit-identical parameters. `--profile N` records N steps for TensorBoard and XProf in <workdir>/profile and
prints where their time went.

A folder that another process trains in is refused, and so is a resume with other settings or other training
images. `--accept-changed-data` goes on with images that changed.

`--stage NAME` trains one stage of several alone. It starts from the earlier stages in --workdir, or from the
folder of any run: `--stage linear --config.linear.init_from=RUN`.

The log is in metrics.jsonl and in TensorBoard's events; `--log wandb`, `--log mlflow` or both send it there
too (`pip install 'ssljax[wandb]'`). A run that is resumed goes on there as well.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence

import jax
from etils import epath
from ml_collections import ConfigDict

from ssljax import cli, sharding
from ssljax.data import change, sources
from ssljax.earlier import start_from
from ssljax.program import (
    Program,
    build,
    checked,
    fresh_shapes,
    method_of,
    stage,
    stages,
    use_compilation_cache,
)
from ssljax.run import hosts, lock, memory, profile, writers
from ssljax.run.folder import RunFolder, describe_stages, facts_of
from ssljax.run.loop import fit
from ssljax.run.start import begun
from ssljax.types import Step


def run_stage(
    config: ConfigDict,
    workdir: str,
    earlier: dict[str, str],
    *,
    name: str = "",
    profile_steps: int = 0,
    accept_changed_data: bool = False,
    log: Sequence[str] = (),
) -> None:
    """Run the loop once, to the end. An interrupted run is resumed; a finished one is left alone.

    Args:
        config: the config of this stage.
        workdir: the folder of this stage.
        earlier: name -> folder of the stages before it, for `init_from`.
        name: of this stage, for messages; "" for a run without stages.
        profile_steps: how many steps to record in `workdir/profile`, after the first ten; 0 records none.
        accept_changed_data: see `RunFolder`.
        log: see `RunFolder`.
    """
    source = sources.load(config.data, "train")
    test = sources.load(config.data, "test")
    program = build(config, sources.facts(config.data, source))

    if accept_changed_data:
        refuse_other_network(program, workdir)

    def watched(step: Step) -> Step:
        return profile.recorded(step, profile_steps, workdir) if profile_steps else step

    if profile_steps:
        profile.refuse_more(profile_steps, program.total_steps)
    data = {"train": change.describe(source), "test": change.describe(test)}
    with RunFolder(
        workdir, config, program.facts, data=data, accept_changed_data=accept_changed_data, log=log
    ) as folder:
        in_pieces = program.method.separable or program.method.two_pass is not None
        with memory.explained(config, name, verb="train", pieces=in_pieces):
            start = start_from(program, earlier)
            fit(program, source, seed=config.seed, folder=folder, test=test, start=start, watched=watched)


def refuse_other_network(program: Program, workdir: str) -> None:
    """Raise a ValueError if the run in a folder has another network than the data now need.

    Classifiers have a row per class, and some methods keep a label per image.
    """
    before = facts_of(workdir)
    now = program.facts
    if before is None or before == now:
        return
    old, new = (
        jax.tree.map(lambda leaf: leaf.shape, fresh_shapes(method_of(program.config, facts)))
        for facts in (before, now)
    )
    if old != new:
        raise ValueError(
            f"--accept-changed-data: the network in {workdir} is made for {before.num_classes} classes and "
            f"{before.num_ids} images, and now there are {now.num_classes} and {now.num_ids}. Put the old "
            "images back, or begin anew in another --workdir"
        )


def run_stages(
    config: ConfigDict,
    workdir: str,
    *,
    only: str = "",
    profile_steps: int = 0,
    accept_changed_data: bool = False,
    log: Sequence[str] = (),
) -> None:
    """Run every stage of a config in its order, each in a folder of its own below `workdir`.

    Each stage locks its folder. With several stages `workdir` is locked as well, so that a second process is
    refused before it opens the stages that are finished.

    Args:
        config: of one stage or of several.
        workdir: the folder of the run.
        only: the name of the one stage to train; "" trains all.
        profile_steps: see `run_stage`.
        accept_changed_data: see `run_stage`.
        log: see `run_stage`.

    Raises:
        ValueError: there is no such stage, or an earlier stage would be trained for nothing, or a later one
            would be refused.
    """
    if only:
        stage(config, workdir, only)  # refuses a name that is not there
    else:
        refuse_useless_stages(config)
        check_later_stages(config, workdir)
    with contextlib.ExitStack() as held:
        if "stages" in config:
            epath.Path(workdir).mkdir(parents=True, exist_ok=True)
            held.enter_context(lock.hold(epath.Path(workdir)))
            describe_stages(workdir, config, only)
        earlier: dict[str, str] = {}
        for name, part, folder in stages(config, workdir):
            if only in ("", name):
                run_stage(
                    part,
                    folder,
                    earlier,
                    name=name,
                    profile_steps=profile_steps,
                    accept_changed_data=accept_changed_data,
                    log=log,
                )
            earlier[name] = folder


def refuse_useless_stages(config: ConfigDict) -> None:
    """Raise a ValueError if the last stage starts from a folder, and so nothing needs the stages before."""
    *before, (last, part, _) = stages(config, "")
    names = [name for name, _, _ in before]
    if names and part.init_from and part.init_from not in names:
        raise ValueError(
            f"--config.{last}.init_from={part.init_from}: {last} starts from that folder, and not from "
            f"{' or '.join(names)}, which would be trained first. Add --stage {last} to train {last} alone"
        )


def check_later_stages(config: ConfigDict, workdir: str) -> None:
    """Raise what a later stage would be refused for, as far as its config and the list of its images say it.

    A stage that has begun was checked before. No network is built.

    Raises:
        ValueError: names the stage; see `program.checked` and `sources.load`.
        FileNotFoundError: its data are not where they should be.
    """
    for name, part, folder in stages(config, workdir)[1:]:
        place = epath.Path(folder)
        if place.exists() and begun(place):
            continue
        data = part.data.copy_and_resolve_references().unlock()
        data.crop_on = "host"  # so that no image is decoded
        try:
            facts = sources.facts(data, sources.load(data, "train"))
            checked(part, facts, sharding.make_mesh(fsdp=part.sharding.fsdp))
        except ValueError as error:
            raise ValueError(f"stage {name}: {error}") from error


def main(argv: list[str] | None = None) -> None:
    """`ssljax train`."""
    extra = {"accept-changed-data": False, **hosts.FLAGS}
    flags = cli.parse("train", argv, profile=0, stage="", log="", **extra)
    accept = getattr(flags, "accept-changed-data")
    with cli.answered("train"):
        loggers = writers.asked(flags.log)

    with hosts.together("train", flags.coordinator, flags.processes, flags.process):
        use_compilation_cache(flags.workdir)
        try:
            with cli.answered("train"):
                asked = {name: getattr(flags, name) for name in ("workdir", "stage", "profile")}
                hosts.started_alike(flags.config, **asked, **{"accept-changed-data": accept})
                run_stages(
                    flags.config,
                    flags.workdir,
                    only=flags.stage,
                    profile_steps=flags.profile,
                    accept_changed_data=accept,
                    log=loggers,
                )
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
