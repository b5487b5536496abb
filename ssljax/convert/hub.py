"""`hf:`: a folder as the Hugging Face Hub keeps it, with config.json, model.safetensors and README.md.

    hf:DIR           a local one, such as `ssljax export --to hf:DIR` writes
    hf:OWNER/NAME    one of the Hub; its three files are downloaded once, to ~/.cache/ssljax/hub/OWNER/NAME

The environment variable HF_ENDPOINT names a mirror of the Hub.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

KIND = "hf:"
HUB = "https://huggingface.co"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
SECONDS = 30  # without an answer


def folder(name: str) -> Path:
    """The local folder of what follows `hf:`. Downloads it if it is of the Hub and not there yet.

    Raises:
        ValueError: it is neither a folder nor OWNER/NAME, or a file cannot be downloaded.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{KIND}{name}: there is no such folder, and it is no OWNER/NAME of the Hub")
    here = Path("~/.cache/ssljax/hub").expanduser() / name
    for file in (CONFIG, CARD, WEIGHTS):
        if not (here / file).exists():
            _download(name, file, here / file)
    return here


def _download(name: str, file: str, target: Path) -> None:
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    address = f"{hub}/{name}/resolve/main/{file}"
    by_hand = (
        f"Fetch {CONFIG} and {WEIGHTS} from {hub}/{name}/tree/main with a browser, put both into a folder "
        f"DIR, and type --from={KIND}DIR"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer, unfinished.open("wb") as out:
            size = int(answer.headers.get("Content-Length") or 0)
            print(f"downloading {address} ({size / 1e6:.1f} MB)", flush=True)
            shutil.copyfileobj(answer, out)
            if size and out.tell() != size:
                raise OSError(f"{out.tell():,} of {size:,} bytes came")
    except urllib.error.HTTPError as error:
        if error.code == 404 and file == CARD:
            return
        raise ValueError(f"{KIND}{name}: {address} answers {error.code} {error.reason}. {by_hand}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"{KIND}{name}: {address} cannot be downloaded ({reason}). {by_hand}") from error
    os.replace(unfinished, target)


def weights_of(files: str, augment: ConfigDict) -> tuple[str, list[str]]:
    """What `--from` names: the files to read, and what is to be said of them.

    Args:
        files: of `--from`.
        augment: `config.augment`; reads `mean` and `std`.

    Returns:
        `files` as it is, or the weights in the folder that `hf:` names; and lines for the terminal.

    Raises:
        ValueError: as for `folder`, or the folder holds no weights or a damaged config.json.
    """
    if not files.startswith(KIND):
        return files, []
    here = folder(files.removeprefix(KIND))
    if not (here / WEIGHTS).exists():
        raise ValueError(f"{files}: {here} holds no {WEIGHTS}; a single file is read by --from=FILE")
    return str(here / WEIGHTS), [licence(here), *differences(here, augment)]


def licence(here: Path) -> str:
    """The line about the licence of a folder's weights."""
    card = here / CARD
    header = card.read_text(errors="replace").split("\n---", 1)[0] if card.exists() else ""
    found = dict(re.findall(r"^(license|license_name):\s*(\S.*)$", header, re.MULTILINE))
    stated = found.get("license_name") or found.get("license")  # a licence of another name is "other"
    stated = stated or described(here).get("pretrained_cfg", {}).get("license", "")
    return f"licence: {stated or 'not stated; ask the author before you use these weights'}"


def described(here: Path) -> dict[str, Any]:
    """What a folder's config.json says; nothing if there is none.

    Raises:
        ValueError: it is no JSON.
    """
    file = here / CONFIG
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): download it again") from error
    return found if isinstance(found, dict) else {}


def differences(here: Path, augment: ConfigDict) -> list[str]:
    """How the folder's network expects its images to be normalised, if that is not as here."""
    stated = described(here).get("pretrained_cfg", {})
    wanted = [
        (key, tuple(stated[key]))
        for key in ("mean", "std")
        if key in stated and tuple(stated[key]) != tuple(augment[key])
    ]
    if not wanted:
        return []
    words = " ".join(f"--config.augment.{key}='{value}'" for key, value in wanted)
    return [f"WARNING this network was trained on images normalised otherwise: add {words}"]
