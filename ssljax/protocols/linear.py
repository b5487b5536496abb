"""Linear probes on cached features of centre crops. The encoder is not involved, so it cannot change.

    lbfgs   multinomial logistic regression, mean loss + lambda/2 |W|^2, bias unpenalised (SimCLR's transfer
            protocol, after Kornblith et al. 2019); lambda is chosen on held-out training images, then the
            fit is repeated on all of them
    sgd     one linear layer, Nesterov momentum 0.9, learning rate 0.1 B/256, 90 epochs, cosine to zero, no
            warm-up, no weight decay (SimCLR, section 2.3 and appendix B.6), W ~ N(0, 0.01). The paper trains
            on random crops and flips. Cached features are those of the centre crop, so this is the cheap
            form, and its results are named `linear_sgd_cached`

For lbfgs, features are centred and each channel is divided by its standard deviation over the training
images, so that the same lambda means the same for every network. The pixels of an image are one or three
channels seen at many places, so raw pixels are divided by one number per channel, as is usual for images.
(One number per pixel costs raw digits 5 points with one label per class. One number for all channels costs a
randomly initialised network 10.)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssljax.data import sampler
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import Features, check, top_k_percent
from ssljax.types import Measurement, Protocol

if TYPE_CHECKING:  # scikit-learn takes a second to import, so only `fit` does
    from sklearn.linear_model import LogisticRegression

# The values of lambda, from strong to weak: every fourth of the paper's 45 values 1e-6 ... 1e5.
GRID = tuple(10.0**e for e in range(5, -7, -1))
HELD_OUT = 0.1  # the share of the training images that lambda is chosen on
SELECTION = 10_000  # lambda weighs a MEAN loss, so at most this many images are enough to choose it
MAX_ITERATIONS = 2000

# Below this many numbers scikit-learn fits faster on one core. On a busy machine its threads wait for each
# other and take 100 times as long.
ONE_THREAD = 10_000_000


def lbfgs(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    channels: int = 0,
    l2: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Logistic regression on features.

    Args:
        train_features, test_features: [N, D], not L2-normalised; standardised here.
        train_labels, test_labels: int [N].
        num_classes: labels are 0..num_classes-1.
        channels: C for raw pixels [H*W*C], 0 for the features of a network; see `standardise`.
        l2: lambda; 0 chooses it.
        seed: the seed of the draw of held-out images.

    Returns:
        `top1` and, with more than five classes, `top5` in percent; `n`, the number of test images; `l2` as
        used; `converged`.
    """
    check(train_features, train_labels, test_features, test_labels, num_classes)
    train = standardise(train_features, train_features, channels)
    test = standardise(test_features, train_features, channels)
    if l2 <= 0:
        l2 = choose_l2(train, train_labels, seed)
    model, converged = fit(train, train_labels, l2)
    found = accuracies(scores(model, test, num_classes), test_labels)
    return {**found, "l2": l2, "converged": converged}


def standardise(features: np.ndarray, reference: np.ndarray, channels: int = 0) -> np.ndarray:
    """Subtract the mean of `reference` and divide each channel by its standard deviation there.

    Args:
        features: [N, D].
        reference: [M, D].
        channels: C for features that are flattened images [H, W, C], which have one deviation per channel; 0
            if each dimension is a channel of its own.

    Returns:
        float64 [N, D].
    """
    variance = reference.var(axis=0, dtype=np.float64)
    if channels:
        variance = np.tile(variance.reshape(-1, channels).mean(axis=0), len(variance) // channels)
    floor = max(1e-4 * variance.mean(), 1e-24)  # keeps dead units from being scaled up to noise
    return (features - reference.mean(axis=0, dtype=np.float64)) / np.sqrt(np.maximum(variance, floor))


def choose_l2(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """The lambda in GRID with the highest accuracy on a held-out tenth of the training images.

    Of equals, the strongest wins. The search goes from strong to weak with warm starts, and stops after three
    values in a row that are below the best.

    Args:
        features: [N, D], standardised.
        labels: int [N].
        seed: the seed of the draw of held-out images.

    Raises:
        ValueError: there are too few images, or all have the same label.
    """
    require_classes(labels)
    rows = sampler.order(seed, 0, len(labels))[:SELECTION]
    count = max(1, round(HELD_OUT * len(rows)))
    held = rows[:count]
    kept = rows[count:]
    if len(np.unique(labels[kept])) < 2:
        raise ValueError(
            f"{len(labels)} training images are too few to choose lambda on: set config.evaluate.linear_l2, "
            "e.g. to 0.01"
        )

    best = -1.0
    best_l2 = GRID[0]
    worse = 0
    model = None
    for l2 in GRID:
        model, _ = fit(features[kept], labels[kept], l2, warm=model, iterations=300)
        accuracy = model.score(features[held], labels[held])
        worse = worse + 1 if accuracy < best else 0
        if accuracy > best:
            best = accuracy
            best_l2 = l2
        if worse == 3:
            break
    return best_l2


def require_classes(labels: np.ndarray) -> None:
    """Raise a ValueError if all images have the same label."""
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f"logistic regression needs two classes, and all {len(labels)} training images have label "
            f"{labels[0]}: check config.data (source, labels_per_class)"
        )


def fit(
    features: np.ndarray,
    labels: np.ndarray,
    l2: float,
    warm: LogisticRegression | None = None,
    iterations: int = MAX_ITERATIONS,
) -> tuple[LogisticRegression, bool]:
    """Fit mean loss + l2/2 |W|^2 with scikit-learn's L-BFGS.

    scikit-learn's C multiplies the SUM of the losses, so C = 1 / (n l2).

    Args:
        features: [N, D], standardised.
        labels: int [N].
        l2: lambda, positive.
        warm: an earlier model to start from; it is changed and returned.
        iterations: the most iterations.

    Returns:
        The model, and whether it converged within that many iterations.

    Raises:
        ValueError: all images have the same label.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    require_classes(labels)
    c = 1.0 / (len(labels) * l2)
    if warm is None:
        model = LogisticRegression(C=c, solver="lbfgs", max_iter=iterations, warm_start=True)
    else:
        model = warm.set_params(C=c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says the same
        model.fit(features, labels)
    return model, bool(model.n_iter_.max() < iterations)


def scores(model: LogisticRegression, features: np.ndarray, num_classes: int) -> np.ndarray:
    """Log-probabilities [N, num_classes]; minus infinity for classes that had no training image."""
    out = np.full((len(features), num_classes), -np.inf)
    out[:, model.classes_] = model.predict_log_proba(features)
    return out


def accuracies(class_scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`top1` and, with more than five classes, `top5` in percent; `n`, the number of rows."""
    top5 = {"top5": top_k_percent(class_scores, labels, 5)} if class_scores.shape[1] > 5 else {}
    return {"top1": top_k_percent(class_scores, labels, 1), **top5, "n": len(labels)}


def sgd(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    batch_size: int = 256,
    epochs: int = 90,
    seed: int = 0,
) -> dict[str, Any]:
    """The paper's linear classifier, on cached features, at the last epoch.

    Args:
        train_features, test_features: [N, D], used as they are.
        train_labels, test_labels: int [N].
        num_classes: labels are 0..num_classes-1.
        batch_size: B in the learning rate 0.1 B/256; all images if there are fewer. The last, incomplete
            batch is dropped.
        epochs: 90 in the paper.
        seed: the seed of W and of the order.

    Returns:
        `top1` and, with more than five classes, `top5` in percent; `n`, the number of test images;
        `learning_rate`, the peak.
    """
    check(train_features, train_labels, test_features, test_labels, num_classes)
    n = len(train_labels)
    batch_size = min(batch_size, n)
    steps = n // batch_size
    learning_rate = 0.1 * batch_size / 256
    total = steps * epochs

    def cosine(t: jax.Array) -> jax.Array:
        return 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * t.astype(jnp.float32) / total))

    tx = optax.sgd(cosine, momentum=0.9, nesterov=True)
    shape = (train_features.shape[1], num_classes)
    kernel = 0.01 * jax.random.normal(jax.random.key(seed), shape, jnp.float32)
    layer = {"kernel": kernel, "bias": jnp.zeros((num_classes,), jnp.float32)}
    state = tx.init(layer)

    step = partial(jax.jit(_sgd_step, static_argnums=0), tx)
    for epoch in range(epochs):
        order = sampler.order(seed, epoch, n)
        for rows in order[: steps * batch_size].reshape(steps, batch_size):
            layer, state = step(layer, state, train_features[rows], train_labels[rows])

    test = np.asarray(test_features, np.float64)
    weight = np.asarray(layer["kernel"], np.float64)
    bias = np.asarray(layer["bias"], np.float64)
    logits = test @ weight + bias
    return {**accuracies(logits, test_labels), "learning_rate": learning_rate}


def _sgd_step(
    tx: optax.GradientTransformation,
    layer: dict,
    state: optax.OptState,
    features: jax.Array,
    labels: jax.Array,
) -> tuple[dict, optax.OptState]:
    """One update of the linear layer on a batch [B, D]."""

    def loss(layer: dict) -> jax.Array:
        product = jnp.matmul(features, layer["kernel"], precision=jax.lax.Precision.HIGHEST)
        logits = product + layer["bias"][None, :]
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = tx.update(jax.grad(loss)(layer), state)
    return optax.apply_updates(layer, updates), state


def probe(
    train: Features, test: Features, config: ConfigDict, *, num_classes: int, channels: int = 0
) -> Measurement:
    """Fit the probe that `config.evaluate.linear` names.

    Args:
        train, test: features of the two splits, with a label in every row.
        config: the config of the run.
        num_classes: labels are 0..num_classes-1.
        channels: see `standardise`.

    Returns:
        A measurement, with the settings of the probe.

    Raises:
        ValueError: `config.evaluate.linear` is neither "sgd" nor "lbfgs".
    """
    e = config.evaluate
    arrays = (train.features, train.labels, test.features, test.labels)
    if e.linear == "lbfgs":
        found = lbfgs(*arrays, num_classes=num_classes, channels=channels, l2=e.linear_l2, seed=config.seed)
        settings = {
            "l2": found.pop("l2"),
            "l2_chosen": e.linear_l2 <= 0,
            "standardised": True,
            "converged": found.pop("converged"),
        }
        return {"protocol": "linear_lbfgs", "settings": settings, **found}
    if e.linear == "sgd":
        found = sgd(*arrays, num_classes=num_classes, batch_size=e.batch_size, seed=config.seed)
        settings = {"learning_rate": found.pop("learning_rate"), "epochs": 90, "standardised": False}
        return {"protocol": "linear_sgd_cached", "settings": settings, **found}
    raise ValueError(f"config.evaluate.linear={e.linear!r} is neither 'sgd' nor 'lbfgs'")


def judge(bench: Bench) -> Iterator[Measurement]:
    """Fit one probe on the features."""
    train, test = bench.labelled("linear")
    yield probe(train, test, bench.config, num_classes=bench.num_classes, channels=bench.channels)


def refuse(bench: Bench) -> str:
    """Both splits need labels."""
    return bench.unlabelled("linear")


PROTOCOL = Protocol(reads="features", metrics=("top1", "top5"), judge=judge, refuse=refuse)
