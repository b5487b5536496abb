"""Out of memory: what was asked for, what there is, and what to type."""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

GIB = 2**30
# As the CPU, a GPU and a TPU say it.
ASKED = re.compile(r"(?:allocat\w+|[Aa]ttempting to reserve|Used) ([\d.]+)\s*([KMGT]?)i?B?(?: bytes| of|\b)")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
FULL = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


class TooLarge(MemoryError):
    """A compiled step that needs more memory than there is.

    Attributes:
        asked: the bytes that it needs.
    """

    def __init__(self, asked: int):
        super().__init__(f"the step needs {asked} bytes")
        self.asked = asked


def needed(step: jax.stages.Compiled) -> int:
    """The bytes that a compiled step takes of a device's memory, by the compiler; 0 if it does not say.

    On CPUs all devices share the memory of the machine, and the sum is returned.
    """
    found = step.memory_analysis()
    if found is None:
        return 0
    each = (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )
    shared = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    return each * shared


def fits(asked: int) -> str:
    """What a step takes of what there is, in words.

    Raises:
        TooLarge: it is more than there is.
    """
    size, _ = limit()
    if size and asked > size:
        raise TooLarge(asked)
    return f"memory: a step takes {asked / GIB:.2f} GiB; {limit_text()}"


@contextlib.contextmanager
def explained(config: ConfigDict, stage: str = "", *, verb: str, pieces: bool = False) -> Iterator[None]:
    """Turn XLA's error about memory into one that says what was asked for, what there is, and what would fit.

    Args:
        config: of the stage.
        stage: its name, for what to type; "" for a run without stages.
        verb: what is running: train, evaluate or embed.
        pieces: whether `accumulate` can split the method's batch.

    Raises:
        MemoryError: in place of jax.errors.JaxRuntimeError, if memory was what it is about; or of TooLarge.
    """
    key = f"--config.{stage}." if stage else "--config."
    try:
        yield
    except TooLarge as error:
        advice = smaller(config, key, error.asked, pieces=pieces)
        raise MemoryError(
            f"a step would take {error.asked / GIB:.1f} GiB, and {limit_text()}. {advice}"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if not any(word in str(error) for word in FULL):
            raise
        asked = wanted(str(error))
        advice = smaller(config, key, asked, pieces=pieces) if verb == "train" else at_once(config, key, verb)
        raise MemoryError(f"out of memory: {asked_for(asked)}{limit_text()}. {advice}") from error


def wanted(message: str) -> int:
    """How many bytes XLA's message says were asked for; 0 if it does not say."""
    found = ASKED.search(message)
    return int(float(found[1]) * UNITS[found[2]]) if found else 0


def asked_for(asked: int) -> str:
    """The subject of the message."""
    return f"{asked / GIB:.1f} GiB were asked for at once, and " if asked else ""


def limit() -> tuple[int, str]:
    """The memory of a device in bytes, 0 if it does not say, and the words before it."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _host_limit()
    stats = device.memory_stats() or {}
    return int(stats.get("bytes_limit", 0)), f"each {device.device_kind} has"


def limit_text() -> str:
    """What there is, in words."""
    size, words = limit()
    return f"{words} {size / GIB:.1f} GiB" if size else f"{words} less"


def _host_limit() -> tuple[int, str]:
    """What this process may have: the machine's memory, or less in a container or under `ulimit -v`."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [machine]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and group.read_text().strip().isdigit():
        limits.append(int(group.read_text()))
    return min(limits), "this machine has" if min(limits) == machine else "this process may use"


def smaller(config: ConfigDict, key: str, asked: int, *, pieces: bool) -> str:
    """What to type for a training step that takes less memory.

    Args:
        config: of the stage.
        key: how its settings begin on the command line.
        asked: bytes that did not fit; 0 if unknown.
        pieces: whether `accumulate` can split the batch.
    """
    size, _ = limit()
    factor = 2
    while asked and size and asked / factor > 0.7 * size:  # the step needs more than this one array
        factor *= 2
    devices = jax.device_count()
    batch = max(config.batch_size // factor // devices, 1) * devices
    ways = [f"{key}batch_size={batch}"]
    if pieces and config.batch_size % (factor * config.accumulate * devices) == 0:
        ways.append(f"{key}accumulate={factor * config.accumulate} (the same batch, in pieces)")
    ways.append(f"{key}data.image_size={max(config.data.image_size // 2, 1)}")
    if config.preset == "folder":
        ways.append(f"--config {config.name}:folder_small")
    return f"Try {' or '.join(ways)}, with another --workdir, because a run keeps its settings"


def at_once(config: ConfigDict, key: str, verb: str) -> str:
    """What to type to encode fewer images at once. `embed` takes what the run's folder says."""
    setting = f"{key}evaluate.batch_size={max(config.evaluate.batch_size // 4, 1)}"
    if verb == "embed":
        return f"Start `ssljax train` on the run once more with {setting}, which changes nothing else"
    return f"Try {setting}"
