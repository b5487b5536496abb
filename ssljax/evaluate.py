"""Protocols on a checkpoint and on its baselines; every measurement is one line of results.jsonl.

    ssljax evaluate --config configs/simclr.py:digits --workdir runs/digits --protocols knn,linear,label_fraction \\
        --baselines raw_pixels,random_init,supervised [--results experiments/simclr/results.jsonl]

Any data may be judged on: `--config.data.source=folder:PATH`. Of a config with stages the last one is meant, or `--stage NAME`.
The checkpoint is the last one, never the best over the test split. Beside the results lies gallery-PRESET.npz: a few hundred test features
and some nearest neighbours, for the figures of `ssljax report`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from ssljax import cli, results
from ssljax.config import differences, hashed, public
from ssljax.data import sources
from ssljax.data.source import Source
from ssljax.pictures import gallery
from ssljax.program import Evaluated, encoded, open_run, stage, stages, untrained, use_compilation_cache
from ssljax.protocols import PROTOCOLS
from ssljax.protocols.bench import Bench, Reduce
from ssljax.protocols.features import Features, raw_pixels
from ssljax.run import few_labels, hosts
from ssljax.run.folder import HARMLESS, facts_of
from ssljax.sharding import make_mesh
from ssljax.types import Measurement

METRICS = tuple(dict.fromkeys(metric for protocol in PROTOCOLS.values() for metric in protocol.metrics))
BASELINES = ("raw_pixels", "random_init", "supervised")

# scikit-learn fits fewer numbers than this faster on one core: on a busy machine its threads wait for each other, 100 times as long.
ONE_THREAD = 10_000_000


def measure(
    config: ConfigDict,
    workdir: str,
    protocols: Sequence[str],
    baselines: Sequence[str],
    figures: Path,
    command: str,
    changed: Mapping[str, Any],
) -> Iterator[tuple[results.Run, dict[str, Any]]]:
    """Runs the protocols on the checkpoint in `workdir` and on the baselines.

    Args:
        config: of the run, one stage; its `data` and `evaluate` may be others.
        workdir: its folder.
        protocols: some of PROTOCOLS.
        baselines: some of BASELINES.
        figures: npz to write for them, see `gallery.save`.
        command: as typed, for the record.
        changed: what it changed in the preset, see `results.changed`.

    Yields:
        the run, and what was measured on it: the fields of a `results.Measurement`, with the metrics by name.

    Raises:
        ValueError: a protocol refuses this run or these data, or the run had other settings.
    """
    same_run(config, epath.Path(workdir) / "config.json")
    source, test = sources.load(config.data, "train"), sources.load(config.data, "test")
    at_hand = sources.facts(config.data, source)
    facts = facts_of(workdir) or at_hand
    run = open_run(config, facts, workdir)
    known = provenance(config, source, test, run.step, command, changed)
    own_data = not elsewhere(config, epath.Path(workdir) / "config.json")
    benches = [of_network(run, config.method, source, test, run.assignment() if own_data else None)]
    if "raw_pixels" in baselines:
        benches.append(of_pixels(config, source, test))
    if "random_init" in baselines:
        benches.append(of_network(untrained(config, facts), "random_init", source, test))
    for name in protocols:
        refusal = PROTOCOLS[name].refuse(benches[0])
        if refusal:
            raise ValueError(f"--protocols: {refusal}")
    for reads in ("features", "maps", "predictions", "state"):
        for bench in benches:
            for name in protocols:
                if PROTOCOLS[name].reads == reads and judged(bench, reads, config.method):
                    for found in timed(PROTOCOLS[name].judge, bench):
                        yield record(known, bench.name, found)
    if "supervised" in baselines:
        for found in few_labels.supervised(config, source, test):
            yield record(known, "supervised", found)
    if jax.process_index() == 0:
        gallery.save(figures, benches, run)


def judged(bench: Bench, reads: str, method: str) -> bool:
    """Whether a protocol that reads so looks at this network: pixels have no maps, a baseline neither heads nor a state of its own."""
    if reads == "features":
        return True
    if reads == "maps":
        return bench.maps is not None
    return bench.name == method


def of_network(
    network: Evaluated, name: str, source: Source, test: Source, assignment: np.ndarray | None = None
) -> Bench:
    """The bench of a run's network, or of the untrained one; `assignment` as in Bench."""
    config = network.config

    def maps(split: Source, layer: str, reduce: Reduce) -> Features:
        return encoded(lambda image: reduce(network.maps(image, layer)), network.mesh, config, split)

    def predictions(split: Source) -> Mapping[str, np.ndarray]:
        found = network.method.classify(
            network.params, network.extra, jax.numpy.asarray(features(split).features)
        )
        return {head: np.asarray(logits) for head, logits in found.items()}

    features = once(lambda split: encoded(network.encode, network.mesh, config, split), source, test)
    return Bench(
        config=config,
        name=name,
        channels=0,
        train=source,
        test=test,
        load=further(config),
        features=features,
        maps=maps,
        predictions=None if network.method.classify is None else predictions,
        assignment=assignment,
    )


def of_pixels(config: ConfigDict, source: Source, test: Source) -> Bench:
    """The bench of no network at all."""
    mesh = make_mesh(fsdp=config.sharding.fsdp)
    features = once(lambda split: encoded(raw_pixels, mesh, config, split), source, test)
    return Bench(
        config=config,
        name="raw_pixels",
        channels=config.data.channels,
        train=source,
        test=test,
        load=further(config),
        features=features,
    )


def further(config: ConfigDict) -> Callable[..., Source]:
    """`Bench.load`: (split, settings of `config.data` that are others) -> a source."""

    def load(split: str, **settings: Any) -> Source:
        data = config.data.copy_and_resolve_references().unlock()
        data.update(settings)
        return sources.load(data, split)

    return load


def once(function: Callable[[Source], Features], *kept: Source) -> Callable[[Source], Features]:
    """The function, which remembers what it gave for some sources, and for no others: a protocol may look at 75 of them."""
    known: dict[int, Features] = {}

    def call(source: Source) -> Features:
        if not any(source is one for one in kept):
            return function(source)
        if id(source) not in known:
            known[id(source)] = function(source)
        return known[id(source)]

    return call


def timed(judge: Callable[[Bench], Iterator[Measurement]], bench: Bench) -> Iterator[Measurement]:
    """The measurements, each with the `seconds` it took; the features are there before the clock starts."""
    size = bench.features(bench.train).features.size
    bench.features(bench.test)
    begin = time.perf_counter()
    with threadpool_limits(1 if size < ONE_THREAD else None):
        for found in judge(bench):
            yield {**found, "seconds": time.perf_counter() - begin}
            begin = time.perf_counter()


def elsewhere(config: ConfigDict, file: epath.Path) -> list[str]:
    """The settings of `config.data` in which a run's config.json differs: what it was trained on is not what it is judged on."""
    if not file.exists():
        return []
    found = differences(json.loads(file.read_text()), json.loads(config.to_json()))
    return [key for key, *_ in found if key.startswith("data.") and key != "data.data_dir"]


def same_run(config: ConfigDict, file: epath.Path) -> None:
    """Raises a ValueError where a run was trained with other settings than the results would say; data and evaluation may differ."""
    if not file.exists():
        return
    free = (*HARMLESS, "data", "evaluate")
    found = differences(json.loads(file.read_text()), json.loads(config.to_json()))
    differ = [f"{key} was {old!r}, here {new!r}" for key, old, new in found if key.split(".")[0] not in free]
    if differ:
        raise ValueError(
            f"{file.parent} was trained with another config: {'; '.join(differ[:3])}. Give evaluate the settings of the run, "
            "or its --workdir; only config.data and config.evaluate may differ"
        )


def provenance(
    config: ConfigDict, source: Source, test: Source, step: int, command: str, changed: Mapping[str, Any]
) -> results.Run:
    """What all measurements of one evaluation share."""
    checksum = hashlib.sha256(f"{source.checksum} {test.checksum}".encode()).hexdigest()[:16]
    return results.Run(
        experiment=config.name,
        preset=config.preset,
        seed=config.seed,
        epochs=config.epochs,
        step=step,
        data=public(config.data.source),
        train_images=len(source),
        data_checksum=checksum,
        config_hash=hashed(config),
        changed=dict(changed),
        commit=results.commit(),
        versions=results.versions(),
        command=public(command),
    )


def record(run: results.Run, features: str, result: dict[str, Any]) -> tuple[results.Run, dict[str, Any]]:
    """One measurement beside its run, before it is split into one line per metric."""
    return run, {"features": features, "labels_per_class": 0, "draw": 0, **result, "time": results.now()}


def chosen(flag: str, text: str, default: Sequence[str], valid: Sequence[str]) -> tuple[str, ...]:
    """The words of a comma-separated flag.

    Raises:
        ValueError: a word is not valid; names the nearest that is.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip()) or tuple(default)
    for word in words:
        if word not in valid:
            near = difflib.get_close_matches(word, valid, 1, 0.4)
            raise ValueError(
                f"--{flag}: {word!r} is unknown{f', did you mean {near[0]!r}' if near else ''}; valid: {', '.join(valid)}"
            )
    return words


def main(argv: list[str] | None = None) -> None:
    """`ssljax evaluate`."""
    flags = cli.parse("evaluate", argv, protocols="", baselines="", results="", stage="", **hosts.FLAGS)
    command = "ssljax evaluate " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        config, workdir = stage(flags.config, flags.workdir, flags.stage)
    except ValueError as error:
        raise SystemExit(f"ssljax evaluate: {error}") from error
    changed = results.changed(flags.overrides, [name for name, _, _ in stages(flags.config, "") if name])
    file = Path(flags.results or os.path.join(workdir, "results.jsonl"))
    figures = file.parent / f"gallery-{config.preset}.npz"
    with hosts.together("evaluate", flags.coordinator, flags.processes, flags.process):
        use_compilation_cache(flags.workdir)
        try:
            protocols = chosen("protocols", flags.protocols, config.evaluate.protocols, tuple(PROTOCOLS))
            baselines = chosen("baselines", flags.baselines, (), BASELINES)
            for run, measurement in measure(config, workdir, protocols, baselines, figures, command, changed):
                if jax.process_index() == 0:
                    found = results.lines(measurement, METRICS)
                    results.append(file, run, found)
                    say(found[0])
        except (ValueError, FileNotFoundError, ImportError, MemoryError) as error:
            raise SystemExit(f"ssljax evaluate: {error}") from error
        if jax.process_index() == 0:
            print(f"results: {file}")


def say(first: results.Measurement) -> None:
    """A measurement on the terminal."""
    labels = (
        f" {first['labels_per_class']} per class, draw {first['draw']}" if first["labels_per_class"] else ""
    )
    metric = "NMI" if first["metric"] == "nmi" else "top-1"
    print(
        f"{first['features']:12} {first['protocol']}{labels}: {metric} {first['value']:.1f} % of {first['n']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
