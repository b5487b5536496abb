"""The baseline of every table with few labels: the run's network, trained from scratch on those labels alone."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssljax.config import crops_alone, resolve
from ssljax.data import sampler
from ssljax.data.source import Source
from ssljax.program import build, encoded
from ssljax.protocols import linear
from ssljax.run.loop import fit
from ssljax.types import Measurement

# The supervised baseline with few labels, the same rule for every number of labels and every draw. Chosen on held-out TRAINING digits:
# 89 % with ten labels a class and 44 % with one; 60 steps give 49 % with ten; twice the batch at the rate 0.6, three times as slow,
# 93 % and 42 %.
SUPERVISED_STEPS = 100  # at least so many updates
SUPERVISED_BATCH = 32
SUPERVISED_RATE = 0.3


def supervised(config: ConfigDict, source: Source, test: Source) -> Iterator[Measurement]:
    """The run's network, trained from scratch on k labels a class alone: the same labelled images as `label_fraction` draws.

    The labelled images are repeated to the same number for every k, so that one compiled step serves all.
    """
    source, test = (split.with_labels("--baselines: supervised") for split in (source, test))
    e, devices = config.evaluate, jax.device_count()
    batch = -(-SUPERVISED_BATCH // devices) * devices
    length = -(-max(e.label_counts) * source.num_classes // batch) * batch
    config = supervised_config(config, batch, epochs=-(-SUPERVISED_STEPS * batch // length))
    program = None
    for k in e.label_counts:
        for draw in range(e.label_draws):
            begin = time.perf_counter()
            labelled = repeated(source.select(sampler.subset(source.labels, per_class=k, seed=draw)), length)
            program = program or build(config, labelled.facts)
            state = fit(program, labelled, seed=config.seed)
            encode = functools.partial(program.encode, state.params, state.model_state, state.extra)
            features = encoded(encode, program.mesh, config, test)
            logits = np.asarray(
                program.method.classify(state.params, state.extra, jnp.asarray(features.features))[
                    "classifier"
                ]
            )
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
                **linear.accuracies(logits, features.labels),
                "seconds": time.perf_counter() - begin,
            }


def repeated(source: Source, length: int) -> Source:
    """The source's examples over and over, `length` in all. In memory each copy has an id of its own, and so views of its own."""
    copies = source.select(np.resize(np.arange(len(source)), length))
    return (
        copies
        if copies.images is None
        else dataclasses.replace(copies, index=np.arange(length, dtype=np.int32))
    )


def supervised_config(config: ConfigDict, batch_size: int, epochs: int) -> ConfigDict:
    """The run's config turned supervised: same network, data and crops, no colour changes, SGD with Nesterov momentum and a cosine."""
    c = config.copy_and_resolve_references().unlock()
    c.method, c.batch_size, c.epochs, c.init_from = "supervised", batch_size, epochs, ""
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
