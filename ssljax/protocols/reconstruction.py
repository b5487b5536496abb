"""How well a tokenizer's codes keep the image, and how much of its codebook they use, on held-out images.

The codes are the most likely ones, without noise: what BEiT is taught. Training logs the error of relaxed
codes, which is smaller; the two meet as the temperature falls.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.protocols.bench import Bench
from ssljax.types import Measurement, Protocol


def errors_and_codes(image: jax.Array, codes: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """One row per image: mean absolute error, mean squared error, and its codes row by row.

    Args:
        image: uint8 [B, H, W, C].
        codes: int [B, h, w], below 2^24.
        reconstruction: float32 [B, H, W, C] in [0, 1].

    Returns:
        float32 [B, 2 + h w].
    """
    difference = reconstruction - image.astype(jnp.float32) / 255.0
    absolute = jnp.abs(difference).mean((1, 2, 3))
    squared = jnp.square(difference).mean((1, 2, 3))
    flat = codes.reshape(len(codes), -1).astype(jnp.float32)
    return jnp.concatenate([absolute[:, None], squared[:, None], flat], axis=1)


def judge(bench: Bench) -> Iterator[Measurement]:
    """One measurement on the test images.

    `mae` is in percent of the range of pixels; twice that share is BEiT's unit (pixels in [-1, 1]). `psnr` is
    in dB, of the mean squared error of all images. `bits` is the entropy of the codes' frequencies, per
    token. `codebook_usage` is the percentage of the codes that occur.
    """
    assert bench.reconstructions is not None, "`refuse` is asked first"
    rows = bench.reconstructions(bench.test).features.astype(np.float64)
    codes = rows[:, 2:].astype(np.int64)
    vocabulary = bench.config.model.vocabulary
    counts = np.bincount(codes.ravel(), minlength=vocabulary)
    share = counts[counts > 0] / codes.size
    yield {
        "protocol": "reconstruction",
        "settings": {"vocabulary": vocabulary, "tokens": codes.shape[1]},
        "mae": 100.0 * float(rows[:, 0].mean()),
        "psnr": -10.0 * float(np.log10(max(rows[:, 1].mean(), 1e-12))),
        "bits": float(-(share * np.log2(share)).sum()),
        "codebook_usage": 100.0 * float((counts > 0).mean()),
        "n": len(rows),
    }


def refuse(bench: Bench) -> str:
    """The method must have a decoder."""
    if bench.reconstructions is not None:
        return ""
    return (
        f"reconstruction judges a tokenizer, and {bench.name} makes no images: evaluate a run of the method "
        "dvae, or that stage of a run (--stage=tokenizer)"
    )


PROTOCOL = Protocol(
    reads="state", metrics=("mae", "psnr", "bits", "codebook_usage"), judge=judge, refuse=refuse
)
