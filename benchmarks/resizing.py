"""How much the ways of resizing differ from Pillow's, and what they cost: the table of docs/resizing.md.

    python benchmarks/resizing.py FOLDER         # photographs as JPEG files, a minute

Every image is decoded once. Crops: eight of torchvision's boxes of each image, to 224 pixels. Evaluation: the
image that evaluation sees, at 224 pixels; Pillow's is torchvision's Resize(256) and CenterCrop(224).
Differences are of 255, over all pixels and channels. Edges: the mean of |Gx|, Sobel's horizontal gradient,
relative to Pillow's. The cost is processor time per image in tf.data, for decoding it and making two views of
it; it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import simclr
from ssljax.data import crops

SIZE = 224
BOXES = 8
WAYS = {
    "bilinear": {
        "Pillow": dict(resize="pillow"),
        "TensorFlow, antialiased": dict(antialias=True),
        "TensorFlow": dict(antialias=False),
    },
    "bicubic": {
        "Pillow": dict(resize="pillow"),
        "TensorFlow, antialiased": dict(antialias=True),
        "TensorFlow": dict(antialias=False),
    },
}


def recipe(method: str, way: dict[str, Any]) -> ConfigDict:
    """A config that crops by torchvision's boxes, does not flip, and resizes in one of WAYS."""
    c = simclr.get_config("imagenet_r50").copy_and_resolve_references().unlock()
    c.views = dict(all=dict(count=BOXES))
    c.augment.update(crop="torchvision", interpolation=method, flip=False, **way)
    return c


def horizontal(images: np.ndarray) -> float:
    """The mean of |Gx| of uint8 images [N, S, S, 3], by Sobel's kernel."""
    grey = images.astype(np.float32).mean(-1)
    across = grey[:, :, 2:] - grey[:, :, :-2]
    return float(np.abs(across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]).mean())


def made(images: list[np.ndarray], c: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """The crops and the evaluation images, uint8 [N, 224, 224, 3] each."""
    tf = crops.tensorflow()
    views = tf.function(lambda image, key: crops.training_views(image, key, c)["image"])
    evaluated = tf.function(lambda image: crops.eval_image(image, c))
    key = [np.int64([0, index]) for index in range(len(images))]
    train = np.concatenate([views(tf.constant(x), k).numpy() for x, k in zip(images, key, strict=True)])
    return train, np.stack([evaluated(tf.constant(x)).numpy() for x in images])


def cost(encoded: list[bytes], c: ConfigDict) -> float:
    """Milliseconds of processor time per image for two views of it, decoding included; the best of three."""
    tf = crops.tensorflow()
    c.views.all.count = 2

    def views(number: Any, content: Any) -> Any:
        image = crops.decode(content, 3)
        return crops.training_views(image, tf.stack([tf.constant(0, tf.int64), number]), c)["image"]

    dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat(8).enumerate()
    dataset = dataset.map(views, num_parallel_calls=tf.data.AUTOTUNE).batch(16).prefetch(2)
    passes = []
    for _ in range(3):
        begin = time.process_time()
        count = sum(len(batch) for batch in dataset)
        passes.append((time.process_time() - begin) / count)
    return 1e3 * min(passes)


def difference(found: np.ndarray, expected: np.ndarray) -> str:
    """Mean and maximum of the difference, in grey levels."""
    error = np.abs(found.astype(np.int16) - expected)
    return f"{error.mean():.2f} | {error.max()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="photographs as JPEG files")
    files = sorted(path for path in parser.parse_args().folder.iterdir() if path.is_file())
    encoded = [path.read_bytes() for path in files]
    images = [crops.decode(content, 3).numpy() for content in encoded]

    print("| | | crops: mean | max | edges | evaluation: mean | max | edges | ms/image |")
    print("|---|---|---|---|---|---|---|---|---|")
    for method, ways in WAYS.items():
        expected = made(images, recipe(method, ways["Pillow"]))
        for name, way in ways.items():
            c = recipe(method, way)
            found = made(images, c)
            cells = [
                f"{difference(part, right)} | {horizontal(part) / horizontal(right):.2f}"
                for part, right in zip(found, expected, strict=True)
            ]
            print(f"| {method} | {name} | {' | '.join(cells)} | {cost(encoded, c):.1f} |", flush=True)
    right = made(images, recipe("bilinear", WAYS["bilinear"]["Pillow"]))
    wrong = made(images, recipe("bicubic", WAYS["bicubic"]["TensorFlow"]))
    pairs = zip(wrong, right, strict=True)
    cells = [
        f"{difference(part, other)} | {horizontal(part) / horizontal(other):.2f}" for part, other in pairs
    ]
    print(f"| TensorFlow's bicubic | for Pillow's bilinear | {' | '.join(cells)} | |")


if __name__ == "__main__":
    main()
