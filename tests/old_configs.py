"""What config.json held in runs of older versions, one of each digits preset and stage, in one file.

python -m tests.old_configs NAME RUN/config.json     # adds one; NAME is e.g. deit-digits-teacher
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "golden" / "configs.json.gz"


def read() -> dict[str, dict[str, Any]]:
    """PAPER-PRESET[-STAGE] -> its settings."""
    return json.loads(gzip.decompress(FILE.read_bytes()))


def write(configs: dict[str, dict[str, Any]]) -> None:
    """Writes all of them anew; the same settings give the same bytes."""
    text = json.dumps(dict(sorted(configs.items())), separators=(",", ":"))
    FILE.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    name, path = sys.argv[1:]
    write(read() | {name: json.loads(Path(path).read_text())})
