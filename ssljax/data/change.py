"""What a run remembers of its data, and what changed when it is started again."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssljax.data.source import Source, digest

NAMED_BYTES = 60_000  # the names of all files are kept where they take no more than this


def describe(source: Source) -> dict[str, Any]:
    """What is worth remembering of a split. A million files take a second or two.

    Returns:
        JSON: `checksum` (of the source), `images` (how many), and `classes`: a list of the name, the number
        of images and a digest of each class, in the order of the labels. Images without a label are a class
        without a name. The digest covers the order, the names below the class folder and the sizes of the
        files; or the positions of the records; and the pixels, if they are held in memory. `files` lists the
        same things per file, if there are few.
    """
    groups = []
    listed: list[list[str]] = []
    room = NAMED_BYTES if source.file_of is not None else 0
    order = np.argsort(source.labels, kind="stable")
    labels = source.labels[order]
    for label in range(-1, len(source.class_names)):
        name = "" if label < 0 else source.class_names[label]
        rows = order[slice(*np.searchsorted(labels, (label, label + 1)))]
        if label < 0 and not len(rows):
            continue
        entries = [_entry(source, i, name) for i in rows.tolist()]
        groups.append([name, len(rows), digest("\n".join(entries).encode())[:8]])
        room -= sum(len(entry) + 4 for entry in entries)  # and quotes, a comma and a blank
        if room >= 0:  # the lists of millions of files would fill the memory
            listed.append(entries)
    found = {"checksum": source.checksum, "images": len(source), "classes": groups}
    if len(listed) == len(groups):
        found["files"] = listed
    return found


def _entry(source: Source, i: int, name: str) -> str:
    """One image: its file below the class folder, or its id; a blank; its size and the sum of its pixels."""
    index = int(source.index[i])
    if source.file_of is None:
        file, size = str(index), ""
    else:
        file, bytes_ = source.file_of(index)
        size = str(bytes_)
        if name:
            before, folder, below = f"/{file}".partition(f"/{name}/")
            file = below if folder else before[1:]
    pixels = "" if source.images is None else f"/{zlib.crc32(source.images[i]):08x}"
    return f"{file} {size}{pixels}"


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first difference between two descriptions, as a sentence without the full stop; "" if none.

    Args:
        old, new: from `describe`.
    """
    if old["classes"] == new["classes"] and old["checksum"] == new["checksum"]:
        return ""
    if [name for name, *_ in old["classes"]] != [name for name, *_ in new["classes"]]:
        return _other_classes(old["classes"], new["classes"])

    pairs = list(zip(old["classes"], new["classes"], strict=True))
    differ = [i for i, (before, now) in enumerate(pairs) if before != now]
    if not differ:
        return f"the checksum of the {old['images']} images was {old['checksum']}, now {new['checksum']}"
    for i in differ:
        for j in differ:
            if i < j and pairs[i][0][1:] == pairs[j][1][1:] and pairs[j][0][1:] == pairs[i][1][1:]:
                return f"the images of the classes {pairs[i][0][0]} and {pairs[j][0][0]} changed places"
    counted = [i for i in differ if pairs[i][0][1] != pairs[i][1][1]]
    first = (counted or differ)[0]
    (name, count, _), (_, now, _) = pairs[first]
    what = f"class {name} " if name else "the folder "
    what += f"had {count} images, now {now}" if count != now else f"has {count} images as before, but others"
    if "files" in old and "files" in new:
        what += f": {_other_files(name, old['files'][first], new['files'][first])}"
    return what


def _other_classes(old: list[list], new: list[list]) -> str:
    """How the lists of classes differ."""
    before = [name for name, *_ in old]
    after = [name for name, *_ in new]
    gone = [group for group in old if group[0] not in after]
    added = [group for group in new if group[0] not in before]
    if len(gone) == len(added) == 1 and gone[0][1:] == added[0][1:]:
        return f"class {gone[0][0]} is now called {added[0][0]}"
    said = [f"class {name} is gone" for name, *_ in gone[:3]]
    said += [f"class {name} is new" for name, *_ in added[:3]]
    if not said:
        return "the classes are the same, in another order"
    return f"{', '.join(said)} (there were {len(before)} classes, now {len(after)})"


def _other_files(name: str, old: list[str], new: list[str]) -> str:
    """How the files of one class differ."""
    before = dict(entry.rsplit(" ", 1) for entry in old)
    after = dict(entry.rsplit(" ", 1) for entry in new)
    below = f"{name}/" if name else ""
    gone = [f"{below}{file} is gone" for file in before if file not in after]
    added = [f"{below}{file} is new" for file in after if file not in before]
    said = gone[:2] + added[:2]
    if not said:
        file = next((file for file in before if before[file] != after[file]), "")
        if not file:
            return "they are in another order"
        return f"{below}{file} {_other_content(before[file], after[file])}"
    more = len(gone) + len(added) - len(said)
    return ", ".join(said) + (f" and {more} more" if more else "")


def _other_content(old: str, new: str) -> str:
    """How the size and the pixels of a file changed; each is what follows the blank in `_entry`."""
    before, now = old.partition("/")[0], new.partition("/")[0]
    if before != now:
        return f"had {before} bytes, now {now}"
    return "has other pixels, or another version of Pillow decodes it"
