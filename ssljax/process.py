"""How a verb begins and ends as a process: what it prints to, and what it says when it fails.

Nothing here imports JAX.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

MISTAKES = (ValueError, OSError, ImportError, MemoryError, FloatingPointError)  # what a user can mend

PERMISSION = "change its permissions, or name another place"
FILE_IN_THE_WAY = "a file is where a folder must be: name another place, or move that file"
AGAIN = "and type the same command again"
FIXES = {
    errno.ENOSPC: f"make room, {AGAIN}",
    errno.EDQUOT: f"make room, {AGAIN}",
    errno.EIO: f"check the disk or the network, {AGAIN}",
    errno.EMFILE: f"raise the limit, e.g. `ulimit -n 4096`, {AGAIN}",
    errno.EACCES: PERMISSION,
    errno.EPERM: PERMISSION,
    errno.EROFS: PERMISSION,
    errno.ENOTDIR: FILE_IN_THE_WAY,
    errno.EEXIST: FILE_IN_THE_WAY,
    errno.EISDIR: "name a file in it",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "name another place",
}


@contextlib.contextmanager
def answered(verb: str) -> Iterator[None]:
    """End a verb with a message instead of a traceback if its user can mend the error.

    Args:
        verb: the name in messages.

    Raises:
        SystemExit: in place of such an error.
    """
    try:
        yield
    except MISTAKES as error:
        raise SystemExit(f"ssljax {verb}: {said(error)}") from error


def said(error: Exception) -> str:
    """The message of an error, and what to do where it is the operating system's."""
    if isinstance(error, OSError) and error.errno in FIXES:
        names = [
            os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
        ]
        return f"{' to '.join(names) or 'a file'}: {error.strerror}; {FIXES[error.errno]}"
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory: close other programs, or use fewer or smaller images"
    return str(error)


def run(main: Callable[[], None]) -> None:
    """Run the main function of a verb as this process.

    An error ends the process at once. Otherwise Python would first wait for the threads that read images and
    for the steps that the devices have been given, which can take minutes.
    """
    lasting_output()
    logging.basicConfig(format="%(levelname)s %(message)s", force=True)  # without names of libraries
    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # figures show a box instead
    try:
        main()
        return
    except SystemExit as end:
        if not end.code:
            raise
        code = end.code if isinstance(end.code, int) else 1
        if not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print("ssljax: interrupted", file=sys.stderr)
    except BaseException:
        code = 1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Lasting(io.FileIO):
    """An output of this process that nothing ends: what cannot be written any more is thrown away."""

    def write(self, data: Any, /) -> int:
        """Write, or from the first error on do nothing."""
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1 and error.errno != errno.EPIPE:
                print(f"the output cannot be written ({error.strerror}), and ends here", file=sys.stderr)
            return len(data)


def lasting_output() -> None:
    """Let this process print to the end, also where nobody reads it or its disk is full.

    A closed output gets its number back first. Otherwise the next file to be opened would have the number,
    and what is printed would go into that file.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is None:
            _reopen(number)
            sink = Lasting(os.open(os.devnull, os.O_WRONLY), "w")
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(sink), "utf-8", "backslashreplace"))
        elif isinstance(old, io.TextIOWrapper) and old.fileno() == number:
            lasting = io.TextIOWrapper(
                io.BufferedWriter(Lasting(number, "w", closefd=False)),
                old.encoding,
                "backslashreplace",  # a name that the terminal's encoding lacks
                line_buffering=old.line_buffering,
                write_through=old.write_through,
            )
            setattr(sys, name, lasting)


def _reopen(number: int) -> None:
    """Open the null device under the number of a closed output, unless a file has that number by now."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
