"""The report: aggregation by hand, tables, the README's part, one self-contained page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs.simclr import PRESETS
from ssljax import report
from ssljax.pictures import figures, gallery


def line(**changes):
    row = dict(experiment="simclr", preset="digits", protocol="knn", features="simclr", metric="top1", value=50.0, n=297, settings={},
               labels_per_class=0, draw=0, seed=0, step=10, epochs=2, data="digits", train_images=1500, data_checksum="d1",
               config_hash="c1", commit="abc", versions={"jax": "1", "flax": "2"}, seconds=0.1, time="t",
               command="ssljax evaluate --config configs/simclr.py:digits")
    return {**row, **changes}


def write(folder, rows):
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "results.jsonl"


def test_mean_and_sample_deviation_by_hand():
    rows = [line(value=v) for v in (80.0, 82.0, 87.0)]
    mean, std, n = report.aggregate(rows)
    assert (mean, n) == (83.0, 3)
    assert std == pytest.approx(np.sqrt((9 + 1 + 16) / 2))
    assert report.cell(rows) == "83.0 ± 3.6"
    assert report.cell(rows[:1]) == "80.0"
    assert report.cell([]) == "–"


def test_of_the_same_measurement_the_last_counts_and_pixels_have_no_seed(tmp_path):
    rows = report.load(write(tmp_path, [line(value=1.0), line(value=2.0, seed=1), line(value=3.0),
                                        line(value=4.0, features="raw_pixels"), line(value=4.0, features="raw_pixels", seed=1)]))
    assert sorted((r["features"], r["value"]) for r in rows) == [("raw_pixels", 4.0), ("simclr", 2.0), ("simclr", 3.0)]


def test_only_the_newest_config_of_a_preset_is_shown_and_other_budgets_have_their_own_table():
    old, new, longer = line(config_hash="old", value=10.0), line(config_hash="new", value=20.0), line(config_hash="x", epochs=9, value=30.0)
    found = report.groups([old, new, longer])
    assert [(g.slug, [r["value"] for r in g.rows]) for g in found] == [("digits-2ep-1500", [20.0]), ("digits-9ep-1500", [30.0])]
    assert report.groups([old])[0].slug == "digits"


def test_main_table_by_hand():
    rows = [line(value=90.0), line(value=92.0, seed=1), line(metric="top5", value=99.0), line(protocol="linear_lbfgs", value=95.0),
            line(features="raw_pixels", value=70.0)]
    rows += [line(protocol="label_fraction", labels_per_class=k, draw=d, value=50.0 + k + d) for k in (10, 1) for d in (0, 2)]
    rows += [line(protocol="label_fraction", labels_per_class=1, features="supervised", value=40.0)]
    assert report.main_table(rows) == [
        ["held-out top-1, %", "kNN", "linear", "1 label a class", "10 labels a class"],
        ["raw pixels", "70.0", "–", "–", "–"],
        ["labels alone", "–", "–", "40.0", "–"],
        ["SimCLR", "91.0 ± 1.4", "95.0", "52.0 ± 1.4", "61.0 ± 1.4"]]


def test_paper_tables_show_paper_and_here_or_the_command():
    match = dict(protocol="linear_sgd_cached", features="simclr", metric="top1", labels_per_class=0)
    table = dict(id="t", title="T", source="S", columns=["top-1 %"], note="", rows=[
        dict(name="ours", paper=[69.3], preset="r50", match=[match], command="run r50"),
        dict(name="ours too", paper=[76.5], preset="r50_x4", match=[match], command="run x4"),
        dict(name="theirs", paper=[None])])
    rows = [line(preset="r50", protocol="linear_sgd_cached", value=68.9)]
    _, _, body, commands = report.paper_blocks([table], rows, Path())
    assert body.content == [["", "top-1 %, paper", "here", "how"], ["ours", "69.3", "68.9", "[1]"],
                            ["ours too", "76.5", "–", "needs a TPU: [2]"], ["theirs", "–", "–", "quoted"]]
    assert commands.content == ["[1] run r50", "[2] run x4"]


def test_our_own_tables_compare_runs_made_here_and_elsewhere(tmp_path):
    (tmp_path / "moco").mkdir(), (tmp_path / "simclr").mkdir()
    write(tmp_path / "simclr", [line(value=81.0), line(value=83.0, seed=1)])
    knn = dict(protocol="knn", metric="top1")
    table = dict(id="t", title="T", columns=["kNN", "NMI"], note="Beside each other.", ours=True, rows=[
        {"name": "SimCLR", "from": "simclr", "preset": "digits", "match": [{**knn, "features": "simclr"}]},
        {"name": "MoCo", "preset": "digits", "command": "a",
         "match": [{**knn, "features": "moco"}, dict(protocol="clusters", metric="nmi")]},
        {"name": "later", "preset": "later", "match": [knn], "command": "b"},
        {"name": "by its other head", "preset": "digits", "match": [dict(protocol="head", metric="top1")], "command": "a"}])
    rows = [line(features="moco", value=70.0), line(features="moco", protocol="clusters", metric="nmi", value=55.0),
            line(features="moco", protocol="head", value=60.0)]
    _, text, body, commands = report.paper_blocks([table], rows, tmp_path / "moco")
    assert text.content == "Beside each other." and commands.content == ["[1] a", "[2] b"]
    assert body.content == [["", "kNN", "NMI", "how"], ["SimCLR", "82.0 ± 1.4", "–", "quoted"], ["MoCo", "70.0", "55.0", "[1]"],
                            ["later", "–", "–", "not run: [2]"], ["by its other head", "60.0", "–", "[1]"]]


def test_layers_and_clusters_have_columns():
    rows = [line(protocol="layer_conv1", value=30.0), line(protocol="layer_conv2", value=40.0), line(value=90.0),
            line(protocol="layer_conv2", value=20.0, features="random_init"), line(protocol="clusters", metric="nmi", value=60.0)]
    assert report.main_table(rows) == [["held-out top-1, %", "kNN", "conv1", "conv2", "NMI of clusters with labels"],
                                       ["random network", "–", "–", "20.0", "–"], ["SimCLR", "90.0", "30.0", "40.0", "60.0"]]


def test_bad_results_are_named(tmp_path):
    with pytest.raises(SystemExit, match="no .*results.jsonl: run `ssljax evaluate"):
        report.main([str(tmp_path)])
    write(tmp_path, []).write_text("\n")
    with pytest.raises(SystemExit, match="is empty"):
        report.main([str(tmp_path)])
    write(tmp_path, [line()]).open("a").write('{"preset": "digits"}\n')
    with pytest.raises(SystemExit, match="results.jsonl, line 2 is no measurement"):
        report.main([str(tmp_path)])
    with pytest.raises(SystemExit, match="usage: ssljax report DIR"):
        report.main([])


def test_names_beside_lines_do_not_overlap_and_stay_in_order():
    found = figures.spread_out({"a": 50.0, "b": 50.5, "c": 90.0}, 4.0)
    assert found["b"] - found["a"] == pytest.approx(4.0, abs=1e-6) and found["c"] == 90.0
    assert (found["a"] + found["b"]) / 2 == pytest.approx(50.25)


@pytest.mark.parametrize("classes", [("cat", "dog"), ()])
def test_an_image_without_a_label_has_no_name_and_is_never_wrong(classes, tmp_path, monkeypatch):
    """-1 would be the last class. `classes` is empty where no image has a label."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
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
        return [axis.spines["left"].get_visible() for axis in figure.axes]
    assert [near.axes[i].get_ylabel() for i in (0, 4)] == (["", "cat"] if classes else ["", ""])
    assert framed(near) == [False] * 4 + ([False, False, True, False] if classes else [False] * 4)
    common = "cat\n" if classes else ""
    assert [sheet.axes[i].get_ylabel() for i in (0, 3)] == [f"{common}5 images", f"{common}3 images"]
    assert framed(sheet) == ([False, True, False] * 2 if classes else [False] * 6)
    assert [axis.get_title() for axis in looks.axes[:2]] == (["", "cat"] if classes else ["", ""])
    assert [text.get_text() for text in flat.axes[0].texts] == (["cat"] if classes else [])


def test_queries_are_of_labelled_images_where_there_are_any():
    assert gallery.queries_of(np.array([-1, 2, -1, 0, 2])).tolist() == [3, 1]
    assert gallery.queries_of(np.full(15, -1)).tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert gallery.queries_of(np.full(3, -1)).tolist() == [0, 1, 2]


def test_everything_is_written_and_the_page_needs_no_other_file(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [line(seed=s, value=80.0 + s) for s in (0, 1)]
    rows += [line(protocol="label_fraction", labels_per_class=k, draw=d, value=50.0 + k, features=f) for k in (1, 5) for d in (0, 1)
             for f in ("simclr", "raw_pixels")]
    write(tmp_path, rows)
    np.savez(tmp_path / "gallery-digits.npz", **{"points/simclr": rng.normal(size=(30, 8)), "points/raw_pixels": rng.normal(size=(30, 8))},
             kinds=np.array(["simclr", "raw_pixels"]), labels=np.arange(30) % 3, class_names=np.array(["a", "b", "c"]),
             query=rng.integers(0, 255, (2, 8, 8, 1), np.uint8), query_labels=np.array([0, 1]),
             neighbour=rng.integers(0, 255, (2, 3, 8, 8, 1), np.uint8), neighbour_labels=np.array([[0, 0, 1], [1, 1, 1]]),
             cluster=rng.integers(0, 255, (2, 3, 8, 8, 1), np.uint8), cluster_labels=np.array([[0, 0, 1], [2, 2, 2]]),
             cluster_size=np.array([9, 3]), preset="digits", seed=0)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"method": "simclr", "preset": "digits", "epochs": 2, "seed": 0}))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 2, "knn": 70.0}\n')
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "80.5 ± 0.7" in said and "report.html" in said
    pictures = [f"{stem}-digits.png" for stem in ("labels", "training", "features", "neighbours")]
    for picture in pictures:
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG") and picture in said
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n") and "old" not in readme
    assert "| SimCLR | 80.5 ± 0.7 | 51.0 ± 0.0 | 55.0 ± 0.0 |" in readme and "![" in readme
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and not re.search(r'(src|href)="(?!data:)', page)
    assert "<td>80.5 ± 0.7</td>" in page
    once = readme
    report.main([str(tmp_path)])
    assert (tmp_path / "README.md").read_text() == once


def test_a_readme_without_a_place_is_an_error(tmp_path):
    (tmp_path / "README.md").write_text("mine\n")
    with pytest.raises(ValueError, match="has no place for the report"):
        report.renew(tmp_path / "README.md", "text")
    assert (tmp_path / "README.md").read_text() == "mine\n"


def test_the_papers_tables_are_complete():
    """Every row of experiments/simclr/paper.json has as many numbers as columns; its own rows say how to run them."""
    tables = json.loads((Path(__file__).parent.parent / "experiments/simclr/paper.json").read_text())
    wanted = {"linear_imagenet", "semi_supervised", "transfer_linear", "transfer_finetuned", "epochs_batch", "cifar10"}
    assert {table["id"] for table in tables} >= wanted
    for table in tables:
        for row in table["rows"]:
            assert len(row["paper"]) == len(table["columns"]), row["name"]
            assert ("SimCLR" not in row["name"]) or "command" in row
            assert len(row.get("match", row["paper"])) == len(row["paper"])
    presets = set(re.findall(r"configs/simclr\.py:(\w+)", json.dumps(tables)))
    assert {p for p in presets if not p.startswith("imagenet_r50_e")} <= set(PRESETS)
