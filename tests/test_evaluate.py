"""`ssljax evaluate` and then `ssljax report`, on digits and the checkpoint of a random network."""

import dataclasses
import json
from collections import Counter

import jax
import numpy as np
import pytest

from configs.simclr import get_config
from ssljax import benches, evaluate, report, sharding
from ssljax.config import hashed, public
from ssljax.data import sampler, sources
from ssljax.program import build, encoded, switched_on
from ssljax.protocols import PROTOCOLS
from ssljax.protocols.bench import Bench
from ssljax.protocols.features import Features, raw_pixels
from ssljax.protocols.knn import nearest
from ssljax.results import read
from ssljax.run import few_labels
from ssljax.run.checkpoint import Checkpoints
from ssljax.types import TrainState
from tests.one_block import shrink

pytestmark = pytest.mark.slow

EVALUATE = ("label_counts=(1, 2)", "label_draws=2", "knn_k=5", "linear_l2=0.01", "batch_size=250")
SMALL = ["--config.model.width=0.125", *(f"--config.evaluate.{setting}" for setting in EVALUATE)]


def config():
    c = get_config("digits").unlock()
    c.model.width = 0.125
    c.evaluate.update(label_counts=(1, 2), label_draws=2, knn_k=5, linear_l2=0.01, batch_size=250)
    return c.lock()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    c = config()
    (folder / "run" / "tensorboard").mkdir(parents=True)  # as training leaves it
    with pytest.MonkeyPatch.context() as patch:
        one = sharding.make_mesh(1)
        patch.setattr(sharding, "make_mesh", lambda fsdp=1: one)  # compiles sooner than for eight
        patch.setattr(few_labels, "SUPERVISED_STEPS", 2)
        shrink(patch.setitem)
        program = build(c, sources.load(c.data, "train").facts)
        checkpoints = Checkpoints(str(folder / "run"), keep_last=1)
        checkpoints.save(switched_on(program.init(0)), {"loss": 1.0})
        checkpoints.close()
        flags = ["--config", "configs/simclr.py:digits", f"--workdir={folder}/run", *SMALL]
        flags += ["--protocols=knn,linear,label_fraction", "--baselines=raw_pixels,random_init,supervised"]
        evaluate.main([*flags, f"--results={folder}/out/results.jsonl"])
    return folder / "out"


def test_every_measurement_is_recorded_with_its_provenance(results):
    rows = read(results / "results.jsonl")
    written = (results / "results.jsonl").read_text()
    assert written.count('"versions"') == 1  # one evaluation is one run, described once
    top1 = [r for r in rows if r["metric"] == "top1"]
    counts_of_neighbours = 3 * 3  # of each network, at 1, 20 and 200
    assert len(rows) == 2 * len(top1) + counts_of_neighbours  # ten classes: a top-5 beside each
    counts = Counter((r["features"], r["protocol"]) for r in top1)
    networks = ("simclr", "raw_pixels", "random_init")
    assert counts == {
        **{(f, "knn"): 1 for f in networks},
        **{(f, "linear_lbfgs"): 1 for f in networks},
        **{(f, "label_fraction"): 4 for f in (*networks, "supervised")},
    }
    for r in rows:
        assert r["n"] == 297 and 0 <= r["value"] <= 100  # in batches of 250: padding is not counted
        assert (r["experiment"], r["preset"], r["data"]) == ("simclr", "digits", "digits")
        assert (r["seed"], r["step"]) == (0, 0)
        assert r["parameters"] == 408 + 1264  # stem and three blocks of 8, 16, 32 channels
        assert r["versions"]["jax"] and r["commit"]
        assert len(r["config_hash"]) == 12
        assert r["command"].startswith("ssljax evaluate --config")
        assert str(results.parent) not in json.dumps(r)  # no local path
    value = {(r["features"], r["protocol"], r["labels_per_class"], r["draw"]): r["value"] for r in top1}
    assert value["raw_pixels", "knn", 0, 0] > 85 and value["raw_pixels", "linear_lbfgs", 0, 0] > 85
    # The checkpoint IS the random network of this seed.
    for protocol, k, draw in (("knn", 0, 0), ("linear_lbfgs", 0, 0), ("label_fraction", 1, 1)):
        assert value["simclr", protocol, k, draw] == value["random_init", protocol, k, draw]


def test_report_of_the_real_results(results, capsys):
    report.main([str(results)])
    table = capsys.readouterr().out
    networks = ("raw pixels", "random network", "labels alone", "SimCLR")
    for text in (*networks, "kNN", "linear", "1 label per class", "2 labels per class", "±"):
        assert text in table
    assert (results / "report.html").stat().st_size > 50_000
    size = config().data.image_size
    gallery = np.load(results / "gallery-digits.npz")
    assert gallery["query"].shape == (10, size, size, 1)
    assert gallery["neighbour"].shape == (10, 7, size, size, 1)
    assert gallery["points/simclr"].shape[0] == gallery["labels"].shape[0] == 297


def test_the_neighbours_are_in_tensorboard(results):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(results.parent / "run" / "tensorboard"))
    events.Reload()
    (shown,) = events.Tensors("neighbours")
    width, _, picture = shown.tensor_proto.string_val
    assert shown.step == 0 and int(width) > 1000 and picture.startswith(b"\x89PNG")


def test_every_image_once_on_eight_devices():
    """297 images in batches of 250, made 256 to split over the devices."""
    c = config()
    train_split, test = sources.load(c.data, "train"), sources.load(c.data, "test")
    program = build(c, train_split.facts)
    assert program.mesh.devices.size == 8
    found = encoded(raw_pixels, program.mesh, c, test)
    np.testing.assert_allclose(found.features, test.images.reshape(297, -1) / 255.0, rtol=2e-7)
    np.testing.assert_array_equal(found.labels, test.labels)


def test_supervised_uses_the_labels_of_its_draw_and_no_others():
    """Wrong labels on all other images change nothing."""
    c = config().unlock()
    c.evaluate.update(label_counts=(1,), label_draws=1)
    source, test = sources.load(c.data, "train"), sources.load(c.data, "test")
    kept = sampler.subset(source.labels, per_class=1, seed=0)
    seen = []

    def fit(program, labelled, *, seed):
        seen.append((labelled.index, labelled.labels, labelled.images))
        return program.init(seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_labels, "fit", fit)
        found = list(few_labels.supervised(c.lock(), source, test))
    ((index, labels, images),) = seen
    assert len(found) == 1 and found[0]["n"] == 297
    assert len(np.unique(index)) == len(index) == 32  # each copy has its own augmentations
    np.testing.assert_array_equal(labels, source.labels[np.resize(kept, 32)])
    np.testing.assert_array_equal(images, source.images[np.resize(kept, 32)])


@pytest.mark.parametrize("protocol", ["knn", "linear", "label_fraction"])
def test_protocols_judge_labelled_images_alone(protocol):
    rng = np.random.default_rng(0)
    c = config().unlock()
    c.evaluate.update(label_counts=(2,), label_draws=1)
    digits = sources.load(c.data, "test")

    def features(n, labelled):
        labels = rng.integers(0, 3, n).astype(np.int32)
        x = (np.eye(3)[labels] + rng.normal(0, 0.6, (n, 3))).astype(np.float32)
        return Features(x, np.where(labelled, labels, -1).astype(np.int32), np.arange(n, dtype=np.int32))

    def judge(train, test):
        """Judge two splits, which are told apart by their length."""
        known = {len(found.labels): found for found in (train, test)}
        split = {n: digits.select(np.arange(n)) for n in known}
        bench = Bench(
            config=c,
            name="simclr",
            channels=0,
            train=split[len(train.labels)],
            test=split[len(test.labels)],
            load=None,
            features=lambda source: known[len(source)],
        )
        return next(PROTOCOLS[protocol].judge(bench))

    def labelled(split):
        return Features(*(values[split.labels >= 0] for values in split))

    train = features(60, np.arange(60) % 3 > 0)
    test = features(30, np.arange(30) % 2 > 0)
    found = judge(train, test)
    expected = judge(labelled(train), labelled(test))
    assert found["n"] == 15
    assert found["top1"] == expected["top1"] > 40
    assert found["settings"] == expected["settings"]
    with pytest.raises(ValueError, match=f"{protocol} judges by labels, and none of 30 test images has one"):
        judge(train, test._replace(labels=np.full(30, -1, np.int32)))


def test_a_protocol_may_load_further_sources_which_are_encoded_on_demand():
    """A protocol made for this test: two labels per image, on other sources than the two of the bench."""
    c = config()
    source, test = sources.load(c.data, "train"), sources.load(c.data, "test")
    pixels = benches.of_pixels(c, source, test)
    asked = []

    def seen(split):
        asked.append(len(split))
        return pixels.features(split)

    bench = pixels._replace(features=benches.once(seen, source, test))

    def judge(bench):
        for n in (1, 3):
            further = bench.load("train", train_per_class=n)
            two = np.eye(10)[further.labels] + np.eye(10)[(further.labels + 1) % 10]
            further = dataclasses.replace(further, targets={"two": two}).select(np.arange(10 * n)[::-1])
            _, near = nearest(bench.features(bench.train).features, bench.features(further).features, 1)
            hits = (further.targets["two"] * np.eye(10)[bench.train.labels[near[:, 0]]]).sum()
            yield {
                "protocol": f"two_{n}",
                "settings": {},
                "hits": 100.0 * hits / len(further),
                "n": len(further),
            }

    found = list(judge(bench))
    assert [(row["protocol"], row["hits"], row["n"]) for row in found] == [
        ("two_1", 100.0, 10),
        ("two_3", 100.0, 30),
    ]
    assert asked == [1500, 10, 30]  # the training images once, the others on demand


def test_a_random_network_has_its_residual_branches_on():
    state = TrainState(
        step=0,
        params={"encoder": {"norm": {"scale": jax.numpy.zeros(3)}, "conv": {"kernel": jax.numpy.zeros(2)}}},
        model_state={},
        opt_state=(),
        extra=(),
    )
    params = switched_on(state).params["encoder"]
    np.testing.assert_array_equal(params["norm"]["scale"], np.ones(3))
    np.testing.assert_array_equal(params["conv"]["kernel"], np.zeros(2))


def test_results_of_a_run_cannot_be_filed_under_other_settings(tmp_path):
    trained, other = config(), config().unlock()
    file = tmp_path / "config.json"
    evaluate.same_run(trained, file)  # a folder from elsewhere has no such file
    stored = json.loads(trained.to_json())
    del stored["augment"]["solarize_probability"]  # a setting that is newer than the run
    file.write_text(json.dumps(stored))
    other.evaluate.knn_k = 3
    other.data.labels_per_class = 5
    other.log_every = 7
    evaluate.same_run(other, file)
    other.optim.learning_rate = 9.0
    with pytest.raises(ValueError, match="trained with another config: optim.learning_rate was .*, here 9.0"):
        evaluate.same_run(other, file)


def test_config_hash_changes_only_with_what_matters():
    a, b, c, d = (config().unlock() for _ in range(4))
    b.seed = 5
    b.log_every = 1
    c.optim.learning_rate = 0.5
    d.data.data_dir = "/somewhere"
    assert hashed(a) == hashed(b) == hashed(d) != hashed(c)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("digits", "digits"),
        ("folder:/home/me/photos", "folder:PATH/photos"),
        ("folder:/home/me/photos/", "folder:PATH/photos"),
        (
            "ssljax evaluate --workdir /tmp/a/b --results=~/r.jsonl",
            "ssljax evaluate --workdir PATH/b --results=PATH/r.jsonl",
        ),
        (
            "--config configs/simclr.py:digits --results experiments/simclr/results.jsonl",
            "--config configs/simclr.py:digits --results experiments/simclr/results.jsonl",
        ),
    ],
)
def test_local_paths_are_not_recorded(text, expected):
    assert public(text) == expected


def test_unknown_words_are_answered_with_the_valid_ones(tmp_path):
    arguments = ["--config", "configs/simclr.py:digits", f"--workdir={tmp_path}"]
    with pytest.raises(SystemExit, match="'knm' is unknown, did you mean 'knn'"):
        evaluate.main([*arguments, "--protocols=knm"])
    with pytest.raises(SystemExit, match="valid: raw_pixels, random_init, supervised"):
        evaluate.main([*arguments, "--baselines=zzz"])
    with pytest.raises(SystemExit, match="no checkpoint in"):
        evaluate.main([*arguments, "--protocols=knn"])
