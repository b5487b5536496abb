"""The summary of a hand-written trace, and the trace of a real run."""

import json

import pytest

from ssljax import train
from ssljax.run.profile import Operation, idle, operations, summary
from tests.test_train import flags, small, xla_cache  # noqa: F401  (fixtures)

pytestmark = pytest.mark.slow


def test_operations_are_summed_by_kind_and_other_events_ignored():
    def event(name, dur, **args):
        return {"ph": "X", "name": name, "dur": dur, "args": args}

    trace = {
        "traceEvents": [
            event("a", 2e6, hlo_op="dot.1", hlo_module="m"),
            event("b", 1e6, hlo_op="dot.22"),
            event("c", 5e5, hlo_op="add"),
            event("python", 9e6),
            {"ph": "M", "name": "thread_name"},
        ]
    }
    found = operations(trace)
    assert found == [Operation("dot", 2, 3.0), Operation("add", 1, 0.5)]
    assert summary(found, 2).splitlines()[1].split() == ["1500.00", "85.7%", "1", "dot"]


def test_idle_time_is_what_no_operation_covers():
    def event(begin, end, **args):
        return {"ph": "X", "name": "a", "ts": begin, "dur": end - begin, "args": args}

    # Two streams that overlap until 6, nothing from 6 to 8, an operation until 10. The host's do not count.
    spans = [(8, 10), (0, 4), (2, 6), (3, 5)]
    events = [event(begin, end, hlo_op="dot") for begin, end in spans]
    assert idle({"traceEvents": [*events, event(0, 100)]}) == 0.2
    assert idle({"traceEvents": []}) == 0.0


def test_a_profiled_run_prints_where_its_time_went(tmp_path, capsys):
    train.main(flags(tmp_path, "--profile=3"))
    printed = capsys.readouterr().out
    assert "profile of 3 steps" in printed and "ms per step" in printed, printed
    assert "conv" in printed.split("ms per step")[1], printed
    assert "the device stood idle" in printed
    assert list((tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0.0 <= row["input_bound"] <= 1.0 for row in rows if "input_bound" in row)
    assert sum("input_bound" in row for row in rows) > 5
