"""Command-line flags, the same for every verb: --config FILE[:preset], --workdir DIR and overrides --config.optim.learning_rate=0.1."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags


def parse(verb: str, argv: list[str] | None, **extra: str | int | float | bool) -> flags.FlagValues:
    """The flags of `ssljax <verb>`.

    Args:
        verb: the name in messages.
        argv: what follows the verb; None takes it from the command line.
        extra: further flags with their defaults, whose types they take.

    Returns:
        .config (a locked ConfigDict), .workdir, and the further flags. `.arguments` are the words that belong to no flag.

    Raises:
        SystemExit: a flag is missing or wrong; the message says which and what is valid.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "FILE[:preset], e.g. configs/simclr.py:digits", lock_config=True,
                                    flag_values=values, sys_argv=[f"ssljax {verb}", *argv])
    flags.DEFINE_string("workdir", "", "the run's folder", flag_values=values)
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    for name, default in extra.items():
        define[type(default)](name, default, "", flag_values=values)
    _check_file(verb, argv)
    try:
        rest = values([f"ssljax {verb}", *argv])
        config = values.config
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
        text = str(error).strip("'\"").replace("\\n", "\n").replace("\\'", "'")      # a KeyError shows the repr of its message
        raise SystemExit(f"ssljax {verb}: {text}") from error
    if config is None:
        raise SystemExit(f"ssljax {verb}: --config is missing, e.g. --config configs/simclr.py:digits")
    if not values.workdir:
        raise SystemExit(f"ssljax {verb}: --workdir is missing: the folder that this run writes to, e.g. --workdir runs/digits")
    if len(rest) > 1:
        raise SystemExit(f"ssljax {verb}: {rest[1]!r} is no flag; overrides look like --config.seed=1")
    return values


def _check_file(verb: str, argv: list[str]) -> None:
    """A missing config file is answered with the nearest that is there."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word in ("--config", "-config") or word.startswith("--config="):
            path = Path((word.split("=", 1)[1] if "=" in word else following).split(":")[0])
            if not path.exists():
                here = sorted(str(p) for p in Path("configs").glob("*.py"))
                near = difflib.get_close_matches(str(path), here, n=1, cutoff=0.3) or here
                raise SystemExit(f"ssljax {verb}: no file {path} below {Path.cwd()}; "
                                 f"did you mean {', '.join(near) or 'to run from the repository'}?")
