"""How a verb ends: what it says, what it prints to, and that it waits for nothing.

`python -m benchmarks.faults terminal` does the same to real runs.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from configs import simclr
from ssljax import cli, models, process
from ssljax.data.quiet import without_notes
from ssljax.run import memory
from ssljax.run.loop import check_best

ROOT = Path(__file__).parent.parent


def short(value: object) -> str:
    """A test's id without blanks, which tests/mutations.py reads."""
    return re.sub(r"\W+", "_", str(value))[:30]


def shell(command: str) -> tuple[int, str, str]:
    """A command of bash, in which `config` is the verb of that name."""
    verb = (
        f'config() {{ "{sys.executable}" -m ssljax.config --config=simclr:digits "$@"; }}; set -o pipefail; '
    )
    done = subprocess.run(
        ["bash", "-c", verb + command], cwd=ROOT, text=True, capture_output=True, timeout=100
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "command, lines, errors",
    [
        ("config | head -1", 1, ""),
        ("config >&-", 0, ""),
        ("config >&- 2>&-", 0, ""),
        ("config >/dev/full", 0, "the output cannot be written (No space left on device), and ends here\n"),
        ("config >/dev/full 2>&1", 0, ""),
    ],
    ids=short,
)
def test_an_output_that_cannot_be_written_ends_nothing(command, lines, errors):
    code, output, said = shell(command)
    assert (code, output.count("\n"), said) == (0, lines, errors)


def test_a_wrong_setting_has_its_exit_code_with_all_outputs_closed():
    assert shell("config --config.epochs=x >&- 2>&-") == (1, "", "")


ENDS = """
import sys, threading, time
from ssljax import process

def main():
    threading.Thread(target=time.sleep, args=(45,)).start()
    {fails}

process.run(main)
"""


@pytest.mark.parametrize(
    "fails, code, last",
    [
        ("raise SystemExit('ssljax train: no')", 1, "ssljax train: no"),
        ("raise SystemExit(2)", 2, ""),
        ("raise KeyboardInterrupt", 130, "ssljax: interrupted"),
        ("raise KeyError('a bug')", 1, "KeyError: 'a bug'"),
    ],
    ids=short,
)
def test_an_error_ends_the_process_although_a_thread_is_at_work(fails, code, last):
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ENDS.format(fails=fails)], cwd=ROOT, text=True, capture_output=True
    )
    assert time.monotonic() - begin < 30, "it waited for the thread"
    assert (done.returncode, (done.stderr.splitlines() or [""])[-1]) == (code, last)


GLYPH = """
import sys, warnings
from matplotlib.figure import Figure
from ssljax import process

def main():
    Figure().suptitle("\u5e73").figure.savefig(sys.argv[1])
    warnings.warn("another")

process.run(main)
"""


def test_a_letter_that_the_font_lacks_is_no_news_and_other_warnings_are(tmp_path):
    command = [sys.executable, "-c", GLYPH, str(tmp_path / "a.png")]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert (tmp_path / "a.png").exists() and "Glyph" not in done.stderr
    assert "UserWarning: another" in done.stderr


@pytest.mark.parametrize(
    "error, message",
    [
        (
            PermissionError(13, "Permission denied", "runs/a"),
            "runs/a: Permission denied; change its permissions",
        ),
        (
            FileExistsError(17, "File exists", "runs/a"),
            "runs/a: File exists; a file is where a folder must be",
        ),
        (
            OSError(28, "No space left on device"),
            "a file: No space left on device; make room, and type the same",
        ),
        (FileNotFoundError("no run: train first"), "no run: train first"),
        (MemoryError(), "out of memory: close other programs"),
        (ValueError("too low"), "too low"),
    ],
    ids=short,
)
def test_an_error_of_the_system_says_what_to_do(error, message):
    with pytest.raises(SystemExit, match=f"ssljax train: {message}"), process.answered("train"):
        raise error


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError), process.answered("train"):
        raise KeyError("a bug")


@pytest.mark.parametrize(
    "message, gib",
    [
        ("INTERNAL: Error dispatching computation: Out of memory allocating 10060864448 bytes.", 9.4),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 77309411328 bytes.", 72.0),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.50GiB.", 12.5),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 24.51G of 15.75G hbm.", 24.5),
        ("RESOURCE_EXHAUSTED: Attempting to reserve 5.25G at the bottom of memory.", 5.2),
        ("RESOURCE_EXHAUSTED: no more", 0.0),
    ],
    ids=short,
)
def test_too_little_memory_is_explained(message, gib, monkeypatch):
    monkeypatch.setattr(memory, "limit", lambda: (8 * 2**30, "this machine has"))
    config = simclr.get_config("digits")
    with pytest.raises(MemoryError) as caught, memory.explained(config, verb="train", pieces=True):
        raise jax.errors.JaxRuntimeError(message)
    said = str(caught.value)
    assert "this machine has 8.0 GiB. Try --config.batch_size=" in said
    assert (f"{memory.wanted(message) / 2**30:.1f}", "were asked for" in said) == (f"{gib:.1f}", gib > 0)


def test_the_advice_fits_the_verb_and_the_memory(monkeypatch):
    monkeypatch.setattr(memory, "limit", lambda: (24 * 2**30, "this machine has"))
    config = simclr.get_config("digits").unlock()
    config.batch_size = 256
    config.data.image_size = 224
    advice = memory.smaller(config, "--config.pretrain.", 72 * 2**30, pieces=True)
    assert advice.startswith(
        "Try --config.pretrain.batch_size=32 or --config.pretrain.accumulate=8 (the same"
    )
    assert "accumulate" not in memory.smaller(config, "--config.", 72 * 2**30, pieces=False)
    for verb, words in (("evaluate", "Try --config.evaluate.batch_size=64"), ("embed", "`ssljax train`")):
        with pytest.raises(MemoryError, match=words), memory.explained(config, verb=verb):
            raise jax.errors.JaxRuntimeError("Out of memory allocating 9 bytes")
    with pytest.raises(jax.errors.JaxRuntimeError), memory.explained(config, verb="train"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_notes_are_held_back_and_all_else_is_passed_on(capfd):
    with without_notes():
        os.write(
            2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        )
        os.write(2, b"I0000 00:00:1795716.147  16310 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"another thread\n")
        os.write(2, b"E0000 00:00:1795716.147  16310 cuda.cc:1] an error\n")
    with pytest.raises(ImportError), without_notes():
        os.write(2, b"libcudart.so: cannot open\n")
        raise ImportError
    err = capfd.readouterr().err.splitlines()
    assert err == [
        "another thread",
        "E0000 00:00:1795716.147  16310 cuda.cc:1] an error",
        "libcudart.so: cannot open",
    ]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("notes.txt", "hello", "notes.txt is no config, which is a Python file that ends in .py"),
        ("mine.py", "def get_config(:", "mine.py cannot be loaded: invalid syntax"),
        ("mine.py", "import nowhere", "mine.py cannot be loaded: No module named 'nowhere'"),
        ("mine.py", "", r"mine.py has no function get_config\(preset\)"),
    ],
    ids=short,
)
def test_a_file_that_is_no_config_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit, match=f"--config .*{message}"):
        cli.parse("train", [f"--config={tmp_path / name}", "--workdir=x"])


def test_a_metric_that_nothing_measures_cannot_be_the_best():
    check_best("knn", {"loss": 0})
    check_best("", {"loss": 0})
    with pytest.raises(
        ValueError, match="checkpoint.best='knnn' names no metric .* knn, empty, or one of loss"
    ):
        check_best("knnn", {"loss": 0})


def test_dropout_in_a_method_without_any_is_refused():
    config = simclr.get_config("digits").unlock()
    config.model.update(
        name="vit_xs",
        patch=8,
        positions="learned",
        scheme="deit",
        distillation=False,
        drop_path=0.0,
        dropout=0.5,
        frozen_patch=False,
        remat="none",
        scan=False,
    )
    net = models.backbone(config.model)
    image = jax.ShapeDtypeStruct((2, 16, 16, 1), jax.numpy.float32)
    with pytest.raises(ValueError, match="config.model.dropout=0.5: this method trains its network without"):
        jax.eval_shape(lambda x: models.forward(net, {}, {}, x), image)
