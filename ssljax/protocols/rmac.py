"""R-MAC: one vector per image from maxima of a feature map over regions (Tolias et al., arXiv:1511.05879).

    regions      squares at three scales, evenly spaced, neighbours of the first scale overlap by about 40 %
    v_r          maximum of every channel in region r, divided by its L2 norm
    w_r          D^(-1/2) V^T (v_r - mean), divided by its L2 norm; V, D and mean are learned on other images
    descriptor   sum of w_r, divided by its L2 norm; two images are compared by the dot product

Numbers are those of DeepCluster's released evaluation (eval_retrieval.py), which takes the regions from the
authors' Matlab code.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LEVELS = 3
OVERLAP = 0.4
STEPS = (2, 3, 4, 5, 6, 7)  # how many squares may lie along the longer side
FLOOR = 1e-5  # of the largest eigenvalue; smaller ones are raised to it


class Whitening(NamedTuple):
    """A projection that whitens region vectors.

    Attributes:
        mean: float64 [D].
        projection: float64 [K, D].
    """

    mean: np.ndarray
    projection: np.ndarray


def regions(height: int, width: int, levels: int = LEVELS) -> list[tuple[int, int, int, int]]:
    """The regions of a map: left, top, width and height of each, in places of the map.

    Args:
        height, width: of the map.
        levels: scales; the squares of level l have sides floor(2 min(height, width) / (l + 1)). Levels whose
            squares would be empty are left out.
    """
    short = min(height, width)
    long = max(height, width)
    gap = (long - short) / (np.array(STEPS, np.float64) - 1)
    extra = int(np.argmin(np.abs((short**2 - short * gap) / short**2 - OVERLAP))) + 1
    found = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if not side:
            continue
        lefts = _starts(width, side, level + extra * (width > height))
        tops = _starts(height, side, level + extra * (height > width))
        found += [(left, top, side, side) for top in tops for left in lefts]
    return found


def _starts(length: int, side: int, count: int) -> list[int]:
    """Where `count` squares begin that are spread evenly over an axis, none of them over its end."""
    half = np.floor(side / 2 - 1)
    gap = (length - side) / (count - 1) if count > 1 else 0
    starts = np.floor(half + gap * np.arange(count)) - half
    return [min(round(float(start)), length - side) for start in starts]


def region_vectors(maps: jax.Array) -> jax.Array:
    """The maxima over the regions of each map, with unit L2 norm.

    Args:
        maps: [B, H, W, C].

    Returns:
        float32 [B, R, C]; zeros where all maxima are zero.
    """
    height, width = maps.shape[1:3]
    boxes = regions(height, width)
    found = [maps[:, y : y + h, x : x + w].max(axis=(1, 2)) for x, y, w, h in boxes]
    return jnp.asarray(unit(jnp.stack(found, axis=1).astype(jnp.float32), jnp))


def unit(vectors: jax.Array | np.ndarray, xp: object = np) -> jax.Array | np.ndarray:
    """Divide by the L2 norm of the last axis; zeros stay zeros."""
    norm = xp.sqrt((vectors**2).sum(axis=-1, keepdims=True))  # type: ignore[attr-defined]
    return vectors / xp.where(norm > 0, norm, 1)  # type: ignore[attr-defined]


def fit(rows: np.ndarray, dim: int = 512) -> Whitening:
    """Learn to whiten.

    The eigenvalues are those of X^T X without 1/n, so whitened vectors have no unit variance; the norm that
    follows takes out the scale.

    Args:
        rows: [N, D], region vectors of images that are not evaluated.
        dim: components to keep, D at most.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    centred = rows - mean.astype(rows.dtype)
    scatter = (centred.T @ centred).astype(np.float64)
    values, vectors = np.linalg.eigh(scatter)
    values = np.maximum(values, FLOOR * values.max())
    order = np.argsort(-values, kind="stable")[:dim]
    return Whitening(mean, (vectors[:, order] / np.sqrt(values[order])).T)


def whiten(rows: np.ndarray, whitening: Whitening) -> np.ndarray:
    """Project region vectors [..., D] to [..., K]."""
    return (rows - whitening.mean) @ whitening.projection.T


def descriptor(vectors: np.ndarray, whitening: Whitening | None) -> np.ndarray:
    """Sum up the region vectors of one image.

    Args:
        vectors: [R, D], with unit norm.
        whitening: None leaves them as they are.

    Returns:
        float64 [K], with unit norm.
    """
    if whitening is not None:
        vectors = np.asarray(unit(whiten(vectors, whitening)))
    return np.asarray(unit(vectors.astype(np.float64).sum(axis=0)))
