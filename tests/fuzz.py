"""Random settings on the command line of a preset: each must be refused with a clear message, or be built.

    python -m tests.fuzz PRESET [--seed 0] [--count 200] [--steps 0]

A mutation is one or two words of a command line, such as `--config.optim.momentum=nan`. `tried` takes them
the way `ssljax train` takes them, up to the program, which is not compiled.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import random
import resource
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from ssljax import cli, config, program, sharding
from ssljax.config.keys import row
from ssljax.data import decode, loader, recipes, sources
from ssljax.data.source import Source
from ssljax.run import memory, monitor
from ssljax.run.loop import fit

PACKAGE = str(Path(config.__file__).parent.parent)
PAPERS = ("simclr", "moco", "byol", "deepcluster", "deit", "supervised")

# What people type and what breaks parsers, by the type of the key's default; | separates them.
NUMBERS = (
    "0|-0|1|-1|2|3|7|16|64|100|1000|4096|2147483647|2147483648|-2147483649|4294967295|4294967296"
    "|9223372036854775808|1180591620717411303424|-1180591620717411303424|0.5|-0.5|0.999|1.0|1.5|1e-9|1e-30"
    "|1e-300|1e20|1e38|1e39|1e99|-1e99|1e400|nan|-nan|inf|-inf|| |x|None|True|(1,)|[]|1,2|0x10|1_0|'1'|1e|--1"
    "|1\n2|é|½|٣|" + "9" * 400
).split("|")
WORDS = (
    "| |x|1|None|none|True|a\nb|\t|\x1b[31m|é|a/b|../x|/|.|..|-1|'|\"|{}|%s|$HOME|\udcff|nan|digits|folder:"
    "|folder:nowhere|folder:/dev/null|tfds:|tfds:nowhere|knn|encoder|sgd|adamw|lars|resnet18|vit_t|cosine|"
    + "a"
    * 5000
).split("|")
TUPLES = (
    "()|(1,)|(0.1,)|(0.5,0.5,0.5)|(2.0,0.1)|(0.1,2.0)|(1,2,3)|(1,2,3,4)|(0,)|(-1,)|('knn',)|('knn','knn')"
    "|('knnn',)|('encoder',)|('',)|('a\\nb',)|(nan,)|(1e99,1e99)|(1e400,)|(-1e400,1)|((1,),)|(None,)|(True,)"
    "|{}|{1}|1|'knn'|knn|knn,linear|(1|1,2|[1,2]||()()|(1180591620717411303424,)|(0.5,0.5,'x')|(1e-300,1)"
    "|(b'a',)|" + "(" * 300
).split("|")
FLAGS = ["true", "false", "True", "False", "1", "0", "2", "", "maybe", "None", "yes", "nan", "(True,)"]
POOLS: dict[type, list[str]] = {bool: FLAGS, int: NUMBERS, float: NUMBERS, str: WORDS, tuple: TUPLES}


class Tried(NamedTuple):
    """What followed from the words of one mutation.

    Attributes:
        wrong: what is wrong with that; "" if nothing is.
        refused: the message that refused them; "" if they were accepted.
        stages: the sources and programs of all stages, if they were accepted.
    """

    wrong: str
    refused: str = ""
    stages: tuple[tuple[Source, program.Program], ...] = ()


def presets() -> list[str]:
    """Every digits preset, as --config takes it."""
    found = []
    for paper in PAPERS:
        module = importlib.import_module(f"configs.{paper}")
        found += [f"configs/{paper}.py:{name}" for name in module.PRESETS if name.startswith("digits")]
    return found


def mutations(preset: str, seed: int, count: int) -> Iterator[list[str]]:
    """Yield `count` mutations of a preset: words for the command line, the same for the same seed."""
    draw = random.Random(f"{preset} {seed}")
    here = cli.preset_of(preset)
    wide = config.flat(config.widen(here))
    read = [name for name in config.flat(here) if name in wide and not name.endswith("views")]
    for _ in range(count):
        words = []
        for _ in range(draw.choice((1, 1, 1, 2))):
            name = draw.choice(read) if draw.random() < 0.75 else draw.choice(list(wide))
            words += _words(draw, name, wide[name])
        yield words


def _words(draw: random.Random, name: str, value: Any) -> list[str]:
    """One flag: mostly the key with a value from the pools or its range, sometimes a wrong key."""
    kind = tuple if isinstance(value, list) else type(value)
    key = row(_plain(name))
    choices = [str(choice) for choice in getattr(key.valid, "values", ())] if key else []
    chance = draw.random()
    if chance < 0.1:
        name = _misspelt(draw, name)
    if chance > 0.97:
        return [f"--config.{name}"]  # the value is missing, or the next flag is taken for it
    if choices and draw.random() < 0.6:
        text = draw.choice(choices)
        return [f"--config.{name}={text if draw.random() < 0.8 else text[:-1]}"]
    if kind in (int, float) and draw.random() < 0.4:
        number = abs(value or 1) * draw.choice((0.01, 0.1, 0.5, 0.9, 1.1, 2, 3, 10, -1))
        return [f"--config.{name}={int(number) if kind is int else number}"]
    if kind is bool and draw.random() < 0.3:
        return [f"--{draw.choice(('', 'no'))}config.{name}"]
    pool = POOLS[kind] if draw.random() < 0.85 else POOLS[draw.choice(list(POOLS))]
    return (
        [f"--config.{name}", draw.choice(pool)] if chance > 0.9 else [f"--config.{name}={draw.choice(pool)}"]
    )


def _misspelt(draw: random.Random, name: str) -> str:
    """A key that does not exist, or exists elsewhere."""
    place = draw.randrange(len(name))
    return draw.choice(
        (
            name[:place] + name[place + 1 :],
            name[:place] + draw.choice("abcxyz._[]") + name[place:],
            name.rpartition(".")[2],
            name.partition(".")[0],
            f"model.{name}",
            f"views.three.{name.rpartition('.')[2]}",
            f"{name}.x",
            name.upper(),
            "",
            ".",
        )
    )


def _plain(name: str) -> str:
    """A dotted key without the name of its stage."""
    first, _, rest = name.partition(".")
    return name if row(name) or not row(rest) or first == "augment" else rest


def tried(preset: str, words: list[str]) -> Tried:
    """Parse the words and build every stage, as `ssljax train` does before it compiles."""
    argv = [f"--config={preset}", "--workdir=x", *words]
    try:
        flags = cli.parse("train", list(argv))
    except SystemExit as refusal:
        return Tried(_unclear(str(refusal.code), words), str(refusal.code))
    except Exception as error:
        return Tried(f"the command line: {_last(error)}")

    ignored = _ignored(flags.config, words)
    if ignored:
        return Tried(ignored)
    stages = []
    for stage in config.stages(flags.config).values():
        try:
            source = _source(stage.data)
            mesh = sharding.make_mesh(1, fsdp=stage.sharding.fsdp)
            built = program.build(stage, sources.facts(stage.data, source), mesh)
            loader.train_batches(source, stage)
        except (ValueError, FileNotFoundError, ImportError, MemoryError) as error:
            if not _ours(error):
                return Tried(f"build: another library's {_last(error)}")
            return Tried(_unclear(str(error), words), str(error))
        except Exception as error:
            return Tried(f"build: {_last(error)}")
        if built.config is not stage:
            return Tried("the program has another config")
        stages.append((source, built))
    return Tried("", "", tuple(stages))


@functools.lru_cache(maxsize=8)
def _loaded(_: str, data: Any) -> Source:
    return sources.load(data.config, "train")


class _Data(NamedTuple):
    """Rides along with the text that the cache looks at."""

    config: ConfigDict

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True


def _source(data: ConfigDict) -> Source:
    """The training split, which is kept from one mutation to the next."""
    data = data.copy_and_resolve_references().unlock()
    if 1500 * data.image_size**2 * data.channels < decode.MEMORY_LIMIT:
        data.image_size = min(data.image_size, 64)  # the facts are the same, and large images take gigabytes
    return _loaded(data.to_json_best_effort(), _Data(data))


def _ignored(built: ConfigDict, words: list[str]) -> str:
    """Which of the values that were accepted did not arrive, if any."""
    leaves = config.flat(built)
    for name, text in _given(words).items():
        # The seed and settings of the data may be given for all stages at once.
        places = [name, *(f"{stage}.{name}" for stage in built.get("stages", ()))]
        there = [place for place in places if place in leaves]
        if not there:
            return f"config.{name} was accepted and is not in the config"
        for place in there:
            if wrong := _differs(leaves[place], text):
                return f"config.{place} is {wrong}"
    return ""


def _differs(value: Any, text: str) -> str:
    """The value, if it is not what the text says; else ""."""
    if isinstance(value, str):
        same = value == text
    elif isinstance(value, bool):
        same = True
    elif isinstance(value, int):
        same = value == int(text, 16 if text.lower().startswith("0x") else 10)
    elif isinstance(value, float):
        same = value == float(text)
    else:
        same = True
    return "" if same else repr(value)


def _given(words: list[str]) -> dict[str, str]:
    """The values in the words, by dotted key; without those of flags that are switched."""
    found = {}
    for i, word in enumerate(words):
        if not word.startswith("--config."):
            continue
        name, equals, text = word.removeprefix("--config.").partition("=")
        follows = i + 1 < len(words) and not words[i + 1].startswith("--")
        if equals:
            found[name] = text
        elif follows:
            found[name] = words[i + 1]
    return found


def _unclear(message: str, words: list[str]) -> str:
    """What a message lacks: it has one or two lines, and names a key that was given."""
    keys = [word.split("=")[0].split(".")[-1].strip("-") for word in words if word.startswith("-")]
    if not any(key in message for key in keys):
        return f"the message does not name the key: {message}"
    for foreign in ("int too large", "could not convert", "NoneType", "ufunc", "object at 0x", "Error("):
        if foreign in message:
            return f"the message is another library's: {message}"
    return (
        "" if len(message) < 1000 and message.count("\n") < 3 else f"the message is too long: {message[:300]}"
    )


def _ours(error: BaseException) -> bool:
    """Whether the error was raised in ssljax."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)


def _last(error: BaseException) -> str:
    """An error in one line, with the last place in ssljax."""
    places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(PACKAGE)]
    where = f" at {Path(places[-1].filename).name}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__}{where}: {str(error)[:200]}"


# ------------------------------------------------------------------------------------- from the command line


def small(source: Source, built: program.Program) -> bool:
    """Whether a step takes seconds."""
    size = sum(leaf.size for leaf in jax.tree.leaves(built.shapes))
    drawn = sum(view.count * view.size**2 for view in recipes.resolved(built.config))
    fits = size < 3_000_000 and drawn * built.config.batch_size < 500_000
    return fits and built.config.data.image_size <= 64 and len(source) <= 1500


def stepped(source: Source, built: program.Program) -> str:
    """Do one training step. Returns what is wrong; "" if it ends, or stops with a message of ours."""
    once = built._replace(total_steps=1, config=program.with_seed(built.config, built.config.seed))
    try:
        with jax.numpy_dtype_promotion("standard"), memory.explained(built.config, verb="train"):
            fit(once, source, seed=built.config.seed)
    except (ValueError, MemoryError, monitor.NotFinite) as error:
        return "" if _ours(error) else f"step: another library's {_last(error)}"
    except Exception as error:
        return f"step: {_last(error)}"
    return ""


def main() -> None:
    """Print what is wrong, and last a line of counts. The exit code is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=0, help="how many accepted mutations train for a step")
    flags = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))

    wrong = accepted = steps = 0
    for words in mutations(flags.preset, flags.seed, flags.count):
        found = tried(flags.preset, words)
        problem = found.wrong
        accepted += bool(found.stages)
        if found.stages and steps < flags.steps and all(small(*stage) for stage in found.stages):
            steps += 1
            problem = stepped(*found.stages[-1])
        if problem:
            wrong += 1
            print(f"{flags.preset} {words}: {problem}", flush=True)
    print(f"{flags.count} mutations, {accepted} accepted, {steps} trained for a step, {wrong} wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
