"""Writes the notebooks, one a paper. They are generated: change this file, then run `python colabs/notebooks.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent

# A paper's title line and what its method does with two views.
PAPERS = {
    "simclr": (
        "SimCLR",
        """
[SimCLR](https://arxiv.org/abs/2002.05709) shows the network two random views of each image and asks which two belong together.
""",
    ),
    "moco": (
        "MoCo",
        """
[MoCo](https://arxiv.org/abs/1911.05722) shows the network one random view of each image and a slowly moving copy of it another, and asks
which key of the copy belongs to which query, among a queue of the keys of earlier steps.
""",
    ),
    "byol": (
        "BYOL",
        """
[BYOL](https://arxiv.org/abs/2006.07733) shows the network one random view of each image and a slowly moving copy of it another, and asks
to predict what the copy makes of it. There are no negatives: only the predictor and the slow copy keep all images from looking alike.
""",
    ),
    "deit": (
        "DeiT",
        """
[DeiT](https://arxiv.org/abs/2012.12877) trains a vision transformer on labels alone, with strong augmentation, mixed images and a
convolutional teacher. A token of its own learns what the teacher decides, beside the token that learns the label.
""",
    ),
    "deepcluster": (
        "DeepCluster",
        """
[DeepCluster](https://arxiv.org/abs/1807.05520) gives the images labels itself: it groups them by k-means on the network's own features,
trains the network to tell the groups apart, and groups them again.
""",
    ),
}

CELLS = [
    (
        "title",
        """
# {title} on handwritten digits

A small network learns from scikit-learn's 1,797 scanned digits without their labels. Then the labels come: how many of them are needed?

{idea}
The cells below call the same four verbs as the command line: `preview`, `train`, `evaluate`, `report`.
""",
    ),
    (
        "install",
        """
import importlib.util
import os
import sys
from pathlib import Path

REPOSITORY = ""            # outside a checkout, on Colab for example: the git address that this notebook came from

if Path("../configs/{name}.py").exists():
    os.chdir("..")
if importlib.util.find_spec("ssljax") is None:
    if not Path("configs/{name}.py").exists():
        !git clone --quiet {{REPOSITORY}} ssljax
        os.chdir("ssljax")
    %pip install --quiet --editable .
    sys.path.insert(0, os.getcwd())
""",
    ),
    (
        "settings",
        """
RUN = os.environ.get("SSLJAX_RUN", "runs/{name}-digits")
CHANGES = os.environ.get("SSLJAX_CHANGES", "").split()      # e.g. ["--config.epochs=20", "--config.seed=1"]

ARGUMENTS = ["--config=configs/{name}.py:digits", f"--workdir={{RUN}}", *CHANGES]
""",
    ),
    (
        "preview_text",
        """
## What the network sees

Each row is one digit, as it is stored and in six of its views.
""",
    ),
    (
        "preview",
        """
from IPython.display import Image

from ssljax import preview

preview.main(ARGUMENTS)
Image(f"{{RUN}}/preview.png", width=700)
""",
    ),
    (
        "train_text",
        """
## Train

No label is used, but by a probe that only watches, where there is one. Interrupted? Run the cell again: it goes on from the
last checkpoint.
""",
    ),
    (
        "train",
        """
from ssljax import train

train.main(ARGUMENTS)
""",
    ),
    (
        "evaluate_text",
        """
## Evaluate

The network stays as it is. A kNN vote and linear classifiers, with all labels and with few, on its features; beside them the same
on raw pixels and on the features of the network before training.
""",
    ),
    (
        "evaluate",
        """
from ssljax import evaluate

evaluate.main([*ARGUMENTS, "--protocols=knn,linear,label_fraction", "--baselines=raw_pixels,random_init"])
""",
    ),
    (
        "report_text",
        """
## Report

Accuracy on held-out digits. The report with all pictures is `report.html` in the run's folder.
""",
    ),
    (
        "report",
        """
from ssljax import report

report.main([RUN])
Image(f"{{RUN}}/labels-digits.png", width=700)
""",
    ),
]


# Cells that other papers have instead.
OTHERS = {
    "deepcluster": {
        "train_text": """
## Train

No label of a digit is used. Every five epochs the digits are grouped anew; `nmi_labels` says how much the groups know of the true labels,
`nmi_previous` of the groups before. Interrupted? Run the cell again: it goes on from the last checkpoint.
""",
        "evaluate": """
from ssljax import evaluate

evaluate.main([*ARGUMENTS, "--protocols=knn,linear,label_fraction,clusters", "--baselines=raw_pixels,random_init"])
""",
        "report_text": """
## Report

Members of some groups, and accuracy on held-out digits. The report with all pictures is `report.html` in the run's folder.
""",
        "report": """
from IPython.display import display

from ssljax import report

report.main([RUN])
display(*(Image(f"{{RUN}}/{{picture}}-digits.png", width=700) for picture in ("clusters", "labels")))
""",
    },
    "deit": {
        "title": """
# {title} on handwritten digits

A small convolutional network learns scikit-learn's 1,797 scanned digits from their labels. Then a small transformer learns from the
labels and from that teacher.

{idea}
The cells below call the same four verbs as the command line: `preview`, `train`, `evaluate`, `report`.
""",
        "preview_text": """
## What the transformer sees

Each row is one digit: as it is stored, six of its views, and a view mixed with that of another digit by mixup and by CutMix, below the
weights of the two labels.
""",
        "preview": """
from IPython.display import Image

from ssljax import preview

preview.main(ARGUMENTS)
Image(f"{{RUN}}/student/preview.png", width=900)
""",
        "train_text": """
## Train

First the teacher, then the student. Interrupted? Run the cell again: it goes on from the last checkpoint.
""",
        "evaluate_text": """
## Evaluate

The student's own prediction on held-out digits: the mean of its two heads, and each alone. Beside them a kNN vote and a linear classifier
on its features, and on raw pixels.
""",
        "evaluate": """
from ssljax import evaluate

evaluate.main([*ARGUMENTS, "--protocols=classifier,knn,linear", "--baselines=raw_pixels"])
""",
        "report_text": """
## Report

Accuracy on held-out digits, and where the two tokens look. The report with all pictures is `report.html` in the student's folder.
""",
        "report": """
from ssljax import report

report.main([f"{{RUN}}/student"])
Image(f"{{RUN}}/student/attention-digits.png", width=900)
""",
    },
}


def file(name: str) -> Path:
    """Where a paper's notebook is."""
    return FOLDER / f"{name}.ipynb"


def notebook(name: str) -> str:
    """The text of a paper's notebook, the same at every call: the cells' ids are their names."""
    title, idea = PAPERS[name]
    cells = []
    for cell, text in [(cell, OTHERS.get(name, {}).get(cell, text)) for cell, text in CELLS]:
        new = new_markdown_cell if cell == "title" or cell.endswith("_text") else new_code_cell
        cells.append(new(text.format(name=name, title=title, idea=idea.strip()).strip(), id=cell))
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book = new_notebook(cells=cells, metadata=metadata)
    book.nbformat_minor = 5
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def main() -> None:
    """Writes the files."""
    for name in PAPERS:
        file(name).write_text(notebook(name))
        print(file(name), file=sys.stderr)


if __name__ == "__main__":
    main()
