"""The console script: `ssljax <verb> ...` is `python -m ssljax.<verb> ...`."""

import ast
import importlib
import sys
from pathlib import Path

from ssljax import cli

VERBS = {
    "prepare": "download or build a data set once",
    "train": "pretrain, fine-tune, or run all stages of a config",
    "evaluate": "protocols on a checkpoint, one line of results.jsonl each",
    "plan": "compile a config for a TPU slice without a TPU: does it fit, what does it cost",
    "report": "results.jsonl to tables and figures",
    "sweep": "all combinations of some settings, one run after the other",
    "finetune": "a run on the data sets of the transfer tables, rate and decay searched",
    "compare": "runs side by side: settings, curves, results",
    "preview": "a picture of what the network will see",
    "config": "what a config says, all of it, and how two differ",
    "embed": "features of a folder of images, by a trained network",
    "export": "a trained network that runs without ssljax: StableHLO, or a folder that timm reads",
    "convert": "weights of timm and torchvision as a checkpoint, and back",
}
HEAVY = ("train", "evaluate", "plan", "preview", "convert")  # with --config, and they import JAX


def main() -> None:
    """Calls the verb's main, or lists the verbs; a wrong config is refused before the verb is imported."""
    asked = sys.argv[1] if len(sys.argv) > 1 else "help"
    if asked not in VERBS:
        help_wanted = asked in ("-h", "--help", "help")
        if not help_wanted:
            print(f"no verb {asked!r}")
        print(usage())
        sys.exit(0 if help_wanted else 2)

    module = f"ssljax.{asked}"
    file = Path(__file__).with_name(f"{asked}.py")
    if not file.exists():  # the verb is the __main__ of a package
        module = f"{module}.__main__"
        file = file.with_suffix("") / "__main__.py"
    if {"-h", "--help", "-help"} & set(sys.argv[2:]):
        print(ast.get_docstring(ast.parse(file.read_text())))  # read, not imported: an answer at once
        return
    if asked in HEAVY:
        cli.load(asked, sys.argv[2:])
    importlib.import_module(module).main(sys.argv[2:])


def usage() -> str:
    """The verbs, one per line."""
    lines = [f"  {verb:9} {what}" for verb, what in VERBS.items()]
    return "\n".join(["usage: ssljax <verb> [flags]", *lines, "ssljax <verb> --help says more"])


def script() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    script()
