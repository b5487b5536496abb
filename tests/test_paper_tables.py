"""The papers' tables in experiments/*/paper.json: their rows, their numbers and what fills them."""

import importlib
import json
import re
from pathlib import Path

import pytest

from ssljax.data.transfer import SETS

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(path.parent.name for path in ROOT.glob("experiments/*/paper.json"))


def tables(experiment):
    return json.loads((ROOT / "experiments" / experiment / "paper.json").read_text())


def row_of(experiment, table, name):
    """(the table, its one row whose name has this text)."""
    (found,) = [t for t in tables(experiment) if t["id"] == table]
    (row,) = [row for row in found["rows"] if name in row["name"]]
    return found, row


# Experiment, table, row, numbers of the paper, and the preset that fills the row; "" if it is not run.
ROWS = [
    ("moco", "vit", "ViT-L/16", [77.6], "imagenet_vit_l_v3_linear"),
    ("moco", "vit", "ViT-H/14", [78.1], "imagenet_vit_h_v3_linear"),
    ("moco", "vit_finetuned", "ViT-S/16", [81.4], "imagenet_vit_s_v3_finetune_100pct"),
    ("moco", "vit_finetuned", "ViT-B/16", [83.2], "imagenet_vit_b_v3_finetune_100pct"),
    ("moco", "linear_imagenet", "ResNet-50 2x", [65.4], "imagenet_r50_v1_x2_linear"),
    ("moco", "linear_imagenet", "ResNet-50 4x", [68.6], "imagenet_r50_v1_x4_linear"),
    ("byol", "finetuned", "BYOL, ResNet-50", [77.7, 93.9], "imagenet_r50_finetune_100pct"),
    ("deepcluster", "places", "DeepCluster", [19.6, 33.2, 39.2, 39.8, 34.7], ""),
    ("deepcluster", "v2", "800 epochs, 2 x 224 + 6 x 96", [75.2], "imagenet_r50_v2_linear"),
    ("deepcluster", "v2", "400 epochs, 2 x 160 + 4 x 96", [74.3], "imagenet_r50_v2_e400_multicrop_linear"),
    ("deepcluster", "retrieval", "Wang et al.", [None, None], ""),
    ("deepcluster", "retrieval", "DeepCluster", [61.0, 72.0], "imagenet_vgg16"),
    ("moco", "voc", "random init.", [60.2, 33.8, 33.1], "voc_random"),
    ("moco", "voc", "supervised, IN-1M", [81.3, 53.5, 58.8], "voc_supervised"),
    ("moco", "voc", "MoCo v1, IN-1M", [81.5, 55.9, 62.6], "voc_v1"),
    ("moco", "voc", "MoCo v1, IG-1B", [82.2, 57.2, 63.7], ""),
    ("moco", "voc", "MoCo v2, 800 epochs", [82.5, 57.4, 64.0], "voc_v2_e800"),
]


@pytest.mark.parametrize(
    "experiment, table, name, paper, preset",
    ROWS,
    ids=[f"{row[1]}-{row[2].replace(' ', '_')}" for row in ROWS],
)
def test_a_row_has_the_papers_numbers_and_the_preset_that_fills_it(experiment, table, name, paper, preset):
    found, row = row_of(experiment, table, name)
    assert row["paper"] == paper
    assert row.get("preset", "") == preset
    assert bool(preset) == ("command" in row)
    assert preset or "Not run" in found["note"]


def test_the_retrieval_table_says_that_the_lectures_row_is_another_tables():
    note = row_of("deepcluster", "retrieval", "Wang et al.")[0]["note"]
    assert "its row of DeepCluster (55.4, 65.9) is that of the table of detection" in note


@pytest.mark.parametrize(
    "name, network", [("DeepCluster", "imagenet_alexnet"), ("DeepCluster on colours", "imagenet_alexnet_rgb")]
)
def test_every_layer_of_alexnet_is_filled_by_the_papers_own_probe(name, network):
    (found,) = [t for t in tables("deepcluster") if t["id"] == "layers"]
    (row,) = [row for row in found["rows"] if row["name"] == name]
    for column, match in zip(found["columns"], row["match"], strict=True):
        assert (match["protocol"], match["preset"]) == ("probe", f"{network}_linear_{column}")
    (random,) = [row for row in found["rows"] if row["name"] == "a random network"]
    assert random["changed"] == {"init_from": ""}


def test_the_lectures_tables_of_transfer_have_a_protocol_per_column():
    """SimCLR's, BYOL's, MoCo's and DeepCluster's."""
    for experiment, table, text in (
        ("simclr", "transfer_linear", ""),
        ("simclr", "transfer_finetuned", ""),
        ("simclr", "transfer_r50", ""),
        ("byol", "transfer", "(linear)"),
        ("byol", "transfer", "(fine-tuned)"),
    ):
        rows = next(t for t in tables(experiment) if t["id"] == table)["rows"]
        found = [row for row in rows if text in row["name"]]
        for row in found:
            kind = "finetuned" if "uned" in row["name"] or table == "transfer_finetuned" else "transfer"
            metrics = {match["protocol"]: match["metric"] for match in row["match"]}
            assert metrics == {f"{kind}_{name}": data.metric for name, data in SETS.items()}, row["name"]
            multilabel = {match["protocol"] for match in row["match"] if match["features"] == "multilabel"}
            assert multilabel == ({"finetuned_voc2007"} if kind == "finetuned" else set())
    _, row = row_of("deepcluster", "voc", "DeepCluster, ImageNet")
    measured = [(match["protocol"], match["metric"], match["preset"]) for match in row["match"]]
    assert measured[:2] == [("finetuned_voc2007", "map_step", f"voc_alexnet_{p}") for p in ("fc6_8", "all")]
    assert measured[2:4] == [("detection", "AP50", f"boxes_alexnet_{p}") for p in ("fc6_8", "all")]
    assert measured[4:] == [("segmentation", "mIoU", f"masks_alexnet_{p}") for p in ("fc6_8", "all")]


def test_deepclusters_detectors_say_that_their_regions_are_not_the_papers():
    table, row = row_of("deepcluster", "detection", "**DeepCluster**")
    assert row["paper"] == [55.4, 65.9]
    assert [match["preset"] for match in row["match"]] == ["boxes_alexnet_all", "boxes_vgg16_all"]
    for note in (table["note"], row_of("deepcluster", "voc", "DeepCluster, ImageNet")[0]["note"]):
        assert "proposals of an RPN" in note and "selective search are not reproduced" in note
        assert "Not run" in note


def commands(text):
    """The commands of a row, one for each turn of its loop, as lists of words."""
    loop = re.fullmatch(r"for (\w+) in ([^;]*); do (.*); done", text)
    turns = [loop[3].replace(f"${{{loop[1]}}}", value) for value in loop[2].split()] if loop else [text]
    return [part.split() for turn in turns for part in re.split(r"&&|;", turn)]


def flag(words, name):
    """The value of a flag among the words of a command; "" without it."""
    return words[words.index(name) + 1] if name in words else ""


def measured_by(command):
    """(preset, stage) under which the evaluations of a command file their results, as `match` has them."""
    found = set()
    for words in commands(command):
        renamed = [word.partition("=")[2] for word in words if re.match(r"--config\.(\w+\.)?preset=", word)]
        named = re.fullmatch(r"configs/(\w+)\.py:(\S+)", flag(words, "--config"))
        if words[:2] == ["ssljax", "finetune"]:
            found.add((*renamed, ""))
        if words[:2] == ["ssljax", "evaluate"] and named:
            stage = flag(words, "--stage")
            if stage:
                *_, last = importlib.import_module(f"configs.{named[1]}").get_config(named[2]).stages
                stage = "" if stage == last else stage
            found.add((renamed[0] if renamed else named[2], stage))
    return found


# Columns of a paper's table that no command measures.
QUOTED = {
    ("beit", "ablations"): ["ADE20K"],
    ("beit", "networks"): ["ADE20K"],
    ("noisy_student", "networks"): ["student of L2", "its weights in timm", "its ImageNet-A in timm"],
    ("simclr_v2", "networks"): ["supervised"],
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_row_is_filled_by_the_presets_that_its_command_evaluates(experiment):
    """Otherwise the command would be run, and the row would stay empty."""
    for table in tables(experiment):
        for row in table["rows"]:
            assert len(row.get("match", table["columns"])) <= len(table["columns"]), row["name"]
            assert len(row.get("paper", table["columns"])) == len(table["columns"]), row["name"]
            if "command" not in row:
                continue
            empty = table["columns"][len(row["match"]) :]
            assert table.get("ours", False) or empty == QUOTED.get((experiment, table["id"]), []), row["name"]
            plain = {"preset": row.get("preset"), "stage": ""}
            asked = {({**plain, **match}["preset"], {**plain, **match}["stage"]) for match in row["match"]}
            made = measured_by(row["command"])
            assert asked and asked <= made, (row["name"], asked - made, made)


def test_no_two_settings_are_trained_in_one_folder():
    """`ssljax train` would refuse the second. A bucket is that of all pages, runs/ that of one."""
    trained = {}
    for experiment in EXPERIMENTS:
        for row in (row for table in tables(experiment) for row in table["rows"]):
            for words in commands(row.get("command", "")):
                folder = flag(words, "--workdir")
                if words[:2] == ["ssljax", "train"]:
                    page = "" if folder.startswith("gs://") else experiment
                    said = {word for word in words if word.startswith("--config.")}
                    given = (flag(words, "--config"), flag(words, "--stage"), said)
                    assert trained.setdefault((page, folder), given) == given, (row["name"], folder)


# ------------------------------------------------------------------------------------------------- SimCLRv2

# Network -> parameters of the backbone, and the repository's numbers of some.
COUNTS = {
    "imagenet_r50": 23_508_032,
    "imagenet_r50_sk": 35_215_584,
    "imagenet_r50_x2": 93_907_072,
    "imagenet_r50_x2_sk": 140_306_048,
    "imagenet_r101": 42_500_160,
    "imagenet_r101_sk": 64_662_304,
    "imagenet_r101_x2": 169_771_136,
    "imagenet_r152": 58_143_808,
    "imagenet_r152_sk": 88_940_896,
    "imagenet_r152_x2_sk": 353_398_528,
    "imagenet_r152_x3_sk": 794_704_160,
}
PUBLISHED = {
    "imagenet_r50": [57.9, 68.4, 76.3, 71.7, 76.6],
    "imagenet_r50_sk": [64.5, 72.1, 78.7, 74.6, 78.5],
    "imagenet_r101_x2": [69.1, 75.8, 80.7, 77.0, 78.9],
    "imagenet_r152_x3_sk": [74.9, 80.1, 83.1, 79.8, 80.5],
}


def network_rows():
    """SimCLRv2's thirteen networks -> their rows."""
    (found,) = [t for t in tables("simclr_v2") if t["id"] == "networks"]
    assert found["columns"] == ["1 %", "10 %", "100 %", "linear", "supervised"]
    return {row["match"][0]["preset"].removesuffix("_1pct"): row for row in found["rows"]}


def test_simclr_v2s_networks_have_their_sizes_and_a_preset_per_column():
    rows = network_rows()
    assert len(rows) == 13 and COUNTS.keys() < rows.keys()
    for network, count in COUNTS.items():
        assert abs(rows[network]["parameters"] - count / 1e6) < 0.7, network
    for network, row in rows.items():
        assert row["paper"] == PUBLISHED.get(network, row["paper"])
        assert [match["preset"] for match in row["match"]] == [
            f"{network}_{ending}" for ending in ("1pct", "10pct", "100pct", "linear")
        ]
        assert [match["protocol"] for match in row["match"]] == ["classifier"] * 3 + ["probe"]
        depth = network.split("_")[1].removeprefix("r")
        assert row["name"].startswith(f"ResNet-{depth}")
        assert ("SK" in row["name"]) == network.endswith("_sk")
        assert sorted(row["paper"][:3]) == row["paper"][:3], "more labels are better"


def test_simclr_v2s_students_are_the_networks_of_its_table_and_what_is_recalled_says_so():
    (found,) = [t for t in tables("simclr_v2") if t["id"] == "distillation"]
    networks = network_rows()
    for row in found["rows"]:
        one, ten = (match["preset"] for match in row["match"])
        how = {"fine-tuned": "", "self-distilled": "_self", "distilled": "_distilled"}[row["series"]]
        network = one.removesuffix(f"{how}_1pct")
        assert ten == f"{network}{how}_10pct"
        assert row["parameters"] == networks[network]["parameters"]
        if row["series"] == "fine-tuned":
            assert row["paper"] == networks[network]["paper"][:2]
    recalled = [row["paper"] for row in found["rows"] if "from memory" in row["name"]]
    assert recalled == [[76.6, 80.9], [75.9, 80.2]]
    assert row_of("simclr_v2", "distillation", "**ResNet-50, distilled")[1]["paper"] == [73.9, 77.5]
    assert "All numbers are from memory" in row_of("simclr_v2", "student_loss", "labels alone")[0]["note"]
    assert row_of("simclr_v2", "memory", "**with memory**")[1]["paper"] == [71.7]
