"""Who writes to a run's folder: one process at a time (of a run on many hosts, the first one).

The file `lock` in the folder says who. It is there while the folder is in use.

On a disk the operating system locks the file and lets go when the process ends, however it ends. A bucket has
no locks, and some network disks have none. There the file is a lease: its holder writes the time into it
once a minute, and it lapses STALE_SECONDS after the last time. A process of the same machine takes a lease
over at once if its holder is dead, which is what happens on a preempted machine that comes back under its own
name. Any other process is refused, and told how long the lease still lasts.

The holder of a lease that someone else has taken over (its machine slept, or both have one name) stops
before it writes again.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from etils import epath

from ssljax.run import files, hosts

STALE_SECONDS = 600  # after this long without a sign of life a lease has lapsed
RENEW_SECONDS = 60  # how often the holder gives one
READ_BACK_SECONDS = 2.0  # two processes that take a free lease at the same moment both see the later one


class Lock:
    """The right to write to a folder, held until `release`."""

    def __init__(self, folder: epath.Path):
        """Hold nothing yet; see `hold`."""
        self.note = ""  # from whom a lease was taken over, for the terminal
        self._folder = folder
        self._file = folder / "lock"
        self._descriptor: int | None = None  # of the locked file
        self._leased = False
        self._renewed = 0.0
        self._me = identity()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def take(self) -> None:
        """Lock the folder, or lease it where there are no locks.

        Raises:
            ValueError: another process holds it, or nobody may write there.
        """
        try:
            if "://" in str(self._folder) or not self._locked():
                self._lease()
        except OSError as error:
            raise ValueError(f"--workdir={self._folder} cannot be written to ({error.strerror})") from error

    def renew(self) -> None:
        """Give a sign of life. Call this often; at most once a minute it does something.

        Raises:
            ValueError: another process has taken the lease over.
        """
        if not self._leased or time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        holder = read(self._file)
        if holder and not self._is_me(holder):
            self._leased = False
            silent = time.monotonic() - self._renewed
            raise ValueError(
                f"{describe(holder)} has taken {self._folder} over: this one gave no sign of life for "
                f"{silent:.0f} s, and {STALE_SECONDS} s are allowed. It stops; let the other one go on"
            )
        self._write()

    def release(self) -> None:
        """Let go. Does nothing if nothing is held."""
        if self._descriptor is not None:
            self._file.unlink(missing_ok=True)  # before the lock is gone, so that it is not another's file
            os.close(self._descriptor)
            self._descriptor = None
        if self._leased and self._is_me(read(self._file)):
            self._file.unlink(missing_ok=True)
        self._leased = False

    def _locked(self) -> bool:
        """Lock the file. False if this disk has no locks.

        Raises:
            ValueError: another process has locked it.
        """
        path = os.fspath(self._file)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise ValueError(self._in_use()) from None
            except OSError:
                os.close(descriptor)
                return False
            if _is_open_file(descriptor, path):
                break
            os.close(descriptor)  # its holder deleted it while we opened it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, self._content().encode())
        self._descriptor = descriptor
        return True

    def _in_use(self) -> str:
        """Why a locked folder is refused."""
        holder = read(self._file)
        who = describe(holder) if holder else "another process"
        return (
            f"{self._folder} is in use: {who} trains in it. Let it finish or stop it (Ctrl-C or kill, which "
            "saves a checkpoint), or use another --workdir"
        )

    def _lease(self) -> None:
        """Write our name into the file, unless a living process stands there.

        Raises:
            ValueError: one does.
        """
        holder = read(self._file)
        if holder and not died(holder):
            silent = max(time.time() - holder["renewed"], 0.0)
            left = STALE_SECONDS - silent
            if left > 0:
                raise ValueError(
                    f"{self._folder} is in use: {describe(holder)} gave a sign of life {silent:.0f} s ago. "
                    f"Let it finish or stop it. If it is gone, start again in {left:.0f} s, or delete "
                    f"{self._file} and start at once"
                )
            self.note = f"taking {self._folder} over from {describe(holder)}, silent for {silent:.0f} s"
        elif holder:
            self.note = f"taking {self._folder} over from {describe(holder)}, which is gone"
        self._write()
        time.sleep(READ_BACK_SECONDS)
        holder = read(self._file)
        if not self._is_me(holder):
            who = describe(holder) if holder else "another process"
            raise ValueError(f"{self._folder} is in use: {who} came first. Use another --workdir")
        self._leased = True

    def _write(self) -> None:
        files.replace(self._file, self._content())
        self._renewed = time.monotonic()

    def _content(self) -> str:
        return json.dumps({**self._me, "renewed": time.time()})

    def _is_me(self, holder: dict[str, Any]) -> bool:
        return {name: holder.get(name) for name in self._me} == self._me


def hold(folder: epath.Path) -> Lock:
    """Take the lock of a folder that exists. Call this on every host; the first one takes it for all.

    Raises:
        ValueError: another run holds it; on every host.
    """
    lock = Lock(folder)
    refusal = ""
    if jax.process_index() == 0:
        try:
            lock.take()
        except ValueError as error:
            refusal = str(error)
    refusal = hosts.from_first(refusal)
    if refusal:
        raise ValueError(refusal)
    return lock


def identity() -> dict[str, Any]:
    """What tells this process from all others, on this and other machines."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": _content_of("/etc/machine-id"),
        "pid": pid,
        "born": born(pid),
        "since": time.time(),
    }


def born(pid: int) -> str:
    """When a process began, as a text that no other process of the same number has; "" if unknown."""
    found = _content_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not found or found[0] == "Z":  # a zombie has ended
        return ""
    return f"{_content_of('/proc/sys/kernel/random/boot_id')} {found[19]}"


def died(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lease was a process of this machine that is no more."""
    here = identity()
    if (holder["host"], holder["machine"]) != (here["host"], here["machine"]):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it is another user's
        pass
    return born(holder["pid"]) != holder["born"]  # another process has its number now


def describe(holder: dict[str, Any]) -> str:
    """The holder of a lock, for messages."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']} (since {since})"


def read(file: epath.Path) -> dict[str, Any]:
    """Who holds a lock or a lease, {} if nobody does."""
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):  # it was let go just now, or is being written
        return {}
    return found if isinstance(found, dict) and {*identity(), "renewed"} <= found.keys() else {}


def _is_open_file(descriptor: int, path: str) -> bool:
    """Whether a path still leads to this open file."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _content_of(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
