"""Many hosts, one run: the same command on each of them, one process a host, and together they start, stop and fail.

On TPU slices and under SLURM the processes find each other by themselves; elsewhere flags say where the first one listens:

    ssljax train ... --coordinator 10.0.0.1:8476 --processes 2 --process 0        # and --process 1 on the other machine

A process whose peer has died cannot go on and must not wait for it either, be it in a collective or in the barrier at the end of a program.
So among many every error ends the process at once, and a process that does not notice is ended by JAX when the heartbeats stay away.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import NoReturn

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

FLAGS = {"coordinator": "", "processes": 1, "process": 0}  # for `cli.parse`, with their defaults
HEARTBEAT_SECONDS = 10  # a host that is silent for so long is dead
GOODBYE_SECONDS = 60  # how long a host that is done waits for the others
MEET_SECONDS = 600  # hosts list their images at their own speed: millions of files on a slow disk

_asked = itertools.count()


def several(environment: Mapping[str, str]) -> bool:
    """Does the environment say that this process may be one of many?

    Args:
        environment: os.environ, after the import of jax, which puts TPU_ML_PLATFORM there when it finds TPU chips. A single TPU host is
            started like one of many: only Google's metadata server knows how many there are.
    """
    if (environment.get("JAX_PLATFORMS") or "tpu").startswith("tpu") and environment.get(
        "TPU_ML_PLATFORM"
    ) == "JAX":
        return True
    return int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1  # of this `srun`, not of the job around it


def start(coordinator: str = "", processes: int = 1, process: int = 0) -> None:
    """Joins the other processes of the run, if there are any. Call it before anything asks JAX for a device.

    Args:
        coordinator: host:port at which process 0 listens; "" finds the others by the environment, or starts nothing.
        processes: how many there are.
        process: which one this is, from 0.

    Raises:
        ValueError: the flags do not fit together.
    """
    patience = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": GOODBYE_SECONDS}
    if coordinator:
        if ":" not in coordinator:
            raise ValueError(
                f"--coordinator={coordinator} has no port: write {coordinator}:8476, the same on every host"
            )
        if not 0 <= process < processes:
            raise ValueError(
                f"--process={process} with --processes={processes}: processes are numbered from 0 to {processes - 1}"
            )
        jax.distributed.initialize(
            coordinator, processes, process, cluster_detection_method="deactivate", **patience
        )
    elif (processes, process) != (1, 0):
        raise ValueError(
            f"--processes={processes} --process={process} without --coordinator: say where process 0 listens, "
            "e.g. --coordinator=10.0.0.1:8476"
        )
    elif several(os.environ):
        jax.distributed.initialize(**patience)


@contextlib.contextmanager
def together(verb: str, coordinator: str, processes: int, process: int) -> Iterator[None]:
    """Starts as one of many, if so, and ends as one of many: an error inside ends this process at once, and so, soon, all the others.

    Python's own way out of an error leads through a barrier in which every other host is awaited, a dead one for minutes.

    Args:
        verb: the name in messages.
        coordinator, processes, process: see `start`.
    """
    try:
        try:
            start(coordinator, processes, process)
        except ValueError as error:
            raise SystemExit(f"ssljax {verb}: {error}") from error
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized() or (isinstance(error, SystemExit) and not error.code):
            raise
        leave(verb, error)


def leave(verb: str, error: BaseException) -> NoReturn:
    """Says what happened and ends the process here and now, without a word to the other hosts: they notice."""
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        traceback.print_exception(error)
    cause = ""
    if isinstance(error, jax.errors.JaxRuntimeError):
        cause = ": most likely another host died, see what it printed last"
    print(
        f"ssljax {verb}: this host stops after an error{cause}. All others stop too. The same command on every host goes on from the "
        "last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(1)


def meet(name: str) -> None:
    """Returns when every host has come here; at once when there is only one.

    Raises:
        Exception: a host did not come within MEET_SECONDS.
    """
    ocp.multihost.get_barrier_sync_fn()(key=f"ssljax {name}", timeout_ms=1000 * MEET_SECONDS)


def stop_asked() -> bool:
    """Has any host been sent SIGTERM? To be asked once a step by every host; the one yes comes to all at the same step, soon after."""
    return multihost_utils.reached_preemption_sync_point(next(_asked))
