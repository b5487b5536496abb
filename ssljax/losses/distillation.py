"""Distillation of a teacher's class probabilities, as DeiT and SimCLRv2 use it.

DeiT, arXiv 2012.12877, section 4:

    soft    (1 - alpha) CE(class, y) + alpha tau^2 KL(softmax(teacher / tau) || softmax(token / tau))
            (equation 2; Hinton et al., arXiv 1503.02531)
    hard    (1 - alpha) CE(class, y) + alpha CE(token, argmax teacher)
            (equation 3, alpha = 1/2)

`class` stands for the logits of the class token, `token` for those of the distillation token; without one,
the same logits serve both terms. The paper prints the two distributions of the KL in the other order; the
released code (facebookresearch/deit, losses.py) has the order above. No gradient flows to the teacher.
"""

import jax
import jax.numpy as jnp

from ssljax.losses.classification import cross_entropy

NORMALIZATIONS = ("paper", "code")


def soft(
    logits: tuple[jax.Array, jax.Array],
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    alpha: float,
    temperature: float,
    normalization: str = "paper",
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Soft distillation, one value per example.

    Args:
        logits: ([B, C], [B, C]), of the class token and of the distillation token.
        teacher_logits: [B, C].
        labels: int [B], or probabilities [B, C].
        alpha: weight of the teacher; the paper's lambda, 0.1.
        temperature: tau; 3 in the paper.
        normalization: "paper" sums the KL over the classes. "code" divides it by their number, as in the
            training of the released numbers.
        label_smoothing: of the labels, see `cross_entropy`.

    Returns:
        float32 [B].

    Raises:
        ValueError: shapes that differ, or an unknown normalization.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"config.distill.normalization={normalization!r} is unknown. "
            "Use 'paper' (sum over classes) or 'code' (mean)."
        )
    student, token = _matching(logits, teacher_logits)
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
    pupil = jax.nn.log_softmax(token.astype(jnp.float32) / temperature)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - pupil), axis=-1)
    if normalization == "code":
        divergence = divergence / token.shape[-1]
    classification = (1.0 - alpha) * cross_entropy(student, labels, label_smoothing=label_smoothing)
    return classification + alpha * temperature**2 * divergence


def hard(
    logits: tuple[jax.Array, jax.Array],
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    alpha: float = 0.5,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Hard distillation: the teacher's decision is a second label, which is never smoothed.

    Arguments, result and errors are those of `soft`.
    """
    student, token = _matching(logits, teacher_logits)
    decision = jnp.argmax(teacher_logits, axis=-1)
    classification = (1.0 - alpha) * cross_entropy(student, labels, label_smoothing=label_smoothing)
    return classification + alpha * cross_entropy(token, decision)


def probabilities(logits: jax.Array, teacher_logits: jax.Array, *, temperature: float) -> jax.Array:
    """Cross entropy against a teacher's probabilities, one value per example (SimCLRv2, equation 2).

        - sum_c  P_T(c) log P_S(c),   P(c) = softmax(logits / tau)_c

    It differs from `soft`'s divergence by the teacher's entropy, which has no gradient, and it has no factor
    tau^2. No gradient flows to the teacher.

    Args:
        logits: [B, C] of the student.
        teacher_logits: [B, C].
        temperature: tau, of both softmaxes.

    Returns:
        float32 [B], at least the entropy of P_T.

    Raises:
        ValueError: the shapes differ.
    """
    student, _ = _matching((logits, logits), teacher_logits)
    teacher = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / temperature)
    pupil = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return -jnp.sum(teacher * pupil, axis=-1)


def _matching(logits: tuple[jax.Array, jax.Array], teacher_logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The student's two logits, after a check that all three shapes agree."""
    student, token = logits
    if not student.shape == token.shape == teacher_logits.shape:
        raise ValueError(
            f"logits of the class token {student.shape}, of the distillation token {token.shape} and of the "
            f"teacher {teacher_logits.shape} must be alike: the teacher must know the same classes"
        )
    return student, token
