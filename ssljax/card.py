"""The model card of an exported network: a README.md with the header that the Hugging Face Hub reads."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from ssljax import results
from ssljax.config import public
from ssljax.network import Network
from ssljax.run import files
from ssljax.run.folder import facts_of

LOAD = """\
```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=0).eval()
prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
features = model(prepare(picture)[None])    # of a Pillow image
```
"""


def card(network: Network, described: dict[str, Any]) -> str:
    """The text of README.md.

    Args:
        network: of the run.
        described: config.json, from `convert.timm.describe`.
    """
    config = network.config
    classes, features = described["num_classes"], described["num_features"]
    start = _last_start(epath.Path(network.workdir))
    labels = f" and {classes} classes" if classes else ""
    facts = facts_of(network.workdir)
    images = f", {facts.num_examples:,} images" if facts else ""
    rows = [
        ("data", f"`{public(config.data.source)}`{images}"),
        ("method", f"`{config.method}`, preset `{config.name}:{config.preset}`"),
        ("network", f"`{config.model.name}`; in timm `{described['architecture']}`"),
        ("training", f"{network.step:,} updates of {config.batch_size} images, {config.epochs} epochs"),
        ("images", f"{config.data.image_size} pixels, {config.data.channels} channels"),
        ("command", f"`{public(' '.join(start['command']))}`" if "command" in start else "not recorded"),
        ("commit", f"`{start.get('commit', 'not recorded')}` of ssljax"),
    ]
    table = "\n".join(f"| {name} | {what} |" for name, what in rows)
    return f"""---
library_name: timm
license: other
license_name: not-chosen-yet
pipeline_tag: {"image-classification" if classes else "image-feature-extraction"}
tags:
- timm
- ssljax
- {config.method}
---
# {config.name}:{config.preset}

{features} features{labels} by {config.method}, trained with ssljax.

**Licence: a placeholder stands in the header. Choose one that the images allow before you publish this.**

| | |
|---|---|
{table}

## Results

{_results(epath.Path(network.workdir))}
## How to load it

{LOAD}
On the Hub it is `hf-hub:OWNER/NAME`. `ssljax convert --from hf:FOLDER` reads it back. timm resizes an image
before it crops, and ssljax crops first: the features of a prepared image agree, those of a file nearly.
"""


def _last_start(folder: epath.Path) -> dict[str, Any]:
    """The newest record in run.json; nothing if there is none."""
    file = folder / "run.json"
    starts = files.read_lines(file) if file.exists() else []
    return starts[-1] if starts else {}


def _results(folder: epath.Path) -> str:
    """The measurements in the run's results.jsonl, as a table."""
    file = folder / "results.jsonl"
    if not file.exists():
        return "None: `ssljax evaluate` was not run before the export.\n"
    rows, _ = results.latest(results.read(file))
    lines = ["| protocol | settings | features | metric | value | images |", "|---|---|---|---|---|---|"]
    for row in rows:
        settings = ", ".join(f"{key} {json.dumps(value)}" for key, value in row["settings"].items())
        labels = f", {row['labels_per_class']} labels per class" if row["labels_per_class"] else ""
        lines.append(
            f"| {row['protocol']}{labels} | {settings} | {row['features']} | {row['metric']} "
            f"| {row['value']:.2f} | {row['n']:,} |"
        )
    return "\n".join(lines) + "\n"
