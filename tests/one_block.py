"""A process in which the smallest networks have one block each, so that they are compiled sooner.

    python -m tests.one_block VERB FLAGS

does there what `python -m ssljax.VERB FLAGS` does.
"""

import importlib
import operator
import sys
from collections.abc import Callable

from ssljax import cli
from ssljax.models import BACKBONES, beit_vit, cpc, vit
from ssljax.models.resnet import Basic


def shrink(setitem: Callable = operator.setitem) -> None:
    """Change the networks of the presets for digits, under their own names.

    Args:
        setitem: pytest's `monkeypatch.setitem`, to undo it; otherwise it lasts as long as the process.
    """
    setitem(BACKBONES, "resnet8", (Basic, (1,)))
    setitem(vit.SIZES, "vit_xs", (32, 1, 2))
    setitem(beit_vit.SIZES, "beit_xs", (32, 1, 2))
    setitem(cpc.STACKS, "cpc_r8", cpc.STACKS["cpc_r8"][:1])


if __name__ == "__main__":
    shrink()
    verb = importlib.import_module(f"ssljax.{sys.argv.pop(1)}")
    cli.run(verb.main)
