"""`ssljax sweep`: the combinations, the names of their folders, and real runs of which one fails."""

import pytest

from ssljax import results, sweep
from tests import processes


@pytest.mark.parametrize(
    "text, parts",
    [
        ("0,1,2", ["0", "1", "2"]),
        ("0.1", ["0.1"]),
        ("(1,2),(5,10)", ["(1,2)", "(5,10)"]),
        ("[(1,2),3],4", ["[(1,2),3]", "4"]),
        ("'folder:a,b',digits", ["'folder:a,b'", "digits"]),
        ("a, b", ["a", "b"]),
        ("", [""]),
    ],
)
def test_commas_part_values_except_in_brackets_and_quotes(text, parts):
    assert sweep.values(text) == parts


@pytest.mark.parametrize("text", ["(1,2", "'a,b"])
def test_an_open_bracket_or_quote_is_named(text):
    with pytest.raises(ValueError, match="that ends it is missing"):
        sweep.values(text)


@pytest.mark.parametrize(
    "value, read",
    [("(1,2)", "(1,2)"), ("(knn,linear)", "knn,linear"), ("'folder:a,b'", "folder:a,b"), ("0.1", "0.1")],
)
def test_what_kept_a_value_together_is_taken_off_where_it_means_nothing(value, read):
    assert sweep.plain(value) == read


def test_all_combinations_with_the_last_setting_fastest():
    words = ["--config.seed=0,1", "--config.optim.learning_rate", "0.1,0.3", "--config.checkpoint.digest"]
    runs = sweep.combinations("simclr:digits", [*words, "--config.epochs=2", "--noconfig.augment.flip"])
    assert [run.name for run in runs] == [
        "seed=0,learning_rate=0.1",
        "seed=0,learning_rate=0.3",
        "seed=1,learning_rate=0.1",
        "seed=1,learning_rate=0.3",
    ]
    assert runs[1].words == [
        *("--config", "simclr:digits", "--config.seed=0", "--config.optim.learning_rate=0.3"),
        *("--config.epochs=2", "--config.checkpoint.digest", "--noconfig.augment.flip"),
    ]


def test_names_of_folders_are_short_safe_and_different():
    runs = sweep.combinations("simclr:digits,moco:digits", ["--config.data.source=folder:/a/b,folder:/a_b"])
    names = [run.name for run in runs]
    assert len(set(names)) == 4 and not any("/" in name or ":" in name for name in names)
    assert names[0].startswith("config=simclr_digits-") and ",source=folder_a_b-" in names[0].replace(
        "__", "_"
    )
    runs = sweep.combinations(
        "noisy_student:digits", ["--config.teacher.seed=0,1", "--config.student.seed=2,3"]
    )
    assert runs[0].name == "teacher.seed=0,student.seed=2"


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "no setting has several values: write e.g. --config.seed=0,1,2"),
        (["--config.seed=0,0"], "seed=0 is asked for twice"),
        (["--seed=0,1"], "--seed=0,1 is no flag"),
    ],
)
def test_what_is_no_sweep_is_answered(words, message):
    with pytest.raises(ValueError, match=message):
        sweep.combinations("simclr:digits", words)


def test_the_script_for_slurm_has_one_task_per_run(tmp_path, capsys):
    words = ["--config=simclr:digits", "--config.seed=0,1", f"--workdir={tmp_path}/s", "--protocols=knn"]
    sweep.main([*words, "--slurm"])
    script = capsys.readouterr().out.splitlines()
    assert "#SBATCH --array=0-1" in script
    folder = f"{tmp_path}/s/seed=1"
    assert script[-3] == (
        f"1) ssljax train --config simclr:digits --config.seed=1 --workdir {folder} && "
        f"ssljax evaluate --workdir {folder} --protocols=knn ;;"
    )
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_are_trained_judged_and_compared_once(tmp_path):
    workdir = tmp_path / "s"
    words = [*processes.SMALL, "--config.epochs=1", "--config.checkpoint.best=,nothing", "--protocols=knn"]
    code, said = processes.run("sweep", *words, f"--workdir={workdir}", cache=tmp_path / "xla")
    assert code == 1
    assert "[1/2] best=: done in " in said
    assert "[2/2] best=nothing: FAILED, train with exit code 1: ssljax train: config.checkpoint.best" in said
    assert "ssljax sweep: 1 of 2 runs failed: best=nothing" in said
    rows = results.read(workdir / "results.jsonl")
    assert {row["protocol"] for row in rows} == {"knn"}
    assert f"| {rows[0]['value']:.1f} |" in said  # the comparison
    assert (workdir / "best=" / "train.log").read_text().count("done: ") == 1

    again, said = processes.run("sweep", *words, f"--workdir={workdir}", cache=tmp_path / "xla")
    assert again == 1 and results.read(workdir / "results.jsonl") == rows
