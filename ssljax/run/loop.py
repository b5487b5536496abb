"""THE loop: restore; then step, log, evaluate, refresh, checkpoint. Every run of every paper is this file."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from ssljax.data.source import Source
from ssljax.program import Program, balance_of, device_batches, encoded
from ssljax.protocols.knn import knn
from ssljax.run import monitor
from ssljax.run.folder import RunFolder
from ssljax.run.refresh import Run
from ssljax.types import TrainState

ONLINE_IMAGES = 2000  # kNN while training looks at no more than so many training and so many held-out images


def refreshed(
    program: Program, source: Source, state: TrainState, seed: int, folder: RunFolder | None
) -> TrainState:
    """The state after the method's refresh; what that finds is logged at the state's step."""
    step = int(state.step)
    log = functools.partial(folder.log_refresh if folder else monitor.check_finite, step)
    run = Run(program, source, seed, log, lambda: device_batches(program, source, seed, 0))
    return program.method.refresh(state, run)


def fit(
    program: Program,
    source: Source,
    *,
    seed: int,
    folder: RunFolder | None = None,
    test: Source | None = None,
    start: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """Trains to the end and returns the final state.

    The order within a step: update, log, evaluate, refresh, checkpoint. A method that refreshes also does so before the first step: a
    checkpoint holds what was found, so a resumed run does not look again. It does not where less than an epoch is left to learn from it.

    Args:
        program: from `build`.
        source: the training split.
        seed: of the initialisation, the sampling order and every draw.
        folder: where to log and checkpoint; None writes and prints nothing.
        test: the held-out split, for kNN while training; there is none where either split has no labelled image.
        start: puts an earlier stage's weights into a fresh state; not called on resume.

    Raises:
        ValueError: the method learns from labels, and a training image has none.
        monitor.NotFinite: a metric is NaN or infinite.
        SystemExit: (code 0) after a SIGTERM, with a checkpoint written.
    """
    config, total, spe = program.config, program.total_steps, program.steps_per_epoch
    if program.method.needs_labels:
        source.require_labels(f"method {config.method!r}")
    judged = test is not None and source.labelled.any() and test.labelled.any()
    state = folder.restore(program.shapes) if folder else None
    if state is None:
        state = start(program.init(seed))
        state = state if program.method.refresh is None else refreshed(program, source, state, seed, folder)
    key, batches = (
        jax.random.key(seed),
        device_batches(program, source, seed, int(state.step), balance_of(program, source, state)),
    )
    for step in range(int(state.step) + 1, total + 1):
        asked = time.perf_counter()
        batch = next(batches)
        starved = (
            time.perf_counter() - asked if state.step.is_ready() else 0.0
        )  # the devices had nothing else to do
        state, metrics = program.step(state, batch, key)
        last = step == total
        if folder is not None:
            folder.tick(step, total, starved)
            if step % config.log_every == 0 or last:
                folder.log(
                    step,
                    total,
                    spe,
                    {**fetched(step, metrics), "learning_rate": float(program.schedule(step - 1))},
                )
            if judged and config.eval_every_epochs and (last or step % (config.eval_every_epochs * spe) == 0):
                folder.log_knn(step, online_knn(program, state, source, test))
        if step % spe == 0 and program.method.refresh is not None and total - step >= spe:
            state = refreshed(program, source, state, seed, folder)
            if (
                program.method.balance is not None
            ):  # the batches on their way were drawn from the old clusters
                batches.close()
                batches = device_batches(program, source, seed, step, balance_of(program, source, state))
        stop = folder is not None and folder.stop_asked()
        if folder is not None and (last or step % config.checkpoint.every_steps == 0 or stop):
            folder.save(state, fetched(step, metrics))
            if stop and not last:
                raise SystemExit(0)  # whoever opened the folder closes it, which waits for the checkpoint
        elif last:
            fetched(step, metrics)
    batches.close()
    return state


def fetched(step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
    """The metrics on the host, once they are known to be finite."""
    host = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if host.get("effective_rank") == 0.0:  # measured at the logged steps only; a measured rank is at least 1
        del host["effective_rank"]
    monitor.check_finite(step, host)
    return host


def online_knn(program: Program, state: TrainState, source: Source, test: Source) -> float:
    """Held-out kNN top-1 in percent, on at most ONLINE_IMAGES evenly spaced labelled images of each split."""
    config = program.config

    encode = functools.partial(program.encode, state.params, state.model_state, state.extra)

    def features(split: Source) -> tuple[np.ndarray, np.ndarray]:
        labelled = np.flatnonzero(split.labelled)
        rows = np.unique(
            np.linspace(0, len(labelled) - 1, min(len(labelled), ONLINE_IMAGES)).astype(np.int64)
        )
        return encoded(encode, program.mesh, config, split.select(labelled[rows]))[:2]

    return knn(
        *features(source),
        *features(test),
        k=config.evaluate.knn_k,
        temperature=config.evaluate.knn_temperature,
        num_classes=program.facts.num_classes,
    )["top1"]
