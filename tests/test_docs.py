"""The README and docs/: links lead somewhere, commands are understood, and the code runs as it stands."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from configs.simclr import get_config
from ssljax import cli
from ssljax.__main__ import HEAVY, VERBS
from ssljax.data import sources
from ssljax.program import build
from ssljax.run.folder import RunFolder
from tests.processes import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/*/README.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

WORDS = re.compile(
    r"""\bssljax (\w+) ((?:'[^']*'|"[^"]*"|[^;&'"])*)"""
)  # a verb, and the words of its command


def commands():
    """Every `ssljax VERB ...` of the pages, as the words of a command line."""
    found = {}
    for page in PAGES:
        for _, block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").split("\n"):
                for text in WORDS.findall(line):
                    if text[0] in VERBS and "$" not in text[1]:  # a loop of the shell
                        words = shlex.split(text[1], comments=True)
                        found[f"{text[0]} {' '.join(words)}"] = (text[0], words)
    return found


COMMANDS = commands()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", BLOCK.sub("", page.read_text()))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_the_commands_of_the_pages_name_what_exists():
    checked = 0
    for verb, words in COMMANDS.values():
        assert verb in VERBS
        if verb in HEAVY and any(word.partition("=")[0] == "--config" for word in words):
            cli.load(verb, words)  # refuses a config, a preset or a setting that is not there
            checked += 1
    assert checked > 40


@pytest.mark.slow
def test_the_code_of_the_page_on_features_runs_as_it_stands(tmp_path):
    config = get_config("digits")
    program = build(config, sources.load(config.data, "train").facts)
    with RunFolder(str(tmp_path / "runs/d"), config, program.facts) as run:
        run.save(program.init(0), {})
    blocks = BLOCK.findall((ROOT / "docs" / "features.md").read_text())
    code = [text for language, text in blocks if language == "python"]
    assert len(code) == 2
    said = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", text],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for text in code
    ]
    assert re.fullmatch(r"\d\d\.\d % right, after 100 labels\n", said[1])
    assert (tmp_path / "neighbours.png").stat().st_size > 5000
