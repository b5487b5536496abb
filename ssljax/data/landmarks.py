"""Sets for image retrieval: which images are searched, with which queries, and what should be found.

    ROxford, RParis     gnd_NAME.pkl and jpg/, as revisitop distributes them (Radenovic et al. 2018)
    Oxford5k, Paris6k   NAME_query.txt, _good.txt, _ok.txt and _junk.txt in lab/, and jpg/
    any folder          index.json, a list of {"file": ..., "place": ..., "kind": ...}, with the files beside
                        it or in images/; images of one place are to be found with one another
    any class folders   the same, the classes are the places

In the last two every image of a place that has another image is a query, and leaves the database for it.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssljax.data import damage, folder, formats, pillow

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the stored image."""

# Files of Paris6k that are damaged; evaluations leave them out.
DAMAGED = {
    "louvre": ("000136", "000146"),
    "moulinrouge": ("000422",),
    "museedorsay": ("001059",),
    "notredame": ("000188",),
    "pantheon": ("000284", "000960", "000974"),
    "pompidou": ("000195", "000196", "000201", "000467", "000640"),
    "sacrecoeur": ("000299", "000330", "000353"),
    "triomphe": ("000662", "000833", "000863", "000867"),
}
DAMAGED_FILES = {f"paris_{place}_{number}" for place, numbers in DAMAGED.items() for number in numbers}


class Landmarks(NamedTuple):
    """A set for retrieval, with N images and Q queries.

    Attributes:
        protocol: "revisited", "original" or "instances".
        files: N paths, the database.
        queries: Q paths.
        boxes: the part of each query that is searched for; None is the whole image.
        found: name -> (Q arrays of the positions that should be found, Q of those that do not count).
            "easy", "medium" and "hard" for "revisited", else "".
        kinds: Q words that tell groups of queries apart; all "" if there are none.
    """

    protocol: str
    files: list[str]
    queries: list[str]
    boxes: list[Box | None]
    found: dict[str, tuple[list[np.ndarray], list[np.ndarray]]]
    kinds: list[str]


def load(path: str) -> Landmarks:
    """Read a set, of whichever kind lies in the folder `path`.

    Raises:
        FileNotFoundError: there is no folder, it is none of the four kinds, or an image is missing.
        ValueError: nothing in it can be found, because no place has two images; or the ground truth is
            damaged.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    pickled = sorted(root.glob("gnd_*.pkl"))
    if pickled:
        read = _revisited(root, pickled[0])
    elif any(root.glob("lab/*_query.txt")):
        read = _original(root)
    elif (root / "index.json").exists():
        read = _indexed(root)
    elif folder.class_folders(root):
        files, labels, classes = folder.list_classes(root)
        read = _instances(files, [classes[label] for label in labels], [""] * len(files), root)
    else:
        raise FileNotFoundError(
            f"{root} has neither gnd_*.pkl, lab/*_query.txt, index.json nor class folders: see "
            "docs/transfer.md for the layouts"
        )
    missing = next((file for file in (*read.files, *read.queries) if not Path(file).exists()), None)
    if missing:
        raise FileNotFoundError(f"{root} names the image {missing}, which is not there: unpack it again")
    return read


class _Plain(pickle.Unpickler):
    """Reads lists, dicts, numbers, words and NumPy arrays, and refuses to run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """The few functions that NumPy stores arrays with."""
        if module.split(".")[0] == "numpy" and name in ("ndarray", "dtype", "scalar", "_reconstruct"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _revisited(root: Path, file: Path) -> Landmarks:
    """ROxford or RParis. Queries are not in the database, and are cropped to their box."""
    try:
        stored = _Plain(io.BytesIO(file.read_bytes()), encoding="latin1").load()
        names, queries, truth = stored["imlist"], stored["qimlist"], stored["gnd"]
        parts = {key: [np.array(one[key], int) for one in truth] for key in ("easy", "hard", "junk")}
        boxes = [tuple(float(side) for side in one["bbx"]) for one in truth]
    except (pickle.UnpicklingError, KeyError, TypeError, EOFError) as error:
        raise ValueError(
            f"{file} is not the ground truth of ROxford or RParis ({error!r}): download it again from "
            "revisitop, whose file has imlist, qimlist and gnd with bbx, easy, hard and junk"
        ) from error
    return Landmarks(
        protocol="revisited",
        files=[str(root / "jpg" / f"{name}.jpg") for name in names],
        queries=[str(root / "jpg" / f"{name}.jpg") for name in queries],
        boxes=boxes,  # type: ignore[arg-type]  # four numbers each
        found={
            "easy": (parts["easy"], _both(parts["junk"], parts["hard"])),
            "medium": (_both(parts["easy"], parts["hard"]), parts["junk"]),
            "hard": (parts["hard"], _both(parts["junk"], parts["easy"])),
        },
        kinds=[""] * len(queries),
    )


def _both(one: list[np.ndarray], other: list[np.ndarray]) -> list[np.ndarray]:
    return [np.concatenate(pair) for pair in zip(one, other, strict=True)]


def _original(root: Path) -> Landmarks:
    """Oxford5k or Paris6k. Queries stay in the database, among what should be found."""
    names = sorted(file.stem for file in (root / "jpg").glob("*.jpg") if file.stem not in DAMAGED_FILES)
    position = {name: i for i, name in enumerate(names)}
    queries = []
    boxes = []
    good = []
    junk = []
    for file in sorted(root.glob("lab/*_query.txt")):
        name, *box = file.read_text().split()
        queries.append(name.removeprefix("oxc1_"))
        boxes.append(tuple(float(side) for side in box))

        def listed(kind: str, query: Path = file) -> set[str]:
            return set(query.with_name(query.name.replace("_query", f"_{kind}")).read_text().split())

        wanted = listed("good") | listed("ok")
        good.append(np.array(sorted(position[n] for n in wanted if n in position), int))
        junk.append(np.array(sorted(position[n] for n in listed("junk") - wanted if n in position), int))
    return Landmarks(
        protocol="original",
        files=[str(root / "jpg" / f"{name}.jpg") for name in names],
        queries=[str(root / "jpg" / f"{name}.jpg") for name in queries],
        boxes=boxes,  # type: ignore[arg-type]  # four numbers each
        found={"": (good, junk)},
        kinds=[""] * len(queries),
    )


def _indexed(root: Path) -> Landmarks:
    """A folder with an index.json."""
    try:
        entries = json.loads((root / "index.json").read_text())
        files = [entry["file"] for entry in entries]
        places = [str(entry["place"] if "place" in entry else entry["instance"]) for entry in entries]
        kinds = [str(entry.get("kind", "")) for entry in entries]
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{root}/index.json is not a list of objects with `file` and `place` ({error!r}): write one "
            "object per image, images of the same place with the same `place`"
        ) from error
    at = root / "images" if (root / "images").is_dir() else root
    return _instances([str(at / file) for file in files], places, kinds, root)


def _instances(files: list[str], places: list[str], kinds: list[str], root: Path) -> Landmarks:
    """Images of one place are to be found with one another; a query does not count as found."""
    _, place, count = np.unique(places, return_inverse=True, return_counts=True)
    queries = np.flatnonzero(count[place] > 1)
    if not len(queries):
        raise ValueError(f"{root}: every place has one image, so there is nothing to find")
    alike = [np.flatnonzero(place == place[query]) for query in queries]
    return Landmarks(
        protocol="instances",
        files=files,
        queries=[files[query] for query in queries],
        boxes=[None] * len(queries),
        found={
            "": (
                [rows[rows != query] for rows, query in zip(alike, queries, strict=True)],
                [np.array([query]) for query in queries],
            )
        },
        kinds=[kinds[query] for query in queries],
    )


def shape_of(height: int, width: int, longest: int) -> tuple[int, int]:
    """The shape that an image is resized to, (height, width).

    The longer side becomes `longest` pixels. The shorter is rounded to a 32nd of that, so that there are at
    most 33 shapes a side and as many compilations; it is off by at most a 64th of the longer side.
    """
    step = max(1, longest // 32)
    ratio = longest / max(height, width)

    def side(length: int) -> int:
        return longest if length == max(height, width) else max(step, round(length * ratio / step) * step)

    return side(height), side(width)


def read(file: str, channels: int) -> np.ndarray:
    """Read an image: uint8 [H, W, channels], upright and opaque.

    Raises:
        ValueError: it cannot be read as an image.
    """
    return pixels(Path(file).read_bytes(), channels, file)


def pixels(encoded: bytes, channels: int, name: str) -> np.ndarray:
    """`read` of an encoded image; `name` is for the error."""
    from PIL import Image

    try:
        file = io.BytesIO(formats.plain(encoded, "white"))
        image: Image.Image = Image.open(file, formats=damage.FORMATS)
        image = image.convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as an image ({error}): unpack it again") from error
    return np.asarray(image).reshape(image.height, image.width, channels)


def squashed(image: np.ndarray, side: int, box: Box | None = None) -> np.ndarray:
    """The image, or the part in the box, as a square of `side` pixels: uint8 [side, side, C]."""
    height, width = image.shape[:2]
    left, top, right, bottom = (round(edge) for edge in box or (0, 0, width, height))
    return pillow.resize(image[max(top, 0) : bottom, max(left, 0) : right], side, side, "bilinear")


def resized(image: np.ndarray, longest: int, box: Box | None = None) -> np.ndarray:
    """Resize an image by bilinear interpolation, so that its longer side has `longest` pixels.

    As in DeepCluster's code, a box is cut out of the resized image. The sides of the result are rounded, see
    `shape_of`.

    Args:
        image: uint8 [h, w, C].
        longest: in pixels.
        box: left, top, right, bottom in pixels of `image`.

    Returns:
        uint8 [H, W, C].
    """
    height, width = image.shape[:2]
    if box is None:
        return pillow.resize(image, *shape_of(height, width, longest), "bilinear")
    ratio = longest / max(height, width)
    whole = pillow.resize(image, round(height * ratio), round(width * ratio), "bilinear")
    left, top, right, bottom = (round(edge * ratio) for edge in box)
    part = whole[max(top, 0) : bottom, max(left, 0) : right]
    step = max(1, longest // 32)
    rows, columns = (max(step, round(side / step) * step) for side in part.shape[:2])
    return part if part.shape[:2] == (rows, columns) else pillow.resize(part, rows, columns, "bilinear")
