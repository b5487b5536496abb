#!/usr/bin/env bash
# From an empty environment and a folder of pictures to features, a picture of neighbours, a network that runs
# without ssljax, and a comparison of two methods:
#
#     docs/newcomer.sh PICTURES [OUT] [--config.epochs=10 ...]
#
# PICTURES may be flat, or have one sub-folder per class; only then can the methods be judged, by their nearest
# neighbours. Everything is written to OUT, by default the folder newcomer. The same command goes on where it
# was interrupted. Python 3.11 to 3.13; PYTHON=python3.12 chooses one.
set -euo pipefail
SOURCE=$(cd "$(dirname "$0")/.." && pwd)
PICTURES=${1:?usage: docs/newcomer.sh PICTURES [OUT]}
OUT=${2:-newcomer}
CHANGES=("${@:3}")
SKIP=()
if [[ "${CHANGES[*]}" =~ data\.on_bad_image[=\ ]skip ]]; then SKIP=(--on_bad_image skip); fi
step() { printf '\n--- %s (%d s so far)\n' "$1" "$SECONDS"; }

step "an environment of its own: $OUT/venv"
mkdir -p "$OUT"
[ -x "$OUT/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$OUT/venv"
[ -x "$OUT/venv/bin/ssljax" ] || "$OUT/venv/bin/pip" install --quiet "$SOURCE[export]"
export PATH="$OUT/venv/bin:$PATH"

step "what SimCLR will see: $OUT/simclr/preview.png"
ssljax preview --config simclr:folder_small --config.data.source="folder:$PICTURES" --workdir "$OUT/simclr" "${CHANGES[@]}"

for method in simclr moco; do
  step "train $method"
  ssljax train --config $method:folder_small --config.data.source="folder:$PICTURES" --workdir "$OUT/$method" "${CHANGES[@]}"
  if [ -n "$(find -L "$PICTURES" -mindepth 2 -type f -print -quit)" ]; then
    step "evaluate $method"
    ssljax evaluate --workdir "$OUT/$method" --protocols knn --baselines raw_pixels,random_init
  fi
done

step "features: $OUT/features.npz"
ssljax embed --workdir "$OUT/simclr" --images "$PICTURES" --out "$OUT/features.npz" "${SKIP[@]}"

step "eight pictures, and the five that SimCLR finds nearest to each: $OUT/neighbours.png"
python - "$OUT" <<'END'
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.neighbors import NearestNeighbors

from ssljax.data import decode, formats

out = sys.argv[1]
with np.load(f"{out}/features.npz") as file:
    paths, features = file["path"], file["features"]
asked = np.random.default_rng(0).choice(len(paths), 8, replace=False)
_, nearest = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features).kneighbors(features[asked])
figure, axes = plt.subplots(8, 6, figsize=(6, 8))
for ax, i in zip(axes.flat, nearest.flat):
    ax.imshow(decode.opened(formats.plain(Path(paths[i]).read_bytes(), "white"), channels=3))
    ax.set_axis_off()
figure.savefig(f"{out}/neighbours.png")
END

step "the network in a file: $OUT/simclr.stablehlo"
ssljax export --workdir "$OUT/simclr" --to "stablehlo:$OUT/simclr.stablehlo"

step "the file runs where ssljax cannot be imported"
python - "$OUT" <<'END'
import sys

sys.modules["ssljax"] = None  # as if it were not installed
from pathlib import Path

import numpy as np
from jax import export
from PIL import Image, ImageOps

out = sys.argv[1]
network = export.deserialize(bytearray(Path(f"{out}/simclr.stablehlo").read_bytes()))
size = network.in_avals[0].shape[1]


def square(path):
    """The picture on white, as large as the network wants it."""
    picture = ImageOps.exif_transpose(Image.open(path))
    if picture.mode.startswith("I"):  # 16 bits, of which the upper ones count
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(ImageOps.fit(Image.alpha_composite(white, picture).convert("RGB"), (size, size)))


with np.load(f"{out}/features.npz") as file:
    paths, features = file["path"][:8], file["features"][:8]
again = np.asarray(network.call(np.stack([square(path) for path in paths]))["features"])
cosine = (again * features).sum(1) / np.linalg.norm(again, axis=1) / np.linalg.norm(features, axis=1)
print(f"cosine with {out}/features.npz: {cosine.min():.3f} or more")
END

step "both methods side by side: $OUT/comparison"
mkdir -p "$OUT/comparison"
ssljax compare "$OUT/simclr" "$OUT/moco" --out "$OUT/comparison"
step "done"
