"""The figures of a paper's table: what is plotted, from results by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from ssljax import report
from ssljax.pictures import page, scaling
from tests.test_report import line, write

SMALL, BIG = 78_032, 312_000


def match(preset):
    return {"preset": preset, "protocol": "classifier", "metric": "top1"}


NETWORKS = {
    "id": "networks",
    "title": "Networks",
    "columns": ["10 %", "1 %", "linear"],
    "source": "the paper",
    "note": "A note.",
    "figure": {"kind": "labels", "labels": {"1 %": 1, "10 %": 10}},
    "rows": [
        {
            "name": "**big**",
            "parameters": 94,
            "paper": [74.0, 66.0, 76.0],
            "match": [match("big_10"), match("big_1")],
        },
        {
            "name": "small",
            "parameters": 24,
            "paper": [68.0, 58.0, None],
            "match": [match("small_10"), match("small_1"), {**match("small"), "protocol": "probe"}],
        },
    ],
}
STUDENTS = {
    "id": "students",
    "title": "Students",
    "columns": ["1 %"],
    "source": "the paper",
    "note": "A note.",
    "figure": {"kind": "parameters"},
    "rows": [
        {
            "name": "big",
            "series": "fine-tuned",
            "parameters": 94,
            "paper": [66.0],
            "match": [match("big_1")],
        },
        {
            "name": "small",
            "series": "fine-tuned",
            "parameters": 24,
            "paper": [58.0],
            "match": [match("small_1")],
        },
        {
            "name": "student",
            "series": "distilled",
            "parameters": 24,
            "paper": [73.0],
            "match": [match("student_1")],
        },
    ],
}
PROBE = dict(
    layer="",
    learning_rate=0.1,
    scaling="none",
    test_crops=1,
    crop="tf",
    recipe="simclr_v2",
    optimizer="sgd",
    epochs=1,
    batch_size=8,
)


def measurement(preset, value, **changes):
    return line(preset=preset, config_hash=preset, protocol="classifier", value=value, **changes)


ROWS = [
    measurement("small_1", 50.0, parameters=SMALL, seed=0),
    measurement("small_1", 54.0, parameters=SMALL, seed=1),
    measurement("small_10", 70.0, parameters=SMALL),
    measurement("big_1", 60.0, parameters=BIG, seed=0),
    measurement("big_1", 66.0, parameters=BIG, seed=1),
    measurement("big_1", 63.0, parameters=BIG, seed=2),
    measurement("big_10", 75.0, parameters=BIG),
    measurement("student_1", 58.0, parameters=SMALL),
    {**measurement("small", 61.0, parameters=SMALL), "protocol": "probe", "settings": PROBE},
]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A function: (tables, rows) -> the figures by the name of their file, and the text of the report."""
    figures = {}

    def save(figure, path):
        figures[path.name] = figure

    def make(tables, rows=ROWS):
        monkeypatch.setattr(scaling, "save", save)
        monkeypatch.setattr(report, "page", lambda *args: "")  # which would read the pictures
        (tmp_path / "paper.json").write_text(json.dumps(tables))
        write(tmp_path, rows)
        report.report(tmp_path)
        return figures, (tmp_path / "report.md").read_text()

    return make


def lines(axis):
    """The lines of a panel, without bars: [(x, y, linestyle, whether it is hollow)]."""
    return [
        (*np.round(one.get_xydata(), 6).T.tolist(), one.get_linestyle(), one.get_markerfacecolor() == "white")
        for one in axis.lines
        if one.get_marker() not in ("_", "None")
    ]


def bars(axis):
    """The vertical bars of a panel: [(x, low, high)]."""
    found = []
    for container in axis.containers:
        for (x, low), (_, high) in container[2][0].get_segments():
            found.append((round(x, 6), round(low, 4), round(high, 4)))
    return found


def names(axis):
    return [text.get_text() for text in axis.texts]


def test_accuracy_against_labels_is_the_mean_of_the_seeds_at_the_logarithm_of_the_labels(drawn):
    """From the smallest network to the largest, and from few labels to many, whatever the table's order."""
    figures, text = drawn([NETWORKS])
    here, paper = figures["figure-networks.png"].axes
    assert lines(here) == [
        ([0.0, 1.0], [52.0, 70.0], "-", False),
        ([2.0], [61.0], "None", False),
        ([0.0, 1.0], [63.0, 75.0], "-", False),
    ]
    assert bars(here) == [
        (0.0, round(52 - 8**0.5, 4), round(52 + 8**0.5, 4)),  # of 50 and 54
        (0.0, 60.0, 66.0),  # of 60, 66 and 63
    ]
    assert sorted(names(here)) == ["big", "small"]
    assert lines(paper) == [
        ([0.0, 1.0], [58.0, 68.0], "--", True),
        ([0.0, 1.0], [66.0, 74.0], "--", True),
        ([2.0], [76.0], "None", True),
    ]
    assert bars(paper) == []
    ticks = {label.get_position()[0]: label.get_text() for label in here.get_xticklabels()}
    assert ticks == {0.0: "1 %", 1.0: "10 %", 2.0: "linear"}
    assert here.get_xlabel() == "labels used" and here.get_ylabel() == "accuracy, %"
    colours = [{text.get_text(): text.get_color() for text in axis.texts} for axis in (here, paper)]
    assert colours[0] == colours[1] and len(set(colours[0].values())) == 2
    assert "](figure-networks.png)" in text and "Hollow: the numbers of the paper." in text


def test_accuracy_against_parameters_joins_the_networks_of_a_series_by_their_size(drawn):
    figures, _ = drawn([STUDENTS])
    here, paper = figures["figure-students.png"].axes
    assert lines(here) == [
        ([SMALL / 1e6, BIG / 1e6], [52.0, 63.0], "-", False),
        ([SMALL / 1e6], [58.0], "-", False),
    ]
    assert lines(paper) == [([24.0, 94.0], [58.0, 66.0], "--", True), ([24.0], [73.0], "--", True)]
    assert sorted(names(here)) == sorted(names(paper)) == ["distilled", "fine-tuned"]
    assert here.get_xscale() == paper.get_xscale() == "log"
    assert here.get_xlabel() == "parameters of the backbone, millions"
    assert (here.get_title(loc="left"), paper.get_title(loc="left")) == ("here: 1 %", "the paper: 1 %")


def test_a_figure_waits_for_its_first_result_and_then_shows_what_there_is(drawn):
    figures, text = drawn([NETWORKS, STUDENTS], [measurement("another", 1.0)])
    assert not figures and "figure-" not in text
    figures, _ = drawn([NETWORKS, STUDENTS], [measurement("big_10", 75.0, parameters=BIG)])
    assert list(figures) == ["figure-networks.png"]
    here, paper = figures["figure-networks.png"].axes
    assert lines(here) == [([1.0], [75.0], "-", False)] and names(here) == ["big"]
    assert len(lines(paper)) == 3


@pytest.mark.parametrize("table", [NETWORKS, STUDENTS])
def test_a_table_of_our_own_shows_the_papers_numbers_beside(drawn, table):
    """Of networks with other names and sizes, in panels of their own."""
    rows = [{k: v for k, v in row.items() if k not in ("paper", "parameters")} for row in table["rows"]]
    figure = {**table["figure"], "beside": table["id"]}
    ours = {**table, "id": "ours", "ours": True, "rows": rows, "figure": figure}
    alone = {**ours, "id": "alone", "figure": table["figure"]}
    figures, text = drawn([ours, alone, table])
    here, paper = figures["figure-ours.png"].axes
    (only,) = figures["figure-alone.png"].axes
    first, second = figures[f"figure-{table['id']}.png"].axes
    assert lines(here) == lines(only) == lines(first)
    assert lines(paper) == lines(second)
    assert text.count("Hollow: the numbers of the paper.") == 2


def test_a_network_whose_size_was_not_recorded_is_named_and_not_drawn(drawn):
    rows = [measurement("small_1", 50.0), measurement("big_1", 60.0, parameters=BIG)]
    figures, text = drawn([STUDENTS], rows)
    here, _ = figures["figure-students.png"].axes
    assert lines(here) == [([BIG / 1e6], [60.0], "-", False)]
    assert "Not drawn, for their sizes were not recorded: small." in text


def test_many_curves_have_shades_by_size_and_names_that_do_not_overlap(drawn):
    sizes = (43, 24, 795, 94, 140, 58, 233)
    rows = [
        {"name": f"{m} M", "parameters": m, "paper": [50 + m / 100, None, None], "match": [match(f"n{m}")]}
        for m in sizes
    ]
    found = [measurement(f"n{m}", 60 + m / 1000, parameters=m * 10**6) for m in sizes]
    figures, _ = drawn([{**NETWORKS, "rows": rows}], found)
    for axis in figures["figure-networks.png"].axes:
        assert names(axis) == [f"{m} M" for m in sorted(sizes)]
        heights = [text.xy[1] for text in axis.texts]
        low, high = axis.get_ylim()
        assert np.diff(heights).min() > 0.03 * (high - low) and max(heights) <= high + 1e-6
        assert len({text.get_color() for text in axis.texts}) == len(sizes)


@pytest.mark.parametrize(
    "figure, message",
    [
        ({"kind": "label"}, "kind must be one of labels, parameters"),
        ({"kind": "labels", "labels": {"2 %": 2}}, "labels must name columns of the table"),
        ({"kind": "parameters"}, "each row must have a series"),
        ({"kind": "labels", "labels": {"1 %": 1}, "beside": "x"}, "beside must be the id of another table"),
    ],
)
def test_a_figure_that_cannot_be_drawn_says_what_is_wrong(drawn, figure, message):
    with pytest.raises(ValueError, match=rf"the figure of table 'networks' is .*, but {message}"):
        drawn([{**NETWORKS, "figure": figure}])


def test_the_pictures_are_written_and_are_in_the_page(tmp_path, capsys):
    (tmp_path / "paper.json").write_text(json.dumps([NETWORKS, STUDENTS]))
    (tmp_path / "README.md").write_text(f"{page.BEGIN}\n{page.END}\n")
    write(tmp_path, ROWS)
    report.main([str(tmp_path)])
    printed = capsys.readouterr().out
    for name in ("figure-networks.png", "figure-students.png"):
        assert Image.open(tmp_path / name).width > 1000
        assert f"]({name})" in (tmp_path / "README.md").read_text()
        assert str(tmp_path / name) in printed
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 2
