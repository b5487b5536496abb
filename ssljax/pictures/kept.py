"""The names of galleries: which file beside a results.jsonl has the pictures of which config."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from etils import epath

from ssljax import results
from ssljax.pictures.tables import Group


def gallery_file(folder: epath.Path, label: str, config_hash: str) -> epath.Path:
    """Where the gallery of a config goes: gallery-LABEL.npz, or with the hash if another config has that.

    Args:
        folder: of the results.jsonl.
        label: of the preset and its stage, see `results.label`.
        config_hash: of the config.
    """
    plain = folder / f"gallery-{label}.npz"
    if not plain.exists() or config_of(plain) in ("", config_hash):
        return plain
    return folder / f"gallery-{label}-{config_hash}.npz"


def config_of(gallery: Path | epath.Path) -> str:
    """The hash of a gallery's config; "" for one that is older than this field, or damaged."""
    try:
        with gallery.open("rb") as file, np.load(file) as fields:
            return str(fields["config_hash"]) if "config_hash" in fields else ""
    except (OSError, ValueError, zipfile.BadZipFile):
        return ""


def galleries(folder: Path, known: Sequence[Group]) -> dict[str, Path]:
    """The gallery of each group that has one, by the group's slug.

    A gallery that does not say of which config it is belongs to the newest group of its preset.

    Args:
        folder: of the report. Galleries in the folders of runs, at most two below, count too.
        known: the groups, the newest of a preset first.
    """
    found: dict[str, Path] = {}
    for depth in ("", "*/", "*/*/"):
        for file in sorted(folder.glob(f"{depth}gallery-*.npz")):
            its = config_of(file)
            for group in known:
                label = results.label(group.preset, group.stage)
                named = file.stem in (f"gallery-{label}", f"gallery-{label}-{its}")
                if named and (its == group.rows[0]["config_hash"] or (not its and not depth)):
                    found.setdefault(group.slug, file)
                    break
    return found
