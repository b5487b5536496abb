"""How robust a classifier is: the metrics of ImageNet-A, ImageNet-C and ImageNet-P, and what they need.

    CE_c = sum_s E[s, c] / sum_s E_AlexNet[s, c]              mCE = 100 mean_c CE_c
    relative: the same with the clean error subtracted from every E
    FP = mean over sequences and frames of [prediction != reference]        FR = FP / FP_AlexNet
    mFR = 100 mean FR        mT5D: the same of the distances that the five likeliest classes move

Hendrycks and Dietterich, ICLR 2019 (arXiv:1903.12261); Hendrycks et al., Natural Adversarial Examples
(arXiv:1907.07174). The reference of a frame is the one before, and the first one for noise, which differs in
every frame. AlexNet's numbers are kept by name, because public lists of the corruptions have other orders.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssljax.data.source import Source
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import unlabelled

# AlexNet's error, mean over the severities (google-research/augmix, imagenet.py).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
ALEXNET_CLEAN = 0.435
CLASSES = 1000  # of ImageNet, which AlexNet's numbers are for
# AlexNet's flip probability in percent (the paper's table).
ALEXNET_FLIPS = {
    "gaussian_noise": 23.65,
    "shot_noise": 30.06,
    "motion_blur": 9.30,
    "zoom_blur": 5.94,
    "snow": 11.93,
    "brightness": 4.89,
    "translate": 11.01,
    "rotate": 13.10,
    "tilt": 7.05,
    "scale": 23.53,
}
# AlexNet's top-5 distance (the paper's table).
ALEXNET_TOP5 = {
    "gaussian_noise": 4.77,
    "shot_noise": 5.76,
    "motion_blur": 1.93,
    "zoom_blur": 1.34,
    "snow": 2.42,
    "brightness": 1.19,
    "translate": 2.63,
    "rotate": 2.95,
    "tilt": 1.75,
    "scale": 4.48,
}
# The classes of ImageNet-A among ImageNet's 1,000, in the order of the sorted WordNet ids.
# fmt: off
IMAGENET_A = (
    6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96, 97, 99, 105,
    107, 108, 110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254, 277, 283, 287, 291, 295,
    298, 301, 306, 307, 308, 309, 310, 311, 313, 314, 315, 317, 319, 323, 324, 326, 327, 330, 334, 335, 336,
    347, 361, 363, 372, 378, 386, 397, 400, 401, 402, 404, 407, 411, 416, 417, 420, 425, 428, 430, 437, 438,
    445, 456, 457, 461, 462, 470, 472, 483, 486, 488, 492, 496, 514, 516, 528, 530, 539, 542, 543, 549, 552,
    557, 561, 562, 569, 572, 573, 575, 579, 589, 606, 607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668,
    677, 682, 684, 687, 701, 704, 719, 736, 746, 749, 752, 758, 763, 765, 768, 773, 774, 776, 779, 780, 786,
    792, 797, 802, 803, 804, 813, 815, 820, 823, 831, 833, 835, 839, 845, 847, 850, 859, 862, 870, 879, 880,
    888, 890, 897, 900, 907, 913, 924, 932, 933, 934, 937, 943, 945, 947, 951, 954, 956, 957, 959, 971, 972,
    980, 981, 984, 986, 987, 988,
)
# fmt: on


def alexnet(corruptions: Sequence[str]) -> np.ndarray:
    """AlexNet's errors in the order of `corruptions`, float64 [K]."""
    return np.array([ALEXNET[name] for name in corruptions])


def mce(error: np.ndarray, alexnet: np.ndarray) -> float:
    """Mean corruption error in percent: the ratio of sums over severities, then the mean.

    Args:
        error: [K, 5], the errors of each corruption at each severity, as shares.
        alexnet: [K], the errors of AlexNet or of another reference, mean over the severities, in the same
            order; see the function `alexnet`.
    """
    return float(100.0 * np.mean(np.mean(error, axis=1, dtype=np.float64) / alexnet))


def relative_mce(error: np.ndarray, clean: float, alexnet: np.ndarray, alexnet_clean: float) -> float:
    """`mce` of what the corruptions add to the clean error, of the network and of the reference."""
    return mce(np.asarray(error) - clean, np.asarray(alexnet) - alexnet_clean)


def flip_probability(predictions: Sequence[np.ndarray], *, noise: bool, difficulty: int) -> float:
    """How often a prediction changes within a sequence, as a share.

    Args:
        predictions: int [V, F], the predicted class of each frame, or V sequences of their own lengths.
        noise: frames are compared with the first one instead of the one before.
        difficulty: frames are compared with the one that many frames before; noise is always compared one by
            one.

    Raises:
        ValueError: a sequence has no two frames to compare.
    """
    step = 1 if noise else difficulty
    flips = []
    for frames in predictions:
        frames = np.asarray(frames)
        if len(frames) <= step:
            raise ValueError(
                f"a sequence has {len(frames)} frames, and frames are compared with those {step} before: the "
                "sequence is not complete"
            )
        reference = frames[:1] if noise else frames[:-step]
        flips.append(np.mean(frames[step:] != reference))
    return float(np.mean(flips))


def top5_distance(ranks: Sequence[np.ndarray], *, noise: bool, difficulty: int) -> float:
    """How far the five likeliest classes move within a sequence; a rank beyond the fifth counts as the sixth.

    Args:
        ranks: int [V, F, K], the rank of each class in each frame, 1 for the likeliest, or V sequences.
        noise, difficulty: as for `flip_probability`.
    """
    step = 1 if noise else difficulty
    distances = []
    for frames in ranks:
        place = np.minimum(np.asarray(frames, np.int64) - 1, 5)
        five = np.argsort(place, axis=1, kind="stable")[:, :5]
        reference = np.broadcast_to(five[:1], five[step:].shape) if noise else five[:-step]
        moved = np.take_along_axis(place[step:], reference, axis=1)
        distances.append(np.abs(moved - np.arange(5)).sum(axis=1).mean())
    return float(np.mean(distances))


# ----------------------------------------------------------------------------- what the three protocols share


def no_classifier(bench: Bench, protocol: str) -> str:
    """Why a protocol that needs the run's own classes cannot judge it; "" if it can."""
    if bench.predictions is None:
        return (
            f"{protocol} judges a network that was trained on labels; {bench.name} has no heads of its own. "
            "Evaluate a fine-tuned or linear stage (--stage)"
        )
    return unlabelled(bench.test.labels, protocol, bench.test.split)


def answers(bench: Bench, source: Source, protocol: str) -> tuple[str, np.ndarray]:
    """The name of the head that counts, and its logits, float32 [N, classes].

    Raises:
        ValueError: the head tells another number of classes apart than the data has.
    """
    assert bench.predictions is not None, "`refuse` is asked first"
    name, logits = next(iter(bench.predictions(source).items()))
    if logits.shape[1] != bench.num_classes:
        raise ValueError(
            f"--protocols: {protocol}: the run's head {name} tells {logits.shape[1]} classes apart, "
            f"{bench.test.name} has {bench.num_classes}: evaluate on the classes that the run was trained on"
        )
    return name, logits


def by_name(source: Source, class_names: Sequence[str]) -> np.ndarray:
    """The labels of a source as positions in `class_names`, int [N].

    Raises:
        ValueError: a class of the source is not among them.
    """
    position = {name: i for i, name in enumerate(class_names)}
    strange = [name for name in source.class_names if name not in position]
    if strange:
        raise ValueError(
            f"{source.name} has classes that the run's data has not, such as {', '.join(strange[:3])} (the "
            f"run's are {', '.join(list(class_names)[:3])}, ...): name the class folders alike"
        )
    return np.array([position[name] for name in source.class_names])[source.labels]
