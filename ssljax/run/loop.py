"""The training loop of every run and every paper: restore; then step, log, evaluate, refresh, checkpoint."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ssljax import sharding
from ssljax.data.source import Source
from ssljax.program import Program, balance_of, device_batches, encoded
from ssljax.protocols.knn import knn, neighbours_of
from ssljax.run import memory, monitor, opening, progress
from ssljax.run.folder import RunFolder
from ssljax.run.refresh import Run
from ssljax.types import Batch, Step, TrainState

ONLINE_IMAGES = 2000  # kNN during training uses at most this many images of each split


def refreshed(
    program: Program, source: Source, state: TrainState, seed: int, folder: RunFolder | None
) -> TrainState:
    """The state after the method's refresh, which logs what it finds at the state's step."""
    assert program.method.refresh is not None
    return program.method.refresh(state, looking(program, source, state, seed, folder))


def looking(program: Program, source: Source, state: TrainState, seed: int, folder: RunFolder | None) -> Run:
    """What the method may look at the training data with; see `Run`."""
    log = folder.log_refresh if folder else monitor.check_finite
    done = None
    if folder is not None:
        every = program.config.checkpoint.every_steps
        done = progress.Progress(folder, every, sharding.whole(program.mesh))
    return Run(
        program=program,
        source=source,
        seed=seed,
        log=functools.partial(log, int(state.step)),
        batches=lambda: device_batches(program, source, seed, 0),
        progress=done,
    )


def fit(
    program: Program,
    source: Source,
    *,
    seed: int,
    folder: RunFolder | None = None,
    test: Source | None = None,
    start: Callable[[TrainState], TrainState] = lambda state: state,
    watched: Callable[[Step], Step] = lambda step: step,
) -> TrainState:
    """Train to the end and return the final state.

    The order within a step is: update, log, finish, evaluate, refresh, checkpoint. A method finishes in the
    last step only. One that refreshes also does so before the first step. A checkpoint holds what the refresh
    found, so a resumed run does not repeat it. There is no refresh if less than an epoch is left to learn
    from it.

    Args:
        program: from `build`.
        source: the training split.
        seed: determines the initialisation, the sampling order and every draw.
        folder: where to log and checkpoint; None writes and prints nothing.
        test: the held-out split, for kNN during training. There is no kNN if either split has no labelled
            image.
        start: puts an earlier stage's weights into a fresh state; not called when the run is resumed.
        watched: what is called in place of the compiled step.

    Returns:
        The state after the last step.

    Raises:
        ValueError: the method learns from labels, and a training image has none.
        monitor.NotFinite: a metric is NaN or infinite.
        memory.TooLarge: the compiled step needs more memory than there is.
        SystemExit: (code 0) after a SIGTERM or Ctrl-C, once a checkpoint has been started.
    """
    config = program.config
    method = program.method
    total = program.total_steps
    spe = program.steps_per_epoch
    if method.needs_labels:
        source.require_labels(f"method {config.method!r}", several=method.several_labels)
    held_out = test
    if test is not None and not (source.labelled.any() and test.labelled.any()):
        test = None

    state = folder.restore(program.shapes) if folder else None
    if folder is not None and (state is None or int(state.step) < total):
        for line in opening.lines(program, source, held_out):
            folder.say(line)
    if state is None:
        state = start(program.init(seed))
        if method.refresh is not None:
            state = refreshed(program, source, state, seed, folder)
            if folder is not None:
                folder.save(state, {})  # what the first refresh found may have taken long
    if folder is not None:
        progress.forget(folder)

    key = jax.random.key(seed)
    advance = watched(by_shape(program.step, folder.say if folder is not None else None))
    batches = device_batches(program, source, seed, int(state.step), balance_of(program, source, state))
    first = int(state.step) + 1
    for step in range(first, total + 1):
        asked = time.perf_counter()
        batch = next(batches)
        idle = state.step.is_ready()  # type: ignore[attr-defined]  # jax.Array leaves it to ArrayImpl
        starved = time.perf_counter() - asked if idle else 0.0
        state, metrics = advance(state, batch, key)
        last = step == total
        if step == first:
            check_best(config.checkpoint.best, metrics)
            jax.block_until_ready(metrics)  # if memory is too small, say so now and not at the first log line

        if folder is not None:
            folder.tick(step, total, starved, next(iter(metrics.values())))
            if step % config.log_every == 0 or last:
                row = fetched(step, metrics, folder.check_finite)
                row["learning_rate"] = float(program.schedule(jnp.int32(step - 1)))
                folder.log(step, total, row)
        if last and method.finish is not None:
            state = method.finish(state, looking(program, source, state, seed, folder))

        if folder is not None:
            every = config.eval_every_epochs * spe
            if test is not None and every and (last or step % every == 0):
                folder.log_knn(step, online_knn(program, state, source, test))

        if step % spe == 0 and method.refresh is not None and total - step >= spe:
            state = refreshed(program, source, state, seed, folder)
            if method.balance is not None:
                batches.close()  # the batches in flight were drawn from the old clusters
                batches = device_batches(program, source, seed, step, balance_of(program, source, state))

        stop = folder is not None and folder.stop_asked()
        if folder is not None and (last or step % config.checkpoint.every_steps == 0 or stop):
            folder.save(state, fetched(step, metrics, folder.check_finite))
            if stop and not last:
                raise SystemExit(0)  # closing the folder waits for the checkpoint
        elif last:
            fetched(step, metrics)
    batches.close()
    return state


def by_shape(step: jax.stages.Wrapped, say: Callable[[str], None] | None) -> Step:
    """The step, compiled once for every shape of a batch: landscapes and portraits have two.

    Args:
        step: of a program.
        say: takes a line about the memory of every compiled step.

    Raises:
        memory.TooLarge: when it is called; a compiled step needs more memory than there is.
    """
    known: dict[tuple, jax.stages.Compiled] = {}

    def advance(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        shape = tuple(batch[name].shape for name in sorted(batch))
        if shape not in known:
            known[shape] = step.lower(state, batch, key).compile()
            room = memory.fits(memory.needed(known[shape]))
            if say is not None:
                say(room)
        return known[shape](state, batch, key)

    return advance


def check_best(best: str, metrics: Mapping[str, jax.Array]) -> None:
    """Refuse a `checkpoint.best` that nothing ever measures, with a ValueError."""
    if best not in ("", "knn", *metrics):
        raise ValueError(
            f"config.checkpoint.best={best!r} names no metric of this run: it must be knn, empty, or one of "
            f"{', '.join(metrics)}"
        )


def fetched(
    step: int,
    metrics: dict[str, jax.Array],
    check_finite: Callable[[int, dict[str, float]], None] = monitor.check_finite,
) -> dict[str, float]:
    """Fetch the metrics to the host and check that they are finite."""
    host = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if host.get("effective_rank") == 0.0:  # 0 means not measured at this step; a measured rank is at least 1
        del host["effective_rank"]
    check_finite(step, host)
    return host


def online_knn(program: Program, state: TrainState, source: Source, test: Source) -> float:
    """Held-out kNN top-1 in percent, on at most ONLINE_IMAGES evenly spaced labelled images of each split."""
    config = program.config
    encode = functools.partial(program.encode, state.params, state.model_state, state.extra)

    def features(split: Source) -> tuple[np.ndarray, np.ndarray]:
        labelled = np.flatnonzero(split.labelled)
        count = min(len(labelled), ONLINE_IMAGES)
        rows = np.unique(np.linspace(0, len(labelled) - 1, count).astype(np.int64))
        found = encoded(encode, program.mesh, config, split.select(labelled[rows]))
        return found.features, found.labels

    train_features, train_labels = features(source)
    found = knn(
        train_features,
        train_labels,
        *features(test),
        k=neighbours_of(config.evaluate.knn_k, train_labels),
        temperature=config.evaluate.knn_temperature,
        num_classes=program.facts.num_classes,
    )
    return found["top1"]
