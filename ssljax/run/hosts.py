"""One run on many hosts: the same command and one process on each, which start, stop and fail together.

On TPU slices and under SLURM the processes find each other. Elsewhere flags say where the first one listens:

    ssljax train ... --coordinator 10.0.0.1:8476 --processes 2 --process 0   # --process 1 on the other

A process whose peer has died cannot continue. It must not wait for the peer either, in a collective or in the
barrier at the end of a program. So in a run of several processes every error ends the process at once. A
process that does not notice is ended by JAX when the heartbeats stop.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ssljax.config import flat
from ssljax.results import versions

FLAGS: dict[str, str | int] = {
    "coordinator": "",
    "processes": 1,
    "process": 0,
}  # for `cli.parse`, with defaults
HEARTBEAT_SECONDS = 10  # a host that is silent for this long counts as dead
GOODBYE_SECONDS = 60  # how long a finished host waits for the others
MEET_SECONDS = 600  # listing millions of files on a slow disk takes some hosts longer than others

_asked = itertools.count()
_compared = itertools.count()  # the same on all hosts, as they all compare and tell the same number of times


def several(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this process may be one of many.

    A single TPU host also counts as one of many, because only Google's metadata server knows how many there
    are.

    Args:
        environment: os.environ after the import of jax, which sets TPU_ML_PLATFORM when it finds TPU chips.
    """
    platforms = environment.get("JAX_PLATFORMS") or "tpu"
    if platforms.startswith("tpu") and environment.get("TPU_ML_PLATFORM") == "JAX":
        return True
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")  # of this `srun`, not of the whole job
    return int(tasks) > 1


def start(coordinator: str = "", processes: int = 1, process: int = 0) -> None:
    """Join the other processes of the run, if there are any. Call this before anything asks JAX for a device.

    Args:
        coordinator: host:port at which process 0 listens; "" finds the others through the environment, or
            starts nothing.
        processes: how many processes there are.
        process: the number of this one, from 0.

    Raises:
        ValueError: the flags do not fit together.
    """
    if coordinator:
        if ":" not in coordinator:
            raise ValueError(
                f"--coordinator={coordinator} has no port: write {coordinator}:8476, the same on every host"
            )
        if not 0 <= process < processes:
            raise ValueError(
                f"--process={process} with --processes={processes}: "
                f"processes are numbered from 0 to {processes - 1}"
            )
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=GOODBYE_SECONDS,
        )
    elif (processes, process) != (1, 0):
        raise ValueError(
            f"--processes={processes} --process={process} without --coordinator: "
            "say where process 0 listens, e.g. --coordinator=10.0.0.1:8476"
        )
    elif several(os.environ):
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=GOODBYE_SECONDS
        )


@contextlib.contextmanager
def together(verb: str, coordinator: str, processes: int, process: int) -> Iterator[None]:
    """Join the other processes, if any, and let an error end this process at once and the others soon after.

    Without this, Python's exit would pass a barrier that waits for every other host, and minutes for a dead
    one.

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
        finished = isinstance(error, SystemExit) and not error.code
        if finished or not jax.distributed.is_initialized():
            raise
        leave(verb, error)


def leave(verb: str, error: BaseException) -> NoReturn:
    """Print what happened and end the process at once, without telling the other hosts. They will notice."""
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        traceback.print_exception(error)
    cause = ""
    if isinstance(error, jax.errors.JaxRuntimeError):
        cause = ": most likely another host died, see its last output"
    print(
        f"ssljax {verb}: this host stops after an error{cause}. All others stop too. "
        "The same command on every host resumes from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(1)


def meet(name: str) -> None:
    """Wait until every host has arrived here. Returns at once if there is only one.

    Args:
        name: the name of the barrier, the same on every host.

    Raises:
        Exception: a host did not arrive within MEET_SECONDS.
    """
    ocp.multihost.get_barrier_sync_fn()(key=f"ssljax {name}", timeout_ms=1000 * MEET_SECONDS)


def started_alike(config: ConfigDict, **flags: str | int | bool) -> None:
    """Refuse hosts that were started with different commands or versions. See `same`.

    Args:
        config: the whole config, with all of its stages.
        flags: the other flags that all hosts must share.
    """
    if jax.process_count() == 1:
        return
    installed = versions()
    same(
        {
            **{f"--{name}": value for name, value in flags.items()},
            **{f"--config.{name}": value for name, value in flat(config).items()},
            **{name: installed.get(name, "none") for name in ("ssljax", "jax", "jaxlib")},
            "python": "{}.{}".format(*sys.version_info),
        }
    )


def same(things: Mapping[str, Any]) -> None:
    """Refuse hosts that differ in something. Returns at once if there is only one.

    The hosts compare texts through JAX's coordination service, which needs no device. No key depends on what
    is compared, so hosts that differ still meet.

    Args:
        things: what must be the same on all hosts, by the name in messages; values as JSON holds them.

    Raises:
        ValueError: something differs; on every host, with what each host has.
    """
    if jax.process_count() == 1:
        return
    client = ocp.multihost.get_jax_distributed_client()
    me = jax.process_index()
    place = f"ssljax/compared/{next(_compared)}"
    mine = json.loads(json.dumps(things))  # tuples become lists
    if me == 0:
        client.key_value_set(f"{place}/first", json.dumps(mine))
    first = json.loads(client.blocking_key_value_get(f"{place}/first", 1000 * MEET_SECONDS))
    if mine != first:
        client.key_value_set(f"{place}/other/{me:06}", difference(me, mine, first))
    meet(f"{place} is written")
    found = [text for _, text in sorted(client.key_value_dir_get(f"{place}/other/"))]
    if found:
        meet(f"{place} is read")  # the first host must not end while others still read
        more = f"; {len(found) - 3} more hosts differ too" if len(found) > 3 else ""
        raise ValueError(
            f"the hosts were not started alike: {'; '.join(found[:3])}{more}. Start the same command, with "
            "the same versions and data, on every host"
        )


def difference(host: int, its: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """How the things of a host differ from those of host 0: the first three of them."""
    names = [name for name in {**first, **its} if first.get(name) != its.get(name)]
    here = ", ".join(_said(name, its) for name in names[:3])
    there = ", ".join(_said(name, first, alone=len(names) == 1) for name in names[:3])
    more = f" ({len(names)} differ)" if len(names) > 3 else ""
    return f"host {host} has {here} and host 0 has {there}{more}"


def _said(name: str, things: Mapping[str, Any], alone: bool = False) -> str:
    value = things.get(name, "absent")
    return f"{value}" if alone else f"{name}={value}"


def from_first(text: str) -> str:
    """The text that the first host gives, on all hosts. Call this on every host."""
    if jax.process_count() == 1:
        return text
    client = ocp.multihost.get_jax_distributed_client()
    place = f"ssljax/told/{next(_compared)}"
    if jax.process_index() == 0:
        client.key_value_set(place, text)
    told = client.blocking_key_value_get(place, 1000 * MEET_SECONDS)
    meet(f"{place} is read")
    return told


def stop_asked() -> bool:
    """Whether any host was sent SIGTERM.

    Call this once per step on every host. Soon after the signal, all hosts get True at the same step.
    """
    return multihost_utils.reached_preemption_sync_point(next(_asked))
