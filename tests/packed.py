"""Golden files in little room: all arrays of one dtype in one row of bytes, and an index of their names.

    python -m tests.packed tests/golden/NAME.npz ...     # packs files as np.savez writes them, in place

A file of hundreds of small arrays takes half the room. Nothing is rounded.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

INDEX = "index"


def read(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a golden file, packed or as np.savez writes it."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if INDEX not in arrays:
        return arrays
    rows = {
        name: np.ascontiguousarray(planes.T).reshape(-1).view(name)
        for name, planes in arrays.items()
        if name != INDEX
    }
    found = {}
    for name, (dtype, shape, start) in json.loads(arrays[INDEX].tobytes()).items():
        size = int(np.prod(shape))
        found[name] = rows[dtype][start : start + size].reshape(shape)
    return found


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Pack arrays into a file. The first bytes of all numbers come first, then the second: they are alike."""
    rows: dict[str, list[np.ndarray]] = {}
    index = {}
    for name, array in arrays.items():
        row = rows.setdefault(array.dtype.str, [])
        index[name] = (array.dtype.str, array.shape, sum(map(len, row)))
        row.append(np.ascontiguousarray(array).reshape(-1))
    packed = {INDEX: np.frombuffer(json.dumps(index).encode(), np.uint8)}
    for dtype, row in rows.items():
        numbers = np.concatenate(row)
        packed[dtype] = np.ascontiguousarray(numbers.view(np.uint8).reshape(len(numbers), -1).T)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, planes in packed.items():
            plain = io.BytesIO()
            np.save(plain, planes)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), plain.getvalue(), zipfile.ZIP_LZMA)


def main() -> None:
    """Pack the files that are named, and check that they read as before."""
    for name in sys.argv[1:]:
        path = Path(name)
        before = read(path)
        write(path, before)
        after = read(path)
        assert list(after) == list(before)
        for field, array in before.items():
            assert after[field].dtype == array.dtype, field
            np.testing.assert_array_equal(after[field], array)


if __name__ == "__main__":
    main()
