"""The report: aggregation, tables, the part in the README, and the self-contained page."""

import importlib
import itertools
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from configs.simclr import PRESETS
from ssljax import report, results
from ssljax.config import KEYS, leaves
from ssljax.pictures import bounds, figures, gallery, kept, page, paper, tables
from ssljax.pictures.overview import overview

ROOT = Path(__file__).parent.parent


def line(**changes):
    row = dict(
        run="r",
        experiment="simclr",
        preset="digits",
        protocol="knn",
        features="simclr",
        metric="top1",
        value=50.0,
        n=297,
        stage="",
        settings={},
        labels_per_class=0,
        draw=0,
        seed=0,
        step=10,
        epochs=2,
        data="digits",
        train_images=1500,
        parameters=0,
        data_checksum="d1",
        config_hash="c1",
        changed={},
        commit="abc",
        versions={"jax": "1", "flax": "2"},
        seconds=0.1,
        time="t",
        command="ssljax evaluate --config configs/simclr.py:digits",
    )
    return {**row, **changes}


def write(folder, rows):
    for row in rows:
        run = results.Run(**{name: row[name] for name in results.RUN})
        results.append(folder / "results.jsonl", run, [{name: row[name] for name in results.MEASUREMENT}])
    return folder / "results.jsonl"


def test_mean_and_sample_deviation_by_hand():
    rows = [line(value=v) for v in (80.0, 82.0, 87.0)]
    mean, std, n = tables.aggregate(rows)
    assert (mean, n) == (83.0, 3)
    assert std == pytest.approx(np.sqrt((9 + 1 + 16) / 2))
    assert tables.cell(rows) == "83.0 ± 3.6"
    assert tables.cell(rows[:1]) == "80.0"
    assert tables.cell([]) == "–"


def test_runs_with_different_settings_get_separate_tables_titled_by_what_differs():
    hot = dict(config_hash="c2", changed={"loss.temperature": 0.5, "epochs": 2})
    found = tables.groups([line(value=10.0), line(value=20.0, **hot), line(value=22.0, seed=1, **hot)])
    budget = "(digits, 1,500 training images, 2 epochs)"
    assert [(group.title, [row["value"] for row in group.rows]) for group in found] == [
        (f"digits, loss.temperature=0.5 {budget}", [20.0, 22.0]),
        (f"digits {budget}", [10.0]),
    ]
    assert [group.slug for group in found] == ["digits", "digits-c1"]  # the newest group has the plain name
    assert found[0].changed == {"loss.temperature": 0.5, "epochs": 2}


def test_versions_of_a_preset_are_told_apart_by_hash_and_commit():
    old = line(config_hash="old", value=10.0, commit="aaa", time="s")
    new = line(config_hash="new", value=20.0, commit="bbb")
    longer = line(config_hash="x", epochs=9, value=30.0)
    found = tables.groups([new, longer, old])  # sorted by time, not by position in the file
    assert [(group.title, [row["value"] for row in group.rows]) for group in found] == [
        ("digits (digits, 1,500 training images, 9 epochs)", [30.0]),
        ("digits (digits, 1,500 training images, 2 epochs), config new, commit bbb", [20.0]),
        ("digits (digits, 1,500 training images, 2 epochs), config old, commit aaa", [10.0]),
    ]
    data = tables.groups([line(), line(data_checksum="d2")])
    said = [group.title.partition("), ")[2] for group in data]
    assert said == ["data d2, commit abc", "data d1, commit abc"]
    assert [group.slug for group in data] == ["digits", "digits-c1"]
    data = tables.groups([line(), line(data_checksum="d2"), line(data_checksum="d3")])
    assert data[2].slug == "digits-c1-d1"


def test_the_same_settings_are_one_group_whether_typed_or_in_the_preset():
    """A preset may adopt what was once changed on the command line: the hash stays the same."""
    typed = line(changed={"loss.temperature": 0.5}, value=10.0)
    preset = line(seed=1, value=20.0)
    (group,) = tables.groups([typed, preset])
    assert group.title.startswith("digits (")
    assert group.changed == {}
    assert len(group.rows) == 2


def test_presets_stay_in_their_order_and_each_keeps_its_groups_together():
    rows = [
        line(preset="a", time="1"),
        line(preset="b", time="2"),
        line(preset="a", config_hash="c2", time="3"),
    ]
    assert [(group.preset, group.rows[0]["config_hash"]) for group in tables.groups(rows)] == [
        ("a", "c2"),
        ("a", "c1"),
        ("b", "c1"),
    ]


def test_replaced_measurements_are_counted():
    rows = [line(value=10.0), line(value=12.0), line(value=12.0), line(seed=1, value=20.0)]
    (group,) = tables.groups(rows)
    assert [row["value"] for row in group.rows] == [12.0, 20.0]
    said = tables.caption(group)
    assert said.endswith(
        "jax 1, flax 2; 2 earlier measurements (SimCLR) replaced by later ones, "
        "1 of them with a different value."
    )
    (group,) = tables.groups([line(), line(seed=1, versions={"jax": "3"})])
    assert tables.caption(group) == (
        "Mean ± standard deviation over seeds 0, 1; 297 held-out images; last checkpoint (step 10); "
        "commit abc; config c1; data d1; jax 1 and 3, flax 2."
    )


def test_main_table_by_hand():
    rows = [
        line(value=90.0),
        line(value=92.0, seed=1),
        line(metric="top5", value=99.0),
        line(protocol="linear_lbfgs", value=95.0),
        line(features="raw_pixels", value=70.0),
    ]
    for k in (10, 1):
        for draw in (0, 2):
            rows.append(line(protocol="label_fraction", labels_per_class=k, draw=draw, value=50.0 + k + draw))
    rows.append(line(protocol="label_fraction", labels_per_class=1, features="supervised", value=40.0))
    assert tables.main_table(rows) == [
        ["held-out top-1, %", "kNN", "linear", "1 label per class", "10 labels per class"],
        ["raw pixels", "70.0", "–", "–", "–"],
        ["labels alone", "–", "–", "40.0", "–"],
        ["SimCLR", "91.0 ± 1.4", "95.0", "52.0 ± 1.4", "61.0 ± 1.4"],
    ]


def test_a_fine_tuned_network_has_its_papers_name_and_a_baseline_its_own():
    rows = [
        line(experiment="beit", features="deit", protocol="classifier", value=66.0),
        line(experiment="beit", features="deit", value=60.0),
        line(experiment="beit", features="supervised", protocol="label_fraction", labels_per_class=1),
    ]
    assert [row[0] for row in tables.main_table(rows)[1:]] == ["labels alone", "BEiT"]
    again = tables.groups([*rows[:1], *rows])
    assert "1 earlier measurements (BEiT) replaced" in tables.caption(again[0])


def test_the_report_says_which_linear_probe_made_which_number():
    """A probe under random crops has a column and a sentence of its own beside the cached one."""
    recipe = dict(
        recipe="moco",
        layer="",
        crop="torchvision",
        optimizer="torch_sgd",
        learning_rate=30.0,
        scaling="none",
        batch_size=256,
        epochs=100,
        test_crops=1,
    )
    cached = line(features="linear", protocol="linear_sgd_cached", value=66.0)
    rows = [cached, line(features="linear", protocol="probe", value=67.5, settings=recipe)]
    assert tables.main_table(rows) == [
        ["held-out top-1, %", "linear probe, random crops", "linear (SGD, cached)"],
        ["frozen network", "67.5", "66.0"],
    ]
    (group,) = tables.groups(rows)
    assert tables.caption(group).endswith(
        "linear probe of a frozen network, trained under random crops (torchvision; moco recipe: torch_sgd "
        "at 30, 100 epochs at batch size 256) and tested on the centre crop; the other linear probes: on "
        "cached features of the centre crop."
    )
    layer = {**recipe, "layer": "conv3", "scaling": "linear", "learning_rate": 0.1, "test_crops": 10}
    (said,) = tables.probes([line(protocol="probe", settings=layer)])
    assert said.startswith("linear probe of conv3 of a frozen network, ") and " at 0.1 B/256, " in said
    assert said.endswith("tested on the mean of ten crops")
    assert tables.probes([cached]) == []


TOP1 = dict(protocol="linear_sgd_cached", features="simclr", metric="top1", labels_per_class=0)


def table(*rows, **changes):
    return {**dict(id="t", title="T", source="S", columns=["top-1 %"], note="", rows=list(rows)), **changes}


def test_paper_tables_show_paper_and_here_or_the_command():
    known = tables.groups([line(preset="r50", protocol="linear_sgd_cached", value=68.9)])
    asked = table(
        dict(name="ours", paper=[69.3], preset="r50", match=[TOP1], command="run r50"),
        dict(name="ours too", paper=[76.5], preset="r50_x4", match=[TOP1], command="run x4"),
        dict(name="theirs", paper=[None]),
    )
    _, _, body, commands = paper.paper_blocks([asked], known, Path())
    assert body.content == [
        ["", "top-1 %, paper", "here", "how"],
        ["ours", "69.3", "68.9", "[1]"],
        ["ours too", "76.5", "–", "needs a TPU: [2]"],
        ["theirs", "–", "–", "quoted"],
    ]
    assert commands.content == ["[1] run r50", "[2] run x4"]


def test_a_papers_row_takes_the_plain_preset_or_the_changes_it_asks_for_and_names_its_choice():
    rows = [
        line(protocol="linear_sgd_cached", **changes)
        for changes in (
            dict(value=60.0, config_hash="new", time="3"),
            dict(value=61.0, config_hash="new", time="3", seed=1),
            dict(value=10.0, config_hash="old", time="2"),
            dict(value=70.0, config_hash="hot", time="4", changed={"loss.temperature": 0.5}),
            dict(value=80.0, config_hash="both", time="5", changed={"loss.temperature": 0.5, "epochs": 9}),
        )
    ]
    ask = dict(paper=[1.0], preset="digits", match=[TOP1], command="run")
    asked = table(
        dict(name="plain", **ask),
        dict(name="hot", changed={"loss.temperature": 0.5}, **ask),
        dict(name="cold", changed={"loss.temperature": 0.1}, **ask),
    )
    _, _, body, _ = paper.paper_blocks([asked], tables.groups(rows), Path())
    assert [row[2:] for row in body.content[1:]] == [
        ["60.5 ± 0.7", "[1]; config new, the newest of 2"],
        ["70.0", "[1]"],
        ["–", "needs a TPU: [1]"],
    ]


def test_a_wide_table_has_the_papers_numbers_above_ours():
    columns = list("abcdef")
    known = tables.groups([line(protocol="linear_sgd_cached", value=7.0)])
    asked = table(
        dict(name="ours", paper=[1, 2, 3, 4, 5, None], preset="digits", match=[TOP1], command="run"),
        dict(name="theirs", paper=[6, 5, 4, 3, 2, 1]),
        columns=columns,
    )
    _, _, body, _ = paper.paper_blocks([asked], known, Path())
    assert body.content == [
        ["", *columns, "how"],
        ["ours, paper", "1.0", "2.0", "3.0", "4.0", "5.0", "–", ""],
        ["ours, here", "7.0", "–", "–", "–", "–", "–", "[1]"],
        ["theirs, paper", "6.0", "5.0", "4.0", "3.0", "2.0", "1.0", "quoted"],
    ]


def test_our_own_tables_compare_runs_made_here_and_elsewhere(tmp_path):
    (tmp_path / "moco").mkdir()
    (tmp_path / "simclr").mkdir()
    write(tmp_path / "simclr", [line(value=81.0), line(value=83.0, seed=1)])
    knn = dict(protocol="knn", metric="top1")
    asked = dict(
        id="t",
        title="T",
        columns=["kNN", "NMI"],
        note="Beside each other.",
        ours=True,
        rows=[
            {
                "name": "SimCLR",
                "from": "simclr",
                "preset": "digits",
                "match": [{**knn, "features": "simclr"}],
            },
            {
                "name": "MoCo",
                "preset": "digits",
                "command": "a",
                "match": [{**knn, "features": "moco"}, dict(protocol="clusters", metric="nmi")],
            },
            {"name": "later", "preset": "later", "match": [knn], "command": "b"},
            {
                "name": "by its other head",
                "preset": "digits",
                "match": [dict(protocol="head", metric="top1")],
                "command": "a",
            },
        ],
    )
    rows = [
        line(features="moco", value=70.0),
        line(features="moco", protocol="clusters", metric="nmi", value=55.0),
        line(features="moco", protocol="head", value=60.0),
    ]
    _, text, body, commands = paper.paper_blocks([asked], tables.groups(rows), tmp_path / "moco")
    assert text.content == "Beside each other." and commands.content == ["[1] a", "[2] b"]
    assert body.content == [
        ["", "kNN", "NMI", "how"],
        ["SimCLR", "82.0 ± 1.4", "–", "quoted"],
        ["MoCo", "70.0", "55.0", "[1]"],
        ["later", "–", "–", "not run: [2]"],
        ["by its other head", "60.0", "–", "[1]"],
    ]


def test_every_protocol_and_metric_has_a_column():
    rows = [
        line(protocol="layer_conv1", value=30.0),
        line(protocol="layer_conv2", value=40.0),
        line(protocol="layer_conv2", value=20.0, features="random_init"),
        line(value=90.0),
        line(protocol="clusters", metric="nmi", value=60.0),
    ]
    rows += [line(protocol="retrieval", metric="map", value=33.0), line(protocol="voc", value=11.0)]
    assert tables.main_table(rows) == [
        [
            "held-out top-1, %",
            "kNN",
            "conv1",
            "conv2",
            "voc",
            "NMI of clusters with labels",
            "retrieval, map",
        ],
        ["random network", "–", "–", "20.0", "–", "–", "–"],
        ["SimCLR", "90.0", "30.0", "40.0", "11.0", "60.0", "33.0"],
    ]


def test_bad_results_are_named(tmp_path):
    with pytest.raises(SystemExit, match="no .*results.jsonl: run `ssljax evaluate"):
        report.main([str(tmp_path)])
    (tmp_path / "results.jsonl").write_text("\n")
    with pytest.raises(SystemExit, match="is empty"):
        report.main([str(tmp_path)])
    write(tmp_path, [line()]).open("a").write('{"preset": "digits"}\n')
    with pytest.raises(SystemExit, match="results.jsonl, line 4 is neither a run nor a measurement"):
        report.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="usage: ssljax report DIR"):
        report.main([])


def test_names_beside_lines_do_not_overlap_and_stay_in_order():
    found = figures.spread_out({"a": 50.0, "b": 50.5, "c": 90.0}, 4.0)
    assert found["b"] - found["a"] == pytest.approx(4.0, abs=1e-6) and found["c"] == 90.0
    assert (found["a"] + found["b"]) / 2 == pytest.approx(50.25)


@pytest.mark.parametrize("classes", [("cat", "dog"), ()])
def test_an_image_without_a_label_has_no_name_and_is_never_wrong(classes, tmp_path, monkeypatch):
    """Used as an index, -1 would be the last class. `classes` is empty if no image has a label."""
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    labels = np.array([-1, 0]) if classes else np.array([-1, -1])
    images = np.zeros((2, 3, 4, 4, 1), np.uint8)
    beside = np.where(labels[:, None] < 0, [0, 1, -1], [0, 1, -1]) if classes else np.full((2, 3), -1)
    figures.neighbours(tmp_path, images[:, 0], labels, images, beside, classes, "t")
    figures.clusters(tmp_path, images, beside, np.array([5, 3]), classes, "t")
    figures.attention(tmp_path, images[:, 0], labels, np.zeros((2, 1, 2, 2)), classes, "t")
    points = {"simclr": np.random.default_rng(0).normal(size=(12, 4))}
    figures.feature_map(tmp_path, points, np.resize(labels, 12), classes, "t")
    near, sheet, looks, flat = drawn

    def framed(figure):
        return [bool(patch.get_linewidth() > 1) for patch in figure.axes[0].patches]

    def names(figure):
        return [text.get_text() for text in figure.axes[0].texts]

    assert names(near) == [*(["", "cat"] if classes else ["", ""]), "test", "nearest"]
    assert framed(near) == [False] * 4 + ([False, False, True, False] if classes else [False] * 4)
    common = "cat\n" if classes else ""
    assert names(sheet) == [f"{common}5 images", f"{common}3 images"]
    assert framed(sheet) == ([False, True, False] * 2 if classes else [False] * 6)
    assert [axis.get_title() for axis in looks.axes[:2]] == (["", "cat"] if classes else ["", ""])
    assert [text.get_text() for text in flat.axes[0].texts] == (["cat"] if classes else [])


def test_queries_are_labelled_images_if_there_are_any():
    assert gallery.queries_of(np.array([-1, 2, -1, 0, 2])).tolist() == [3, 1]
    assert gallery.queries_of(np.full(15, -1)).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert gallery.queries_of(np.full(3, -1)).tolist() == [0, 1, 2]
    assert gallery.queries_of(np.arange(20).repeat(2)).tolist() == list(range(0, 40, 2))  # every class
    assert len(gallery.queries_of(np.arange(100))) == 20 and gallery.queries_of(np.arange(100))[-1] == 99


@pytest.mark.slow
def test_everything_is_written_and_the_page_needs_no_other_file(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [line(seed=s, value=80.0 + s) for s in (0, 1)]
    for k, draw, kind in itertools.product((1, 5), (0, 1), ("simclr", "raw_pixels")):
        few = dict(protocol="label_fraction", labels_per_class=k, draw=draw)
        rows.append(line(**few, value=50.0 + k, features=kind))
    write(tmp_path, rows)
    points = {f"points/{kind}": rng.normal(size=(30, 8)) for kind in ("simclr", "raw_pixels")}
    np.savez(
        tmp_path / "gallery-digits.npz",
        **points,
        kinds=np.array(["simclr", "raw_pixels"]),
        labels=np.arange(30) % 3,
        class_names=np.array(["a", "b", "c"]),
        query=rng.integers(0, 255, (2, 8, 8, 1), np.uint8),
        query_labels=np.array([0, 1]),
        neighbour=rng.integers(0, 255, (2, 3, 8, 8, 1), np.uint8),
        neighbour_labels=np.array([[0, 0, 1], [1, 1, 1]]),
        cluster=rng.integers(0, 255, (2, 3, 8, 8, 1), np.uint8),
        cluster_labels=np.array([[0, 0, 1], [2, 2, 2]]),
        cluster_size=np.array([9, 3]),
        preset="digits",
        seed=0,
    )
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    config = {"name": "simclr", "preset": "digits", "epochs": 2, "seed": 0}
    (run / "config.json").write_text(json.dumps(config))
    measured = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "knn": 70.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in measured))
    (tmp_path / "README.md").write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    report.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "80.5 ± 0.7" in said and "report.html" in said
    pictures = [f"{stem}-digits.png" for stem in ("labels", "training", "features", "neighbours")]
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG") and picture in said
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    assert "| SimCLR | 80.5 ± 0.7 | 51.0 ± 0.0 | 55.0 ± 0.0 |" in readme and "![" in readme
    written = (tmp_path / "report.html").read_text()
    assert written.count("data:image/png;base64,") == 5 and not re.search(r'(src|href)="(?!data:)', written)
    assert "<td>80.5 ± 0.7</td>" in written
    report.main([str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == readme


def test_a_second_evaluation_keeps_the_points_of_baselines_that_it_does_not_measure(tmp_path):
    labels = np.arange(3)
    points = {f"points/{kind}": np.full((3, 2), i) for i, kind in enumerate(("simclr", "raw_pixels"))}
    file = tmp_path / "gallery-digits.npz"
    np.savez(
        file, **points, kinds=np.array(["simclr", "raw_pixels"]), labels=labels, config_hash="c1", seed=0
    )
    new = {"kinds": np.array(["simclr"]), "labels": labels}
    found = gallery.baselines_of_before(file, new, "c1", 0)
    assert found["kinds"].tolist() == ["simclr", "raw_pixels"]
    np.testing.assert_array_equal(found["points/raw_pixels"], points["points/raw_pixels"])
    assert "points/simclr" not in found
    assert gallery.baselines_of_before(file, new, "c2", 0) == {}  # of another config
    assert gallery.baselines_of_before(file, new, "c1", 1) == {}  # of another seed
    assert gallery.baselines_of_before(file, {**new, "labels": labels + 1}, "c1", 0) == {}
    assert gallery.baselines_of_before(tmp_path / "gallery-none.npz", new, "c1", 0) == {}


def test_a_tokenizer_shows_reconstructions_and_beit_what_it_masks(tmp_path):
    """Neither needs features or neighbours."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (2, 8, 8, 1), np.uint8)
    shown = dict(query=images, query_labels=np.array([0, 1]), preset="digits", seed=0)
    np.savez(
        tmp_path / "gallery.npz",
        reconstruction=images,
        masked=images,
        class_names=np.array(["a", "b"]),
        **shown,
    )
    (group,) = tables.groups([line()])
    blocks = report.gallery_blocks(tmp_path / "gallery.npz", group, tmp_path)
    assert [block.content[0] for block in blocks] == ["masked-digits.png", "reconstruction-digits.png"]
    for block in blocks:
        assert (tmp_path / block.content[0]).read_bytes().startswith(b"\x89PNG")


def training(folder="a", seed=0, epochs=2, rows=(), **settings):
    config = {"name": "simclr", "preset": "digits", "epochs": epochs, "seed": seed, "log_every": seed}
    return report.Training(folder, config | settings, list(rows))


def test_curves_of_one_seed_with_different_settings_have_different_names():
    hot, cold = {"loss.temperature": 0.5}, {"loss.temperature": 0.1}
    names = report.run_names([training("a", **hot), training("b", **cold), training("c", seed=1, **cold)])
    assert list(names) == [
        "seed 0, loss.temperature=0.5",
        "seed 0, loss.temperature=0.1",
        "seed 1, loss.temperature=0.1",
    ]
    assert list(report.run_names([training("a"), training("b", seed=1)])) == ["seed 0", "seed 1"]
    assert list(report.run_names([training("a"), training("b")])) == ["seed 0 (a)", "seed 0 (b)"]
    # A setting that one of the runs is too old to have does not tell them apart.
    assert list(report.run_names([training("a"), training("b", seed=1, **hot)])) == ["seed 0", "seed 1"]


def test_curves_go_to_the_group_with_their_settings():
    rows = [
        line(time="3"),
        line(config_hash="c2", changed={"loss.temperature": 0.5}, time="2"),
        line(config_hash="c3", time="1"),
    ]
    known = tables.groups(rows)
    newest, hot, old = known
    assert (newest.changed, hot.changed, old.changed) == ({}, {"loss.temperature": 0.5}, {})
    assert report.owner(training(**{"loss.temperature": 0.1}), known) == newest.slug
    assert report.owner(training(**{"loss.temperature": 0.5}), known) == hot.slug
    assert report.owner(training(epochs=3), known) == ""


def test_an_earlier_stage_is_a_table_of_its_own(tmp_path):
    """Its measurements fill no cell that does not ask for it, and its training curves stay with it."""
    last = line(preset="chain", value=80.0)
    first = line(preset="chain", value=60.0, stage="pretrain", config_hash="c2")
    known = tables.groups([first, last])
    assert {group.title.split(" (")[0]: group.slug for group in known} == {
        "chain": "chain",
        "chain, stage pretrain": "chain-pretrain",
    }
    row = {"name": "chain", "preset": "chain"}
    knn = {"protocol": "knn", "metric": "top1"}
    assert [found["value"] for found in tables.measured(known, knn, row)[0]] == [80.0]
    assert [found["value"] for found in tables.measured(known, knn | {"stage": "pretrain"}, row)[0]] == [60.0]

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"stages": ["pretrain", "finetune"]}')
    for stage in ("pretrain", "finetune"):
        folder = tmp_path / "run" / stage
        folder.mkdir()
        config = {"name": last["experiment"], "preset": "chain", "epochs": last["epochs"], "seed": 0}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    owners = {run.folder: report.owner(run, known) for run in report.training_runs(tmp_path)}
    assert owners == {"run/pretrain": "chain-pretrain", "run/finetune": "chain"}


def test_runs_without_measurements_are_shown_too(tmp_path):
    write(tmp_path, [line()])
    for name, preset in (("one", "digits"), ("two", "other")):
        (tmp_path / name).mkdir()
        config = {"name": "simclr", "preset": preset, "epochs": 2, "seed": 0, "loss": {"temperature": 0.5}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "los')
    runs = report.training_runs(tmp_path)
    assert [(run.folder, run.rows) for run in runs] == [
        ("one", [{"step": 1, "loss": 3.0}]),
        ("two", [{"step": 1, "loss": 3.0}]),
    ]
    assert runs[0].config["loss.temperature"] == 0.5
    report.main([str(tmp_path)])
    written = (tmp_path / "report.md").read_text()
    assert "## simclr: other (2 epochs), trained but not evaluated here" in written
    assert "(training-digits.png)" in written and "(training-simclr-other-2ep.png)" in written


def test_what_views_tell_about_each_other_is_drawn_for_each_pair(tmp_path):
    config = {"model.split": ["luminance", "0:3", "depth=3:4"], "bank.negatives": 100, "batch_size": 8}
    pairs = ("luminance_channels_0_to_3", "luminance_depth")
    rows = [{"step": s, f"bound_{pairs[0]}": 0.5 * s, f"bound_{pairs[1]}": 0.25 * s} for s in (1, 2)]
    first, second = bounds.bound_curves(config, [*rows, {"step": 3, "loss": 1.0}])
    assert first == ("luminance, channels_0_to_3", [1, 2], [0.5, 1.0], pytest.approx(np.log(100)))
    assert (second.pair, second.nats) == ("luminance, depth", [0.25, 0.5])
    config["bank.negatives"] = None  # negatives from the batch
    assert bounds.bound_curves(config, rows)[0].ceiling == pytest.approx(np.log(7))
    assert bounds.bound_curves({"batch_size": 8}, [{"step": 1, "loss": 1.0}]) == []
    (block,) = bounds.bound_blocks("digits", "digits", [(config, rows), (config, rows)], tmp_path)
    assert block.content[0] == "bounds-digits.png" and (tmp_path / "bounds-digits.png").stat().st_size > 3000
    assert bounds.bound_blocks("x", "x", [({"batch_size": 8}, [{"step": 1}])], tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "[here](javascript:alert(1))",
        "a | b",
        "two\n\n# lines",
        "`<img src=x onerror=alert(1)>`",
        "`` ` <script> ``",
        "a` <img> `b",
        "![x](y)",
        "`a|b` <b>",
    ],
)
def test_text_of_strangers_stays_text_in_markdown(text):
    """A class name, a setting or a command comes from somebody's folder or results.jsonl."""
    table = page.Block("table", [["", text], [text, "1"]])
    picture = page.Block("img", (f"{text}.png", text))
    written = page.markdown([page.Block("h2", text), page.Block("p", text), table, picture])
    *others, link = written.rstrip().split("\n\n")
    assert link.startswith("![") and re.fullmatch(r"[\w%/.]+\.png\)", link.rpartition("](")[2])
    for part in (*others, link.rpartition("](")[0]):
        assert not re.search(r"<\w|(?<!\\)\]\(", part)
    rows = [line for line in written.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 and {row.count("|") for row in rows} == {3}
    assert len(others) == 3 and len(re.findall("^#", written, re.M)) == 1


def test_a_command_cannot_end_its_block_of_code():
    written = page.markdown([page.Block("pre", ["ssljax\n```\n<script>", "````"])])
    assert written == "`````\nssljax\n```\n<script>\n````\n`````\n"


def test_code_and_bold_are_kept():
    text = "**bold** and `data.source` [1] 3 < 4"
    assert page.markdown([page.Block("p", text)]) == text + "\n"


def test_a_long_command_goes_on_in_lines_that_the_shell_reads_as_one():
    flags = [f"--config.model.name_{i}=value" for i in range(6)]
    command = shlex.join(["ssljax", "evaluate", *flags, "--config.data.source='a --b'"])
    lines = page.wrapped(command).split("\n")
    assert len(lines) > 1 and max(map(len, lines)) <= page.WIDE
    assert shlex.split(page.wrapped(command).replace("\\\n", "")) == shlex.split(command)
    assert page.wrapped("ssljax train --config a") == "ssljax train --config a"
    text = f"it's --long {'--x ' * 40}"  # no command
    assert page.wrapped(text) == text


def test_the_deviation_is_said_to_be_over_what_differs():
    few = dict(protocol="label_fraction", labels_per_class=1)
    draws = [line(**few, draw=draw) for draw in (0, 1)]

    def caption(rows):
        (group,) = tables.groups(rows)
        return tables.caption(group).partition("; 297")[0]

    assert caption([line()]) == caption(draws[:1]) == "Seed 0"
    assert caption(draws) == "Seed 0; mean ± standard deviation over 2 draws of the labels"
    assert caption([line(), line(seed=1)]) == "Mean ± standard deviation over seeds 0, 1"
    both = [*draws, line(**few, seed=1)]
    assert caption(both) == ("Mean ± standard deviation over seeds 0, 1 and over 2 draws of the labels")


def test_methods_with_presets_of_one_name_keep_their_titles_and_pictures_apart(tmp_path):
    photos = dict(data="folder:PATH/photos", preset="small")
    rows = [
        line(**photos),
        line(**photos, experiment="moco", features="moco", config_hash="c2", time="later"),
        line(preset="other", config_hash="c3"),
    ]
    known = tables.groups(rows)
    budget = "1,500 training images, 2 epochs)"
    assert {group.title: group.slug for group in known} == {
        f"photos, moco:small (folder:PATH/photos, {budget}": "moco-small",
        f"photos, simclr:small (folder:PATH/photos, {budget}": "simclr-small",
        f"other (digits, {budget}": "other",
    }

    # The second config does not write over the gallery of the first, and each group finds its own.
    first = kept.gallery_file(tmp_path, "small", "c1")
    np.savez(first, config_hash="c1")
    assert kept.gallery_file(tmp_path, "small", "c1") == first
    second = kept.gallery_file(tmp_path, "small", "c2")
    assert second.name == "gallery-small-c2.npz"
    np.savez(second, config_hash="c2")
    np.savez(tmp_path / "gallery-other.npz", seed=0)  # an older one, which does not say
    assert kept.galleries(tmp_path, known) == {
        "simclr-small": first,
        "moco-small": second,
        "other": tmp_path / "gallery-other.npz",
    }
    (tmp_path / "gallery-other.npz").write_bytes(b"PK")
    assert kept.gallery_file(tmp_path, "other", "c3").name == "gallery-other.npz"


@pytest.mark.parametrize(
    "data, said",
    [
        ("folder:PATH/photos", "photos"),
        ("tfds:cifar10", "cifar10"),
        ("digits", "digits"),
        ("folder:a/b/", "b"),
    ],
)
def test_pictures_are_titled_by_their_data(data, said):
    assert tables.data_name(data) == said


def test_a_folder_of_runs_has_the_measurements_of_each_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write(tmp_path / "a", [line(value=1.0)])
    write(tmp_path / "b", [line(value=2.0, seed=1)])
    write(tmp_path, [line(value=1.0)])
    assert [row["value"] for row in report.measurements(tmp_path)] == [1.0, 2.0]


def test_the_folder_of_one_run_has_a_page_before_it_is_evaluated(tmp_path, capsys):
    config = {
        "name": "simclr",
        "preset": "small",
        "epochs": 2,
        "seed": 0,
        "data": {"source": "folder:/a/photos"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    report.main(["--workdir", str(tmp_path)])
    assert "trained but not evaluated here" in (tmp_path / "report.md").read_text()
    report.main([f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit, match="usage: ssljax report DIR"):
        report.main(["--workdir"])


def test_a_run_without_labels_shows_the_neighbours_that_its_evaluation_found(tmp_path):
    config = {"name": "simclr", "preset": "small", "epochs": 2, "seed": 0, "data.source": "digits"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    images = np.zeros((2, 3, 4, 4, 3), np.uint8)
    none = np.full((2, 3), -1, np.int32)
    np.savez(
        kept.gallery_file(tmp_path, "small", "c1"),
        **{"kinds": ["simclr"], "points/simclr": np.eye(6, dtype=np.float16), "labels": np.full(6, -1)},
        **{"query": images[:, 0], "query_labels": none[:, 0], "class_names": np.array([], str), "seed": 0},
        **{"neighbour": images, "neighbour_labels": none, "config_hash": "c1"},
    )
    report.main([str(tmp_path)])
    written = (tmp_path / "report.md").read_text()
    assert "## simclr: small (2 epochs), evaluated by its pictures alone" in written
    assert "(neighbours-simclr-small-2ep.png)" in written
    assert (tmp_path / "neighbours-simclr-small-2ep.png").stat().st_size > 1000


def test_names_in_a_map_do_not_cover_each_other_and_stay_inside():
    figure, (axis,) = figures.blank(3, 3)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    places = [(0.5, 0.99), (0.5, 0.98), (0.55, 0.99), (0.1, 0.5)]
    texts = [axis.text(x, y, "a name", ha="center", va="center") for x, y in places]
    figure.draw_without_rendering()
    figures.move_apart(axis, texts)
    boxes = [text.get_window_extent() for text in texts]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert max(box.y1 for box in boxes) <= axis.get_window_extent().y1 + 1
    assert texts[3].get_position() == pytest.approx((0.1, 0.5))
    assert [text.get_position()[0] for text in texts] == pytest.approx([0.5, 0.5, 0.55, 0.1])


def test_a_readme_without_the_comments_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("mine\n")
    with pytest.raises(ValueError, match="has no place for the report"):
        page.renew(tmp_path / "README.md", "text")
    assert (tmp_path / "README.md").read_text() == "mine\n"


def test_the_papers_tables_are_complete():
    """Every row of SimCLR's paper.json has a number per column; rows for SimCLR say how to run them."""
    tables = json.loads((ROOT / "experiments/simclr/paper.json").read_text())
    wanted = {
        "linear_imagenet",
        "semi_supervised",
        "transfer_linear",
        "transfer_finetuned",
        "epochs_batch",
        "cifar10",
    }
    assert {table["id"] for table in tables} >= wanted
    for table in tables:
        for row in table["rows"]:
            assert len(row["paper"]) == len(table["columns"]), row["name"]
            assert ("SimCLR" not in row["name"]) or "command" in row
            assert len(row.get("match", row["paper"])) == len(row["paper"])
    presets = set(re.findall(r"configs/simclr\.py:(\w+)", json.dumps(tables)))
    assert {p for p in presets if not p.startswith("imagenet_r50_e")} <= set(PRESETS)


def overrides(command):
    """(config of the preset, dotted key -> value) of each evaluation in a command; loops run once."""
    found = []
    loop = re.match(r"for \w+ in (\w+)", command)
    for part in re.split(r"&&|;", re.sub(r"\$\{\w+\}", loop[1] if loop else "100", command)):
        named = re.search(r"ssljax (?:evaluate|train) --config configs/(\w+)\.py:(\S+)", part)
        if named and ("evaluate" in part or "evaluate" not in command):
            config = importlib.import_module(f"configs.{named[1]}").get_config(named[2])
            given = re.findall(r"--config\.([\w.]+)=(\S*)", part)
            found.append((config, {key: value.rstrip("'") for key, value in given}))
    return found


def value_of(text, like):
    """The value of a word of the command line, for a setting of this type."""
    if isinstance(like, bool):
        return text == "True"
    if isinstance(like, (list, tuple)):
        return text.split(",")
    return type(like)(text)


EXPERIMENTS = sorted(path.parent.name for path in ROOT.glob("experiments/*/paper.json"))


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_papers_row_asks_for_what_its_command_changes(experiment):
    """Otherwise the table would never show what the command measures."""
    asked = 0
    for table in json.loads((ROOT / "experiments" / experiment / "paper.json").read_text()):
        for row in (row for row in table["rows"] if "match" in row and "command" in row):
            for config, given in overrides(row["command"]):
                flat = leaves.flat(config)
                # A key that the preset has switched off has the type of its default.
                like = {key.name: key.default for key in KEYS.values()} | flat
                real = {key: value_of(text, like[key]) for key, text in given.items() if key in like}
                real = {key: value for key, value in real.items() if value != flat.get(key)}
                asked += 1
                if row.get("changed") == "any":  # then the name of its preset says which run it is
                    for match in row["match"]:
                        name = match.get("preset", row.get("preset"))
                        assert re.search(rf"(:|--config\.preset=){name}\b", row["command"]), row["name"]
                else:
                    found = results.changed(real, flat.get("stages", ()))
                    if found.get("init_from"):  # results have the preset of the run in that folder
                        assert re.fullmatch(r"\w+:\w+", row["changed"]["init_from"]), row["name"]
                        found["init_from"] = row["changed"]["init_from"]
                    assert row.get("changed", {}) == found, row["name"]
    assert asked


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_papers_row_asks_for_a_stage_that_results_can_have(experiment):
    """Results name a stage only if it is not the preset's last one."""
    earlier = {}  # preset -> its stages but the last
    for table in json.loads((ROOT / "experiments" / experiment / "paper.json").read_text()):
        for row in table["rows"]:
            for match in row.get("match", []):
                evaluated = re.search(r"ssljax evaluate --config configs/(\w+)\.py", row.get("command", ""))
                paper = row.get("from", evaluated[1] if evaluated else experiment)
                asked = (paper, match.get("preset", row.get("preset")))
                if "stage" in match and asked not in earlier:
                    config = importlib.import_module(f"configs.{asked[0]}").get_config(asked[1])
                    earlier[asked] = config.stages[:-1]
                assert match.get("stage", "") in ("", *earlier.get(asked, ())), row["name"]


# --------------------------------------------------------------------------------------- the table of methods


def test_the_readmes_table_of_methods_is_the_one_of_the_results():
    """And one line of it by hand: SimCLR's kNN on the digits over three seeds, and the paper's 69.3."""
    table = overview(ROOT / "experiments")
    assert page.markdown([table], ours=True).strip() in (ROOT / "README.md").read_text()
    (line,) = [row for row in table.content if row[0].startswith("[SimCLR]")]
    rows = results.read(ROOT / "experiments/simclr/results.jsonl")
    wanted = {"preset": "digits", "features": "simclr", "protocol": "knn", "metric": "top1", "changed": {}}
    last = {row["seed"]: row["value"] for row in rows if all(row[key] == wanted[key] for key in wanted)}
    values = np.array([last[seed] for seed in (0, 1, 2)])
    assert line[1] == f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
    assert line[4:6] == ["69.3", "not run"]


def test_a_headline_that_is_in_no_paper_is_refused(tmp_path):
    (tmp_path / "methods.json").write_text(
        json.dumps(
            [
                {
                    "name": "SimCLR",
                    "read": "",
                    "experiment": "simclr",
                    "features": "simclr",
                    "preset": "digits",
                    "headline": {"table": "linear_imagenet", "row": "SimCLRR", "column": "top-1 %"},
                }
            ]
        )
    )
    (tmp_path / "simclr").symlink_to(ROOT / "experiments" / "simclr")
    (tmp_path.parent / "README.md").write_text(f"{page.BEGIN}\n{page.END}\n")
    with pytest.raises(SystemExit, match="no table 'linear_imagenet' with a row 'SimCLRR'"):
        report.main([str(tmp_path)])
