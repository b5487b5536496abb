"""Protocols on a checkpoint and on its baselines; every measurement is one line of results.jsonl.

    ssljax evaluate --config configs/simclr.py:digits --workdir runs/digits --protocols knn,linear,label_fraction \
        --baselines raw_pixels,random_init,supervised [--results experiments/simclr/results.jsonl]

The checkpoint is the last one, never the best over the test split. Beside the results lies gallery-PRESET.npz: a few hundred test features
and some nearest neighbours, for the figures of `ssljax report`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from ssljax import cli, models, sharding
from ssljax.data import sampler, sources, views
from ssljax.data.source import Source
from ssljax.losses.information import nmi
from ssljax.pictures import gallery
from ssljax.program import Program, build, encoded, restore, stages, use_compilation_cache
from ssljax.protocols import layers, linear
from ssljax.protocols.features import Encode, Features, Kind, raw_pixels
from ssljax.protocols.knn import knn
from ssljax.protocols.label_fraction import L2, label_fraction
from ssljax.run import hosts
from ssljax.run.folder import HARMLESS, commit, differences, versions
from ssljax.run.loop import fit
from ssljax.types import TrainState

PROTOCOLS = ("knn", "linear", "label_fraction", "layers", "classifier", "clusters")
OF_FEATURES = ("knn", "linear", "label_fraction")          # judge what `encode` gives; the others judge the run itself
METRICS = ("top1", "top5", "nmi")
BASELINES = ("raw_pixels", "random_init", "supervised")

# Settings that change no number in the results; the seed has its own field.
NOT_HASHED = ("seed", "name", "preset", "log_every", "eval_every_epochs", "checkpoint")

# scikit-learn fits fewer numbers than this faster on one core: on a busy machine its threads wait for each other, 100 times as long.
ONE_THREAD = 10_000_000

# The supervised baseline with few labels, the same rule for every number of labels and every draw. Chosen on held-out TRAINING digits:
# 89 % with ten labels a class and 44 % with one; 60 steps give 49 % with ten; twice the batch at the rate 0.6, three times as slow,
# 93 % and 42 %.
SUPERVISED_STEPS = 100          # at least so many updates
SUPERVISED_BATCH = 32
SUPERVISED_RATE = 0.3


def measure(config: ConfigDict, workdir: str, protocols: Sequence[str], baselines: Sequence[str], figures: Path,
            command: str) -> Iterator[dict[str, Any]]:
    """Runs the protocols on the checkpoint in `workdir` and on the baselines.

    Args:
        config: of the run, one stage.
        workdir: its folder.
        protocols: some of PROTOCOLS.
        baselines: some of BASELINES.
        figures: npz to write for them, see `gallery.save`.
        command: as typed, for the record.

    Yields:
        one dict a measurement: what was measured, where, with what, and when (see README of experiments).
    """
    same_run(config, epath.Path(workdir) / "config.json")
    source, test = sources.load(config.data, "train"), sources.load(config.data, "test")
    program = build(config, source)
    state = restore(program, workdir)
    refuse(protocols, program, state)
    facts = provenance(program.config, source, test, int(state.step), command)
    kinds = []
    for name in (config.method, *(b for b in BASELINES if b in baselines and b != "supervised")):
        encode, channels = encoder(name, program, state, config)
        kind = Kind(name, encoded(encode, program, source), encoded(encode, program, test), channels)
        kinds.append(kind)
        with threadpool_limits(1 if kind.train.features.size < ONE_THREAD else None):
            for protocol in (p for p in protocols if p in OF_FEATURES):
                for result in run_protocol(protocol, kind, program.config):
                    yield record(facts, name, result)
    if "layers" in protocols:
        for name in (config.method, *(b for b in baselines if b == "random_init")):
            for result in probed_layers(program, state if name == config.method else random_state(program, config), source, test):
                yield record(facts, name, result)
    if "classifier" in protocols:
        for result in classifier(program, state, kinds[0].test):
            yield record(facts, config.method, result)
    given = assigned(program, state, source)
    if "clusters" in protocols:
        yield record(facts, config.method, clusters(given, source))
    if "supervised" in baselines:
        for result in supervised(program.config, source, test):
            yield record(facts, "supervised", result)
    if jax.process_index() == 0:
        gallery.save(figures, kinds, source, test, program.config, state, given)


def same_run(config: ConfigDict, file: epath.Path) -> None:
    """Raises a ValueError where a run was trained with other settings than the results would say; data and evaluation may differ.

    A setting that did not exist yet when the run was trained is no difference.
    """
    if not file.exists():
        return
    free = (*HARMLESS, "data", "evaluate")
    found = differences(json.loads(file.read_text()), json.loads(config.to_json()))
    differ = [f"{key} was {old!r}, here {new!r}" for key, old, new in found if key.split(".")[0] not in free and old != "absent"]
    if differ:
        raise ValueError(f"{file.parent} was trained with another config: {'; '.join(differ[:3])}. Give evaluate the settings of the run, "
                         "or its --workdir; only config.data and config.evaluate may differ")


def refuse(protocols: Sequence[str], program: Program, state: TrainState) -> None:
    """Raises a ValueError where a protocol asks of the run what it has not."""
    e, has = program.config.evaluate, "this run has " + ", ".join(state.params)
    if "classifier" in protocols and program.method.classify is None:
        raise ValueError(f"--protocols: classifier judges a network that was trained on labels; {has}. Use knn, linear or label_fraction, "
                         "or evaluate a fine-tuned stage")
    if "clusters" in protocols and not hasattr(state.extra, "assignment"):
        raise ValueError(f"--protocols: clusters judges the labels that a network gave itself; {program.config.method} gives none")
    if "layers" in protocols and not ("layers" in e and e.layers):
        raise ValueError("--protocols: layers needs config.evaluate.layers, the names of the layers to probe, which this preset does not "
                         "have; configs/deepcluster.py has it")


def encoder(name: str, program: Program, state: TrainState, config: ConfigDict) -> tuple[Encode, int]:
    """The encode function of a kind of features, and its number of channels if it is no network."""
    if name == "raw_pixels":
        return raw_pixels, config.data.channels
    if name == "random_init":
        state = random_state(program, config)
    return functools.partial(program.encode, state.params, state.model_state, state.extra), 0


def random_state(program: Program, config: ConfigDict) -> TrainState:
    """The network the run started from, every branch switched on."""
    return switched_on(program.init(config.seed))


def switched_on(state: TrainState) -> TrainState:
    """A fresh network with every residual branch switched on: all scales of its normalisation are one.

    The last scale of each branch starts at zero, which helps training but leaves only shortcuts of an untrained network: on digits its kNN
    accuracy is 48 % instead of 64 %, and a baseline should be as good as it can be.
    """
    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        return jnp.ones_like(leaf) if path[-1] == jax.tree_util.DictKey("scale") else leaf
    return state.replace(params=jax.tree_util.tree_map_with_path(one, state.params))


def run_protocol(protocol: str, kind: Kind, config: ConfigDict) -> Iterator[dict[str, Any]]:
    """Results of one protocol: `protocol`, `settings`, `top1`, perhaps `top5`, `n`, `seconds`, and what the protocol adds."""
    e, arrays = config.evaluate, (kind.train.features, kind.train.labels, kind.test.features, kind.test.labels)
    classes, begin = config.data.num_classes, time.perf_counter()
    if protocol == "knn":
        settings = {"k": min(e.knn_k, len(kind.train.labels)), "temperature": e.knn_temperature}
        found = knn(*arrays, k=e.knn_k, temperature=e.knn_temperature, num_classes=classes)
        yield {"protocol": "knn", "settings": settings, **found, "seconds": time.perf_counter() - begin}
    elif protocol == "linear":
        yield probe(kind, config)
    else:
        settings = {"l2": L2, "standardised": True}
        for found in label_fraction(*arrays, num_classes=classes, counts=e.label_counts, draws=e.label_draws, channels=kind.channels):
            yield {"protocol": "label_fraction", "settings": settings, **found, "seconds": time.perf_counter() - begin}
            begin = time.perf_counter()


def probe(kind: Kind, config: ConfigDict) -> dict[str, Any]:
    """A linear probe of `config.evaluate.linear`'s kind.

    Raises:
        ValueError: that is neither "sgd" nor "lbfgs".
    """
    e, arrays = config.evaluate, (kind.train.features, kind.train.labels, kind.test.features, kind.test.labels)
    classes, begin = config.data.num_classes, time.perf_counter()
    if e.linear == "lbfgs":
        found = linear.lbfgs(*arrays, num_classes=classes, channels=kind.channels, l2=e.linear_l2, seed=config.seed)
        settings = {"l2": found.pop("l2"), "l2_chosen": e.linear_l2 <= 0, "standardised": True, "converged": found.pop("converged")}
        return {"protocol": "linear_lbfgs", "settings": settings, **found, "seconds": time.perf_counter() - begin}
    if e.linear == "sgd":
        found = linear.sgd(*arrays, num_classes=classes, batch_size=e.batch_size, seed=config.seed)
        settings = {"learning_rate": found.pop("learning_rate"), "epochs": 90, "standardised": False}
        return {"protocol": "linear_sgd_cached", "settings": settings, **found, "seconds": time.perf_counter() - begin}
    raise ValueError(f"config.evaluate.linear={e.linear!r} is neither 'sgd' nor 'lbfgs'")


def probed_layers(program: Program, state: TrainState, source: Source, test: Source) -> Iterator[dict[str, Any]]:
    """A linear probe of each layer in `config.evaluate.layers`, as protocol `layer_NAME`; `dim` is how many numbers it reads."""
    config, net = program.config, models.backbone(program.config.model)

    @functools.partial(jax.jit, static_argnums=0)
    def encode(layer: str, params: Any, statistics: Any, image: jax.Array) -> jax.Array:
        x = views.for_network(image, config.augment)
        return layers.pooled(models.activation(net, params, statistics, x, layer), config.evaluate.layer_dim)

    for layer in config.evaluate.layers:
        of_layer = functools.partial(encode, layer, state.params["encoder"], state.model_state["encoder"])
        kind = Kind(layer, encoded(of_layer, program, source), encoded(of_layer, program, test), 0)
        found = probe(kind, config)
        settings = {**found["settings"], "dim": kind.train.features.shape[1], "probe": found["protocol"]}
        yield {**found, "protocol": f"layer_{layer}", "settings": settings}


def assigned(program: Program, state: TrainState, source: Source) -> np.ndarray | None:
    """int32 [N], the cluster of every training image, -1 for none; of several clusterings the first. None: the method has no clusters."""
    if not hasattr(state.extra, "assignment"):
        return None
    assignment = np.asarray(jax.device_put(state.extra.assignment, sharding.whole(program.mesh)))[source.index]
    return assignment if assignment.ndim == 1 else assignment[:, 0]


def clusters(assignment: np.ndarray, source: Source) -> dict[str, Any]:
    """How much the last clustering knows of the true labels: their normalised mutual information in percent, on the training images."""
    begin, known = time.perf_counter(), assignment >= 0
    value = 100.0 * float(nmi(jnp.asarray(assignment[known]), jnp.asarray(source.labels[known])))
    settings = {"clusters": len(np.unique(assignment[known]))}
    return {"protocol": "clusters", "settings": settings, "nmi": value, "n": int(known.sum()), "seconds": time.perf_counter() - begin}


def classifier(program: Program, state: TrainState, test: Features) -> Iterator[dict[str, Any]]:
    """The run's own heads on the held-out images: how a supervised, distilled or fine-tuned network is judged."""
    begin = time.perf_counter()
    for name, logits in program.method.classify(state.params, state.extra, jnp.asarray(test.features)).items():
        found = linear.accuracies(np.asarray(logits), test.labels)
        yield {"protocol": name, "settings": {}, **found, "seconds": time.perf_counter() - begin}


def supervised(config: ConfigDict, source: Source, test: Source) -> Iterator[dict[str, Any]]:
    """The run's network, trained from scratch on k labels a class alone: the same labelled images as `label_fraction` draws.

    The labelled images are repeated to the same number for every k, so that one compiled step serves all.
    """
    e, devices = config.evaluate, jax.device_count()
    batch = -(-SUPERVISED_BATCH // devices) * devices
    length = -(-max(e.label_counts) * source.num_classes // batch) * batch
    config = supervised_config(config, batch, epochs=-(-SUPERVISED_STEPS * batch // length))
    program = None
    for k in e.label_counts:
        for draw in range(e.label_draws):
            begin = time.perf_counter()
            labelled = repeated(source.select(sampler.subset(source.labels, per_class=k, seed=draw)), length)
            program = program or build(config, labelled)
            state = fit(program, labelled, seed=config.seed)
            features = encoded(functools.partial(program.encode, state.params, state.model_state, state.extra), program, test)
            logits = np.asarray(program.method.classify(state.params, state.extra, jnp.asarray(features.features))["classifier"])
            settings = {"steps": program.total_steps, "batch_size": batch, "learning_rate": config.optim.learning_rate}
            yield {"protocol": "label_fraction", "settings": settings, "labels_per_class": k, "draw": draw,
                   **linear.accuracies(logits, features.labels), "seconds": time.perf_counter() - begin}


def repeated(source: Source, length: int) -> Source:
    """The source's examples over and over, `length` in all. In memory each copy has an id of its own, and so views of its own."""
    copies = source.select(np.resize(np.arange(len(source)), length))
    return copies if copies.images is None else dataclasses.replace(copies, index=np.arange(length, dtype=np.int32))


def supervised_config(config: ConfigDict, batch_size: int, epochs: int) -> ConfigDict:
    """The run's config turned supervised: same network, data and crops, no colour changes, SGD with Nesterov momentum and a cosine."""
    c = config.copy_and_resolve_references().unlock()
    c.method, c.batch_size, c.epochs, c.init_from = "supervised", batch_size, epochs, ""
    c.views = dict(one=dict())
    c.augment.update(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0)
    c.optim.update(name="sgd", learning_rate=SUPERVISED_RATE, scaling="none", momentum=0.9, nesterov=True, weight_decay=5e-4,
                   warmup_epochs=0)
    return c.lock()


def provenance(config: ConfigDict, source: Source, test: Source, step: int, command: str) -> dict[str, Any]:
    """The fields that all measurements of one evaluation share."""
    checksum = hashlib.sha256(f"{source.checksum} {test.checksum}".encode()).hexdigest()[:16]
    return {"experiment": config.name, "preset": config.preset, "seed": config.seed, "step": step, "epochs": config.epochs,
            "data": public(config.data.source), "train_images": len(source), "data_checksum": checksum, "config_hash": config_hash(config),
            "commit": commit(), "versions": versions(), "command": public(command)}


def record(facts: Mapping[str, Any], features: str, result: dict[str, Any]) -> dict[str, Any]:
    """One measurement with all that is known about it, before it is split into a line a metric."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {**facts, "features": features, "labels_per_class": 0, "draw": 0, **result, "time": now}


def lines(measurement: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line of results.jsonl for each metric of a measurement: `metric`, `value` in percent, and everything else."""
    rest = {key: value for key, value in measurement.items() if key not in METRICS}
    rest["seconds"] = round(rest["seconds"], 3)
    return [{**rest, "metric": metric, "value": round(measurement[metric], 4)} for metric in METRICS if metric in measurement]


def config_hash(config: ConfigDict) -> str:
    """12 hex digits that change with every setting a number can depend on; the place of the data is not one, its checksum has a field."""
    settings = {key: value for key, value in json.loads(config.to_json()).items() if key not in NOT_HASHED}
    settings["data"] = {**settings["data"], "source": public(config.data.source), "data_dir": ""}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def public(text: str) -> str:
    """The text without the folders of this machine: folder:/home/me/photos becomes folder:PATH/photos."""
    return re.sub(r"""(^|[\s'"=:])~?/[^\s'":]*?([^\s'"/:]+)/?(?=[\s'":]|$)""", r"\1PATH/\2", text)


def chosen(flag: str, text: str, default: Sequence[str], valid: Sequence[str]) -> tuple[str, ...]:
    """The words of a comma-separated flag.

    Raises:
        ValueError: a word is not valid; names the nearest that is.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip()) or tuple(default)
    for word in words:
        if word not in valid:
            near = difflib.get_close_matches(word, valid, 1, 0.4)
            raise ValueError(f"--{flag}: {word!r} is unknown{f', did you mean {near[0]!r}' if near else ''}; valid: {', '.join(valid)}")
    return words


def main(argv: list[str] | None = None) -> None:
    """`ssljax evaluate`."""
    flags = cli.parse("evaluate", argv, protocols="", baselines="", results="", **hosts.FLAGS)
    command = "ssljax evaluate " + shlex.join(sys.argv[1:] if argv is None else argv)
    _, config, workdir = stages(flags.config, flags.workdir)[-1]
    results = Path(flags.results or os.path.join(workdir, "results.jsonl"))
    with hosts.together("evaluate", flags.coordinator, flags.processes, flags.process):
        use_compilation_cache(flags.workdir)
        try:
            protocols = chosen("protocols", flags.protocols, config.evaluate.protocols, PROTOCOLS)
            baselines = chosen("baselines", flags.baselines, (), BASELINES)
            for measurement in measure(config, workdir, protocols, baselines, results.parent / f"gallery-{config.preset}.npz", command):
                if jax.process_index() == 0:
                    append(results, lines(measurement))
        except (ValueError, FileNotFoundError, MemoryError) as error:
            raise SystemExit(f"ssljax evaluate: {error}") from error
        if jax.process_index() == 0:
            print(f"results: {results}")


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds lines to results.jsonl and says the first on the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    first = rows[0]
    labels = f" {first['labels_per_class']} a class, draw {first['draw']}" if first["labels_per_class"] else ""
    metric = "NMI" if first["metric"] == "nmi" else "top-1"
    print(f"{first['features']:12} {first['protocol']}{labels}: {metric} {first['value']:.1f} % of {first['n']}", flush=True)


if __name__ == "__main__":
    main()
