"""The README and docs/: links lead somewhere, commands are understood, and the code runs as it stands."""

import functools
import importlib.util
import posixpath
import re
import shlex
import subprocess
import sys

import pytest

from configs.simclr import get_config
from ssljax import cli, finetune, sharding
from ssljax.__main__ import HEAVY, VERBS
from ssljax.data import sources, transfer
from ssljax.program import build
from ssljax.run.folder import RunFolder
from tests.processes import ROOT, environment

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/*/README.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A verb, and the words of its command.
WORDS = re.compile(r"""\bssljax (\w+) ((?:'[^']*'|"[^"]*"|[^;&'"])*)""")

# What makes no difference to `cli.load`.
OTHERS = re.compile(r"^(train|evaluate)| --(workdir|stage|results|protocols|baselines)[= ]\S+|(?<=seed=)\d+")


def commands():
    """Every `ssljax VERB ...` of the pages, as the words of a command line."""
    found = {}
    for page in PAGES:
        for _, block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").split("\n"):
                for text in WORDS.findall(line):
                    if text[0] in VERBS and "$" not in text[1]:  # a loop of the shell
                        words = shlex.split(text[1], comments=True)
                        found[OTHERS.sub("", " ".join([text[0], *words]))] = (text[0], words)
    return found


COMMANDS = commands()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_exist(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", BLOCK.sub("", page.read_text()))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


@pytest.mark.slow
def test_the_commands_of_the_pages_name_what_exists(monkeypatch):
    monkeypatch.setattr(cli, "preset_of", functools.cache(cli.preset_of))
    checked = 0
    for verb, words in COMMANDS.values():
        assert verb in VERBS
        if verb in HEAVY and any(word.partition("=")[0] == "--config" for word in words):
            cli.load(verb, words)  # refuses a config, a preset or a setting that is not there
            checked += 1
        if verb == "finetune":
            flags, overrides = finetune.asked(words)
            assert set(flags.sets.split(",")) <= {"all", "caltech101_subset", *transfer.SETS}
            cli.load(verb, ["--config", "transfer:own", *overrides])
    assert checked > 40


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_page_of_the_site_is_in_its_menu_and_every_link_leads_somewhere(site):
    texts, others = site.pages()
    menu = re.findall(r"[\w/.]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1])
    hidden = ("source/", "papers/deepcluster/")
    assert set(menu) <= set(texts)
    missing = [place for place in texts if place not in menu and not place.startswith(hidden)]
    assert missing == [], "add them to the menu of mkdocs.yml"
    for place, text in texts.items():
        for target, part in re.findall(r"\]\(([^)#\s]+)(#[^)\s]*)?\)", BLOCK.sub("", text)):
            if "://" not in target:
                found = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
                assert found in texts or found in others, f"{place} links to {found}"
                titles = re.findall(r"^#+ (.*)$", texts.get(found, ""), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert not part or part[1:] in slugs, f"{place} links to {target}{part}"
    assert others["papers/simclr/labels-digits.png"] == ROOT / "experiments/simclr/labels-digits.png"


def test_links_change_from_the_repository_to_the_site(site):
    found = []
    links = "[a](../../docs/cpu.md#x) [b](../../configs/simclr.py) ![c](d.png)"
    text = links + "\n```\n[e](../f.md)\n```\n[g](h://i)"
    moved = site.relinked(text, "experiments/simclr/README.md", "papers/simclr.md", found.append)
    assert moved == (
        "[a](../cpu.md#x) [b](../source/configs/simclr.py.md) ![c](simclr/d.png)\n"
        "```\n[e](../f.md)\n```\n[g](h://i)"
    )
    assert found == ["docs/cpu.md", "configs/simclr.py", "experiments/simclr/d.png"]


def test_the_page_of_a_protocol_says_what_its_code_says(site):
    page = site.protocol("knn")
    for text in (
        "# knn",
        "    s = cos(test, train)",
        "`top1`, `top5`",
        "**Condition:** Both splits need labels, and the images to evaluate must not be among those to learn",
    ):
        assert text in page
    settings = re.findall(r"^\| `evaluate\.(\w+)`", page, re.MULTILINE)
    assert settings == ["knn_k", "knn_temperature"]


def test_a_docstring_becomes_lists_and_code(site):
    text = "Sums <x>_i.\n\n    x * y\n\nArgs:\n    a, b: two,\n        or `c_d`.\n\nReturns:\n    [N]: all."
    want = "Sums \\<x>\\_i.\n\n    x * y\n\n**Args**\n\n- `a, b`: two,\n      or `c_d`.\n\n"
    want += "**Returns**\n\n\\[N\\]: all."
    assert site.prose(text) == want


def test_an_image_gets_all_that_its_file_copies():
    copied = re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sent = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert " ".join(copied).split() == [
        *("setup.py", "pyproject.toml", "requirements.lock", "README.md", "LICENSE", "configs", "ssljax")
    ]
    assert sorted(sent) == sorted(" ".join(copied).split())
    assert all((ROOT / name).exists() for name in sent)


@pytest.mark.slow
def test_the_code_of_the_page_on_features_runs_as_it_stands(tmp_path):
    config = get_config("digits").unlock()
    config.model.width = 0.125
    program = build(config, sources.load(config.data, "train").facts, sharding.make_mesh(1))
    with RunFolder(str(tmp_path / "runs/d"), config, program.facts) as run:
        run.save(program.init(0), {})
    blocks = BLOCK.findall((ROOT / "docs" / "features.md").read_text())
    code = [text for language, text in blocks if language == "python"]
    assert len(code) == 2
    said = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", text],
            cwd=tmp_path,
            env=environment(tmp_path / "xla") | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for text in code
    ]
    assert re.fullmatch(r"\d\d\.\d % right, after 100 labels\n", said[1])
    assert (tmp_path / "neighbours.png").stat().st_size > 5000
