"""`ssljax evaluate`: run protocols on a checkpoint and on baselines, and append to results.jsonl.

    ssljax evaluate --workdir runs/digits \\
        --protocols knn,linear,label_fraction --baselines raw_pixels,random_init,supervised \\
        [--results experiments/simclr/results.jsonl]

The config lies in the run's folder; `--config FILE` may name it too. The network can be evaluated on other
data: `--config.data.source=folder:PATH`. For a config with stages, the last stage is evaluated unless
`--stage NAME` says otherwise. The checkpoint is the last one, never the best on the test split. The file
gallery-PRESET.npz beside the results holds a few hundred test features and some nearest neighbours, for the
figures of `ssljax report`; if the run has TensorBoard events, the neighbours are there too.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from threadpoolctl import threadpool_limits

from ssljax import benches, board, cli, origin, results
from ssljax.config import differences, public
from ssljax.data import sources
from ssljax.data.reading import readable
from ssljax.data.source import Source
from ssljax.pictures import findings, gallery
from ssljax.pictures.kept import gallery_file
from ssljax.program import (
    Evaluated,
    open_run,
    stage,
    stages,
    untrained,
    use_compilation_cache,
)
from ssljax.protocols import PROTOCOLS
from ssljax.protocols.bench import Bench
from ssljax.protocols.linear import ONE_THREAD
from ssljax.run import few_labels, files, hosts, memory
from ssljax.run.folder import facts_of
from ssljax.run.start import HARMLESS
from ssljax.types import Measurement, Protocol

METRICS = tuple(dict.fromkeys(metric for protocol in PROTOCOLS.values() for metric in protocol.metrics))
METRIC_NAMES = {
    "top1": "top-1",
    "nmi": "NMI",
    "mae": "mean absolute error",
    "mean_error": "mean error",
    "flip_probability": "flip probability",
    "map": "mAP",
    "map_medium": "mAP (medium)",
    "mean_per_class": "mean per class",
    "map_step": "mAP (step)",
    "pixel_accuracy": "pixels",
}
BASELINES = ("raw_pixels", "random_init", "supervised")

BESIDE = ("AP50", "AP75", "pixel_accuracy")  # metrics that are printed beside the first

FITTED = ("linear", "label_fraction")  # by scikit-learn or many epochs


def measure(
    config: ConfigDict,
    workdir: str,
    protocols: Sequence[str],
    baselines: Sequence[str],
    figures: epath.Path,
    command: str,
    changed: Mapping[str, Any],
    config_hash: str,
    earlier_stage: str = "",
    chosen_by_hand: bool = True,
) -> Iterator[tuple[results.Run, dict[str, Any]]]:
    """Run the protocols on the checkpoint in `workdir` and on the baselines.

    Args:
        config: the config of the run, one stage; its `data` and `evaluate` settings may be others.
        workdir: the folder of the run.
        protocols: names in PROTOCOLS.
        baselines: names in BASELINES.
        figures: the npz file to write for the figures, see `gallery.save`.
        command: the command line as typed, for the record.
        changed: what the command line changed in the preset, see `origin.changed`.
        config_hash: of the run's settings, see `origin.config_hash`.
        earlier_stage: the name of the stage, unless it is the preset's last or only one.
        chosen_by_hand: whether the protocols were asked for. The preset's own are left out where data without
            labels make them refuse.

    Yields:
        The run and one measurement: the fields of a `results.Measurement`, with the metrics by name.

    Raises:
        ValueError: a protocol refuses this run or these data, or the run was trained with other settings.
    """
    trained = epath.Path(workdir) / "config.json"
    same_run(config, trained)
    source = readable(sources.load(config.data, "train"), config.data)
    test = readable(sources.load(config.data, "test"), config.data)
    at_hand = sources.facts(config.data, source)
    facts = facts_of(workdir) or at_hand

    run = open_run(config, facts, workdir)
    known = provenance(run, source, test, command, changed, config_hash, earlier_stage)
    own_data = not elsewhere(config, trained)
    assignment = run.assignment() if own_data else None
    judged = [benches.of_network(run, config.method, source, test, assignment)]
    if "raw_pixels" in baselines:
        judged.append(benches.of_pixels(config, source, test))
    if "random_init" in baselines:
        judged.append(benches.of_network(untrained(config, facts), "random_init", source, test))

    refused = {name: reason for name in protocols if (reason := PROTOCOLS[name].refuse(judged[0]))}
    if refused and (chosen_by_hand or source.labelled.any() or config.data.annotations):
        raise ValueError(f"--protocols: {next(iter(refused.values()))}")
    if refused and jax.process_index() == 0:
        print(f"no labels, so without {', '.join(refused)}; neighbours of held-out images: {figures}")
    protocols = [name for name in protocols if name not in refused]

    shown: dict[str, np.ndarray] = {}
    for reads in ("features", "images", "maps", "predictions", "state", "annotations"):
        names = [name for name in protocols if PROTOCOLS[name].reads == reads]
        for bench in judged:
            if not applies(bench, reads, config.method):
                continue
            for name in names:
                if name in FITTED:
                    warn_of_wait(name, bench)
                for found in timed(PROTOCOLS[name], bench):
                    pictures = found.pop("shown", {})
                    shown |= {
                        f"{found['protocol']}/{bench.name}/{key}": each for key, each in pictures.items()
                    }
                    yield record(known, bench.name, found)

    if "supervised" in baselines:
        for found in few_labels.supervised(config, source, test):
            yield record(known, "supervised", found)
    if config.data.annotations:
        if judged[0].predicted is not None:
            fields = findings.looked(judged[0])
            if jax.process_index() == 0:
                findings.save(figures, fields, judged[0], config_hash=config_hash)
                board.show_gallery(workdir, run.step, config, figures)
    elif jax.process_index() == 0:
        whole = any(PROTOCOLS[name].reads == "features" for name in protocols)
        pool = 0 if whole else gallery.POOL
        gallery.save(figures, judged, run, pool=pool, config_hash=config_hash, shown=shown)
        board.show_gallery(workdir, run.step, config, figures)


def applies(bench: Bench, reads: str, method: str) -> bool:
    """Whether a protocol can judge this network.

    Pixels have no feature maps, and a baseline has neither heads nor a state of its own.

    Args:
        bench: the network or the pixels.
        reads: `Protocol.reads`.
        method: the method of the run.
    """
    if reads in ("features", "images"):
        return True
    if reads == "maps":
        return bench.maps is not None
    return bench.name == method


def warn_of_wait(name: str, bench: Bench) -> None:
    """Say, on standard error, what is going on while a classifier is fitted to many numbers."""
    train = bench.features(bench.train).features
    if train.size >= ONE_THREAD and jax.process_index() == 0:
        size = f"{len(train):,} images of {train.shape[1]:,} numbers"
        print(f"{bench.name}: fitting {name} to {size}, which takes minutes", file=sys.stderr, flush=True)


def timed(protocol: Protocol, bench: Bench) -> Iterator[Measurement]:
    """Add to each measurement the `seconds` it took. Features are extracted before the clock starts.

    Those of the training split are extracted only for a protocol that reads them, and none for one that reads
    images of its own or what was found in annotated ones.
    """
    if protocol.reads in ("images", "annotations"):
        begin = time.perf_counter()
        for found in protocol.judge(bench):
            yield {**found, "seconds": time.perf_counter() - begin}
            begin = time.perf_counter()
        return
    dim = bench.features(bench.test).features.shape[1]
    if protocol.reads == "features":
        bench.features(bench.train)
    begin = time.perf_counter()
    with threadpool_limits(1 if len(bench.train) * dim < ONE_THREAD else None):
        for found in protocol.judge(bench):
            yield {**found, "seconds": time.perf_counter() - begin}
            begin = time.perf_counter()


def elsewhere(config: ConfigDict, file: epath.Path) -> list[str]:
    """The settings of `config.data` that differ from those in a run's config.json.

    If there are any, the run is not evaluated on the data that it was trained on.
    """
    if not file.exists():
        return []
    found = differences(files.read_config(file), json.loads(config.to_json()))
    same_images = ("data.data_dir", "data.on_bad_image")
    return [key for key, *_ in found if key.startswith("data.") and key not in same_images]


def same_run(config: ConfigDict, file: epath.Path) -> None:
    """Check that a run was trained with the settings under which its results will be filed.

    The data and the evaluation settings may differ.

    Raises:
        ValueError: another setting differs, of which up to three are named; or the file is damaged.
    """
    if not file.exists():
        return
    free = (*HARMLESS, "data", "evaluate")
    found = differences(files.read_config(file), json.loads(config.to_json()))
    differ = [f"{key} was {old!r}, here {new!r}" for key, old, new in found if key.split(".")[0] not in free]
    if differ:
        raise ValueError(
            f"{file.parent} was trained with another config: {'; '.join(differ[:3])}. Give evaluate the "
            "settings of the run, or another --workdir; only config.data and config.evaluate may differ"
        )


def provenance(
    run: Evaluated,
    source: Source,
    test: Source,
    command: str,
    changed: Mapping[str, Any],
    config_hash: str,
    earlier_stage: str,
) -> results.Run:
    """The record that all measurements of one evaluation share."""
    config = run.config
    checksum = hashlib.sha256(f"{source.checksum} {test.checksum}".encode()).hexdigest()[:16]
    backbone, _ = run.method.evaluated(run.params, run.model_state, run.extra)
    return results.Run(
        experiment=config.name,
        preset=config.preset,
        stage=earlier_stage,
        seed=config.seed,
        epochs=config.epochs,
        step=run.step,
        data=public(sources.labelled_source(config.data)),
        train_images=len(source),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(backbone)),
        data_checksum=checksum,
        config_hash=config_hash,
        changed=dict(changed),
        commit=results.commit(),
        versions=results.versions(),
        command=public(command),
    )


def record(run: results.Run, features: str, result: dict[str, Any]) -> tuple[results.Run, dict[str, Any]]:
    """A measurement with its run, before it is split into one line per metric."""
    return run, {"features": features, "labels_per_class": 0, "draw": 0, **result, "time": results.now()}


def chosen(flag: str, text: str, default: Sequence[str], valid: Sequence[str]) -> tuple[str, ...]:
    """The words of a comma-separated flag.

    Args:
        flag: the flag's name, for the error.
        text: its value.
        default: the words that an empty value stands for.
        valid: the words that may occur.

    Raises:
        ValueError: a word is not valid; names the nearest valid one.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip()) or tuple(default)
    for word in words:
        if word not in valid:
            near = difflib.get_close_matches(word, valid, 1, 0.4)
            guess = f", did you mean {near[0]!r}" if near else ""
            raise ValueError(f"--{flag}: {word!r} is unknown{guess}; valid: {', '.join(valid)}")
    return words


def main(argv: list[str] | None = None) -> None:
    """`ssljax evaluate`."""
    flags = cli.parse("evaluate", argv, protocols="", baselines="", results="", stage="", **hosts.FLAGS)
    command = "ssljax evaluate " + shlex.join(sys.argv[1:] if argv is None else argv)
    try:
        config, workdir = stage(flags.config, flags.workdir, flags.stage)
    except ValueError as error:
        raise SystemExit(f"ssljax evaluate: {error}") from error

    names = [name for name, _, _ in stages(flags.config, "") if name]
    earlier_stage = flags.stage if flags.stage in names[:-1] else ""
    changed = origin.changed(flags.overrides, names, earlier_stage)
    config_hash = origin.config_hash(config, flags.overrides, names, earlier_stage)
    file = epath.Path(flags.results or os.path.join(workdir, "results.jsonl"))
    label = results.label(config.preset, earlier_stage)
    figures = gallery_file(file.parent, label, config_hash)

    with hosts.together("evaluate", flags.coordinator, flags.processes, flags.process):
        use_compilation_cache(flags.workdir)
        with cli.answered("evaluate"), memory.explained(config, flags.stage, verb="evaluate"):
            asked = {name: getattr(flags, name) for name in ("workdir", "stage", "protocols", "baselines")}
            hosts.started_alike(flags.config, **asked)
            protocols = chosen("protocols", flags.protocols, config.evaluate.protocols, tuple(PROTOCOLS))
            baselines = chosen("baselines", flags.baselines, (), BASELINES)
            found_by = measure(
                config,
                workdir,
                protocols,
                baselines,
                figures,
                command,
                changed,
                config_hash,
                earlier_stage,
                chosen_by_hand=bool(flags.protocols),
            )
            measured = 0
            for run, measurement in found_by:
                measured += 1
                if jax.process_index() == 0:
                    found = results.lines(measurement, METRICS)
                    results.append(file, run, found)
                    say(found)
        if jax.process_index() == 0 and measured:
            print(f"results: {file}")


def say(found: Sequence[results.Measurement]) -> None:
    """Print the first of a protocol's measurements, and what other numbers of neighbours give."""
    first = found[0]
    labels = ""
    if first["labels_per_class"]:
        labels = f" {first['labels_per_class']} per class, draw {first['draw']}"
    metric = METRIC_NAMES.get(first["metric"], first["metric"])
    value = f"{metric} {first['value']:.1f} % of {first['n']}"
    others = [
        f"k={each['metric'].removeprefix('top1_k')} {each['value']:.1f}"
        for each in found
        if each["metric"].startswith("top1_k")
    ]
    others += [
        f"{METRIC_NAMES.get(each['metric'], each['metric'])} {each['value']:.1f}"
        for each in found
        if each["metric"] in BESIDE
    ]
    counts = f"; {', '.join(others)}" if others else ""
    protocol = f"knn, k={first['settings']['k']}" if first["protocol"] == "knn" else first["protocol"]
    print(f"{first['features']:12} {protocol}{labels}: {value}{counts}", flush=True)


if __name__ == "__main__":
    cli.run(main)
