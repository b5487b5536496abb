"""Keep the start-up notes of TensorFlow's C++ from the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Its notes and warnings, before and after its logging is set up. Errors begin with E or F.
NOTES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\)|[IW]\d{4} \d\d:\d\d:|[IW]0000 00:"
)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """Hold back what this process writes to standard error, and pass it on at the end without the notes.

    TensorFlow prints two lines per library when it is imported, whatever TF_CPP_MIN_LOG_LEVEL says, and from
    C++, so that only the file descriptor itself can be redirected. All else is passed on, all the more so
    after an error.
    """
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed, and nothing reaches a terminal
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            lines = [line for line in held if not NOTES.match(line)]
            with contextlib.suppress(OSError):  # nobody reads it any more
                os.write(2, b"".join(lines))
