"""The supervised baseline for few labels: the run's network, trained from scratch on those labels alone."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssljax.config import crops_alone, resolve
from ssljax.data import sampler
from ssljax.data.source import Source
from ssljax.program import Program, build, encoded
from ssljax.protocols import linear
from ssljax.run.loop import fit
from ssljax.types import Measurement

# The same settings serve every number of labels and every draw. They were chosen on held-out TRAINING digits:
# 89 % with ten labels per class and 44 % with one. 60 steps give 49 % with ten labels. Twice the batch size
# at the learning rate 0.6 takes three times as long and gives 93 % and 42 %.
SUPERVISED_STEPS = 100  # at least this many updates
SUPERVISED_BATCH = 32
SUPERVISED_RATE = 0.3


def supervised(config: ConfigDict, source: Source, test: Source) -> Iterator[Measurement]:
    """Train the run's network from scratch on k labels per class alone, for each k and draw.

    The labelled images are those that `label_fraction` draws. They are repeated to the same number for every
    k, so that one compiled step serves all.

    Args:
        config: the config of the run.
        source: its training split.
        test: its test split.

    Yields:
        One measurement per k in `config.evaluate.label_counts` and draw.
    """
    source = source.with_labels("--baselines: supervised")
    test = test.with_labels("--baselines: supervised")
    counts = config.evaluate.label_counts
    draws = config.evaluate.label_draws

    devices = jax.device_count()
    batch = -(-SUPERVISED_BATCH // devices) * devices
    length = -(-max(counts) * source.num_classes // batch) * batch
    config = supervised_config(config, batch, epochs=-(-SUPERVISED_STEPS * batch // length))
    program = None
    for k in counts:
        for draw in range(draws):
            begin = time.perf_counter()
            rows = sampler.subset(source.labels, per_class=k, seed=draw)
            labelled = repeated(source.select(rows), length)
            program = program or build(config, labelled.facts)
            found = accuracies_of(program, labelled, test)
            settings = {
                "steps": program.total_steps,
                "batch_size": batch,
                "learning_rate": config.optim.learning_rate,
            }
            yield {
                "protocol": "label_fraction",
                "settings": settings,
                "labels_per_class": k,
                "draw": draw,
                **found,
                "seconds": time.perf_counter() - begin,
            }


def accuracies_of(program: Program, labelled: Source, test: Source) -> dict[str, Any]:
    """Train on the labelled images and return the accuracies of the classifier on the test split."""
    config = program.config
    state = fit(program, labelled, seed=config.seed)
    encode = functools.partial(program.encode, state.params, state.model_state, state.extra)
    features = encoded(encode, program.mesh, config, test)
    assert program.method.classify is not None, "a supervised method has a classifier"
    heads = program.method.classify(state.params, state.extra, jnp.asarray(features.features))
    return linear.accuracies(np.asarray(heads["classifier"]), features.labels)


def repeated(source: Source, length: int) -> Source:
    """The source's examples, repeated until there are `length` of them.

    If they are in memory, each copy has its own id, and so its own augmentations.
    """
    copies = source.select(np.resize(np.arange(len(source)), length))
    if copies.images is None:
        return copies
    return dataclasses.replace(copies, index=np.arange(length, dtype=np.int32))


def supervised_config(config: ConfigDict, batch_size: int, epochs: int) -> ConfigDict:
    """The run's config made supervised.

    The network, the data and the crops stay. Colours are not augmented, and the optimizer is SGD with
    Nesterov momentum and a cosine schedule.
    """
    c = config.copy_and_resolve_references().unlock()
    c.method = "supervised"
    c.batch_size = batch_size
    c.epochs = epochs
    c.init_from = ""
    crops_alone(c)
    c.optim = dict(
        name="sgd",
        learning_rate=SUPERVISED_RATE,
        scaling="none",
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        warmup_epochs=0,
    )
    return resolve(c).lock()
