"""Writes the notebooks: one per paper, and one for your own images.

The notebooks are generated: change this file, then run `python colabs/notebooks.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent

# The repository's address, such as https://github.com/OWNER/ssljax. This line is the only place that has it.
# Notebooks without it ask for it in their first cell, and have no badge, because its link would lead nowhere.
REPOSITORY = ""

# Per paper: the name of its method, and what the method does.
PAPERS = {
    "simclr": (
        "SimCLR",
        """
[SimCLR](https://arxiv.org/abs/2002.05709) shows the network two random views of each image. The network
learns to tell which two views belong together.
""",
    ),
    "moco": (
        "MoCo",
        """
[MoCo](https://arxiv.org/abs/1911.05722) shows one random view of each image to the network and another to a
slowly moving copy of the network. The embedding of the first view, the query, has to pick out the embedding
of the second, the key, among the keys of earlier steps, which are kept in a queue.
""",
    ),
    "byol": (
        "BYOL",
        """
[BYOL](https://arxiv.org/abs/2006.07733) shows one random view of each image to the network and another to a
slowly moving copy of the network. The network learns to predict the embedding that the copy computes. There
are no negatives: only the predictor and the slow copy keep all images from getting the same embedding.
""",
    ),
    "simclr_v2": (
        "SimCLRv2",
        """
[SimCLRv2](https://arxiv.org/abs/2006.10029) pretrains a network without labels, as SimCLR does, fine-tunes it
on a few labels from the middle of the projection head, and lets a new network learn from its predictions on
all images.
""",
    ),
    "deit": (
        "DeiT",
        """
[DeiT](https://arxiv.org/abs/2012.12877) trains a vision transformer on labelled images, with strong
augmentation, mixed images and a convolutional teacher. Beside the token that learns the label, a second token
learns the teacher's decision.
""",
    ),
    "deepcluster": (
        "DeepCluster",
        """
[DeepCluster](https://arxiv.org/abs/1807.05520) makes its own labels: it clusters the images by k-means on the
network's features, trains the network to tell the clusters apart, and clusters the images again.
""",
    ),
    "cmc": (
        "CMC",
        """
[CMC](https://arxiv.org/abs/1906.05849) sees every image in several views, each through a network of its own.
The embeddings of one image should agree across views and differ from those of other images, which are kept in
a memory bank per view. Digits are grey: the views are the intensity and its gradient.
""",
    ),
    "beit": (
        "BEiT",
        """
[BEiT](https://arxiv.org/abs/2106.08254) first trains a tokenizer, which turns every patch of an image
into one of a few codes. Then a vision transformer sees the image with some patches masked, and predicts their
codes.
""",
    ),
    "noisy_student": (
        "Noisy Student",
        """
[Noisy Student](https://arxiv.org/abs/1911.04252) trains a network, the teacher, on the labelled images. The
teacher names the classes of the other images. A student learns from all of them, under strong augmentation,
dropout and stochastic depth.
""",
    ),
    "cpc": (
        "CPC v2",
        """
[CPC v2](https://arxiv.org/abs/1905.09272) cuts an image into overlapping patches, makes one vector of each,
and predicts the vectors that lie below from those above, in all four directions, among the patches of all
images.
""",
    ),
}

INSTALL = """
import importlib.metadata
import importlib.util
import os
import tempfile
from pathlib import Path

SOURCE = "{source}"  # what pip installs; not needed in a checkout

if importlib.util.find_spec("ssljax") is None:
    if Path("../ssljax/__init__.py").exists():
        SOURCE = ".."
    if not SOURCE:
        raise ValueError(
            "ssljax is not installed. Set SOURCE above to its address, 'git+https://HOST/OWNER/ssljax'; to a "
            "checkout; or to an uploaded archive, e.g. 'ssljax-0.1.0-py3-none-any.whl', which "
            "`pip wheel --no-deps .` writes in a checkout"
        )
    # An installed JAX fits this machine's accelerator: pip must leave it as it is.
    found = {{x.metadata["Name"].lower(): x.version for x in importlib.metadata.distributions()}}
    kept = [f"{{x}}=={{found[x]}}" for x in sorted(found) if x.startswith(("jax", "libtpu", "numpy"))]
    KEPT = Path(tempfile.mkdtemp(), "kept.txt")
    KEPT.write_text("\\n".join(kept))
    %pip install --quiet --constraint "{{KEPT}}" "{{SOURCE}}"
"""

DEVICE_TEXT = """
## On a GPU or a TPU

On Colab choose one under *Runtime > Change runtime type* first. Colab's JAX fits its GPUs and TPUs, so ssljax
is installed without an extra: `ssljax[cuda]` and `ssljax[tpu]` bring a JAX of their own, for your machines.
If pip finds no jax that fits, Colab's is too old: choose a newer runtime version there.
"""

DEVICE = """
import jax

print(f"jax {{jax.__version__}} on {{jax.device_count()}} x {{jax.devices()[0].device_kind}}")
"""

CELLS = [
    (
        "title",
        """
# {title} on handwritten digits

A small network learns from scikit-learn's 1,797 scanned digits without their labels. How many labels does a
classifier on its features need afterwards?

{idea}
The cells below call the same four verbs as the command line: `preview`, `train`, `evaluate`, `report`.
""",
    ),
    ("install", INSTALL),
    ("device_text", DEVICE_TEXT),
    ("device", DEVICE),
    (
        "settings",
        """
RUN = os.environ.get("SSLJAX_RUN", "runs/{name}-digits")
CHANGES = os.environ.get("SSLJAX_CHANGES", "").split()  # e.g. ["--config.epochs=20", "--config.seed=1"]

ARGUMENTS = ["--config={name}:digits", f"--workdir={{RUN}}", *CHANGES]
""",
    ),
    (
        "preview_text",
        """
## What the network sees

Each row shows one digit: the stored image, and six random views of it.
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

The network is trained without labels. Some methods train an online probe beside it; the probe reads the
labels, but it does not change the network. If the cell is interrupted, run it again: training resumes from
the last checkpoint.
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

The network is frozen. Its features are evaluated by a kNN vote and by linear classifiers, with all labels and
with few. For comparison, so are raw pixels and the features of the network before training.
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

Accuracy on held-out digits. The whole report with all figures is `report.html` in the run's folder.
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


OWN_CELLS = [
    (
        "title",
        """
# Your own images in ten minutes

A small network learns from a folder of pictures, without labels. Then you see which pictures it finds alike,
and keep their features in a file and the network in another.
""",
    ),
    ("install", INSTALL),
    ("device_text", DEVICE_TEXT),
    ("device", DEVICE),
    (
        "images_text",
        """
## The pictures

`IMAGES` is a folder, at any depth, or a zip. On Colab upload a zip by the folder icon at the left, or mount
your Drive: `from google.colab import drive; drive.mount("/content/drive")`. JPEG, PNG, WebP, GIF, BMP and
TIFF are read. A few hundred pictures are few; thousands are better. While `IMAGES` is empty, scikit-learn's
digits stand in for your pictures.
""",
    ),
    (
        "images",
        """
import shutil

import numpy as np
from PIL import Image as Picture
from sklearn.datasets import load_digits

IMAGES = os.environ.get("SSLJAX_IMAGES", "")  # e.g. "photos.zip", "/content/drive/MyDrive/photos"

if IMAGES.endswith(".zip"):
    shutil.unpack_archive(IMAGES, "pictures")
    IMAGES = "pictures"
if not IMAGES:
    IMAGES = "pictures"
    os.makedirs(IMAGES, exist_ok=True)
    for i, digit in enumerate(load_digits().images):
        Picture.fromarray((digit * 255 / 16).astype("uint8")).save(f"{{IMAGES}}/{{i:04}}.png")
""",
    ),
    (
        "settings",
        """
RUN = os.environ.get("SSLJAX_RUN", "runs/own-images")
CHANGES = os.environ.get("SSLJAX_CHANGES", "").split()  # e.g. ["--config.epochs=20"]

DATA = [f"--config.data.source=folder:{{IMAGES}}", "--config.data.labels=none"]
ARGUMENTS = ["--config=simclr:folder_small", f"--workdir={{RUN}}", *DATA, *CHANGES]
""",
    ),
    (
        "preview_text",
        """
## What the network sees

Each row shows one picture: as it is stored, and six random views of it. What the views have in common is
what the network learns. If they hide what matters to you, such as colour, change them: `ssljax config
--config simclr:folder_small` lists the settings of `augment`.
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

The loss should fall. If the cell is interrupted, run it again: training resumes from the last checkpoint.
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
        "embed_text",
        """
## Features in a file

One row per picture. A name that ends in `.parquet` or `.csv` gives a table instead.
""",
    ),
    (
        "embed",
        """
from ssljax import embed

embed.main(["--workdir", RUN, "--images", IMAGES, "--out", f"{{RUN}}/features.npz"])
""",
    ),
    (
        "neighbours_text",
        """
## Neighbours

Each row shows a picture, and the five that the network finds most alike.
""",
    ),
    (
        "neighbours",
        """
import matplotlib.pyplot as plt
from sklearn.neighbors import NearestNeighbors

with np.load(f"{{RUN}}/features.npz") as file:
    paths, features = file["path"], file["features"]
asked = np.random.default_rng(0).choice(len(paths), 8, replace=False)
_, nearest = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features).kneighbors(features[asked])

figure, axes = plt.subplots(8, 6, figsize=(6, 8))
for ax, i in zip(axes.flat, nearest.flat, strict=True):
    ax.imshow(Picture.open(paths[i]).convert("RGBA"))
    ax.set_axis_off()
figure.savefig(f"{{RUN}}/neighbours.png")
plt.close(figure)
Image(f"{{RUN}}/neighbours.png", width=500)
""",
    ),
    (
        "export_text",
        """
## The network in a file

The file holds the program and its weights, and runs where ssljax is not installed. It wants pictures of the
right size, cut square.
""",
    ),
    (
        "export",
        """
from jax import export as jax_export
from PIL import ImageOps

from ssljax import export

export.main(["--workdir", RUN, "--to", f"stablehlo:{{RUN}}/network.stablehlo"])

# From here on without ssljax.
network = jax_export.deserialize(bytearray(Path(f"{{RUN}}/network.stablehlo").read_bytes()))
size = network.in_avals[0].shape[1]
squares = [np.asarray(ImageOps.fit(Picture.open(p).convert("RGB"), (size, size))) for p in paths[:8]]
again = np.asarray(network.call(np.stack(squares))["features"])
norms = np.linalg.norm(again, axis=1) * np.linalg.norm(features[:8], axis=1)
print(f"cosine with the features above: {{min((again * features[:8]).sum(axis=1) / norms):.3f}} or more")
""",
    ),
]


# Cells that differ for some papers.
OTHERS = {
    "deepcluster": {
        "train_text": """
## Train

The network is trained without labels. Every five epochs the digits are clustered again. `nmi_labels` is the
normalised mutual information of the clusters with the true labels, `nmi_previous` that with the previous
clusters. If the cell is interrupted, run it again: training resumes from the last checkpoint.
""",
        "evaluate": """
from ssljax import evaluate

PROTOCOLS = "--protocols=knn,linear,label_fraction,clusters"
evaluate.main([*ARGUMENTS, PROTOCOLS, "--baselines=raw_pixels,random_init"])
""",
        "report_text": """
## Report

Images of some clusters, and accuracy on held-out digits. The whole report with all figures is `report.html`
in the run's folder.
""",
        "report": """
from IPython.display import display

from ssljax import report

report.main([RUN])
display(*(Image(f"{{RUN}}/{{picture}}-digits.png", width=700) for picture in ("clusters", "labels")))
""",
    },
    "simclr_v2": {
        "title": """
# {title} on handwritten digits

A small network learns from scikit-learn's 1,797 scanned digits without their labels. Then it learns ten
labels per class, and last it teaches a new network of the same size.

{idea}
The cells below call the same four verbs as the command line: `preview`, `train`, `evaluate`, `report`.
""",
        "settings": """
RUN = os.environ.get("SSLJAX_RUN", "runs/{name}-digits")
CHANGES = os.environ.get("SSLJAX_CHANGES", "").split()  # e.g. ["--config.finetune.epochs=40"]

ARGUMENTS = ["--config={name}:digits_self", f"--workdir={{RUN}}", *CHANGES]
""",
        "preview": """
from IPython.display import Image

from ssljax import preview

preview.main(ARGUMENTS)
Image(f"{{RUN}}/pretrain/preview.png", width=700)
""",
        "train_text": """
## Train

Three stages: `pretrain` without labels, `finetune` on ten labels per class, and `distill`, in which a new
network learns what the fine-tuned one says of all digits. If the cell is interrupted, run it again: training
resumes from the last checkpoint.
""",
        "evaluate_text": """
## Evaluate

The pretrained network is frozen and its features are evaluated, beside raw pixels. Of the fine-tuned network,
the teacher, and of its student, the predictions are.
""",
        "evaluate": """
from ssljax import evaluate

RESULTS = f"--results={{RUN}}/results.jsonl"
FEATURES = ["--protocols=knn,linear,label_fraction", "--baselines=raw_pixels"]
evaluate.main([*ARGUMENTS, "--stage=pretrain", RESULTS, *FEATURES])
evaluate.main([*ARGUMENTS, "--stage=finetune", RESULTS])
evaluate.main([*ARGUMENTS, "--stage=distill", RESULTS])
""",
        "report_text": """
## Report

Accuracy on held-out digits. The whole report with all figures is `report.html` in the run's folder.
""",
        "report": """
from ssljax import report

report.main([RUN])
Image(f"{{RUN}}/labels-digits_self-pretrain.png", width=700)
""",
    },
    "deit": {
        "title": """
# {title} on handwritten digits

A small convolutional network, the teacher, learns scikit-learn's 1,797 scanned digits from their labels. Then
a small transformer, the student, learns from the labels and from the teacher.

{idea}
The cells below call the same four verbs as the command line: `preview`, `train`, `evaluate`, `report`.
""",
        "preview_text": """
## What the transformer sees

Each row shows one digit: the stored image, six random views of it, and mixtures of a view with that of
another digit, by mixup and by CutMix. The text above a mixture gives the weights of the two labels.
""",
        "preview": """
from IPython.display import Image

from ssljax import preview

preview.main(ARGUMENTS)
Image(f"{{RUN}}/student/preview.png", width=900)
""",
        "train_text": """
## Train

First the teacher is trained, then the student. If the cell is interrupted, run it again: training resumes
from the last checkpoint.
""",
        "evaluate_text": """
## Evaluate

The student's predictions on held-out digits are evaluated: the mean of its two heads, and each head alone.
For comparison, its features and raw pixels are evaluated by a kNN vote and a linear classifier.
""",
        "evaluate": """
from ssljax import evaluate

evaluate.main([*ARGUMENTS, "--protocols=classifier,knn,linear", "--baselines=raw_pixels"])
""",
        "report_text": """
## Report

Accuracy on held-out digits, and the attention of the two tokens. The whole report with all figures is
`report.html` in the student's folder.
""",
        "report": """
from ssljax import report

report.main([f"{{RUN}}/student"])
Image(f"{{RUN}}/student/attention-digits.png", width=900)
""",
    },
    "beit": {
        "title": """
# {title} on handwritten digits

A small transformer learns from scikit-learn's 1,797 scanned digits without their labels, and is then
fine-tuned on ten labels of each digit.

{idea}
The cells below call the same four verbs as the command line: `preview`, `train`, `evaluate`, `report`.
""",
        "preview_text": """
## What the transformer and the tokenizer see

Each row shows one digit: the stored image, pairs of the same random view for both networks, and the first
view with its masked patches in grey.
""",
        "preview": """
from IPython.display import Image

from ssljax import preview

preview.main(ARGUMENTS)
Image(f"{{RUN}}/pretrain/preview.png", width=900)
""",
        "train_text": """
## Train

First the tokenizer is trained, then the transformer, and then it is fine-tuned. While the transformer is
pretrained, `token_accuracy` should rise well above `most_frequent_token`. If the cell is interrupted, run it
again: training resumes from the last checkpoint.
""",
        "evaluate_text": """
## Evaluate

How well the tokenizer's codes keep held-out digits, and how often the fine-tuned network is right.
""",
        "evaluate": """
from ssljax import evaluate

evaluate.main([*ARGUMENTS, "--stage=tokenizer"])
evaluate.main([*ARGUMENTS, "--stage=finetune"])
""",
        "report_text": """
## Report

Held-out digits, what the tokenizer's codes keep of them, and the attention of the fine-tuned network.
""",
        "report": """
from IPython.display import display

from ssljax import report

PICTURES = ("tokenizer/reconstruction-digits-tokenizer.png", "finetune/attention-digits.png")
for picture in PICTURES:
    report.main([f"{{RUN}}/{{picture.split('/')[0]}}"])
display(*(Image(f"{{RUN}}/{{picture}}", width=900) for picture in PICTURES))
""",
    },
    "noisy_student": {
        "title": """
# {title} on handwritten digits

A small network, the teacher, learns from five labels of each of scikit-learn's handwritten digits. It labels
the other 1,450 images, and a student learns from all of them.

{idea}
The cells below call the same four verbs as the command line: `preview`, `train`, `evaluate`, `report`.
""",
        "preview_text": """
## What the student sees

Each row shows one digit: the stored image and random views of it, changed by RandAugment.
""",
        "preview": """
from IPython.display import Image

from ssljax import preview

preview.main(ARGUMENTS)
Image(f"{{RUN}}/student/preview.png", width=900)
""",
        "train_text": """
## Train

First the teacher is trained, then its student. The line `refresh at step 0` says how sure the teacher is of
the labels that it gives. If the cell is interrupted, run it again: training resumes from the last checkpoint.
""",
        "evaluate_text": """
## Evaluate

How often the teacher and the student are right, on held-out digits as they are and under fifteen kinds of
corruption at five severities.
""",
        "evaluate": """
from ssljax import evaluate

RESULTS = f"--results={{RUN}}/results.jsonl"
PROTOCOLS = "--protocols=classifier,corruptions"
evaluate.main([*ARGUMENTS, "--stage=teacher", RESULTS, PROTOCOLS])
evaluate.main([*ARGUMENTS, "--stage=student", RESULTS, PROTOCOLS])
""",
        "report_text": """
## Report

Error against the severity of each corruption, of the teacher and of the student. The whole report with all
figures is `report.html` in the run's folder.
""",
        "report": """
from ssljax import report

report.main([RUN])
Image(f"{{RUN}}/corruptions-digits.png", width=900)
""",
    },
}


def file(name: str) -> Path:
    """The path of a notebook."""
    return FOLDER / f"{name}.ipynb"


def badge(name: str) -> str:
    """The link that opens a notebook in Colab, which knows GitHub; empty while REPOSITORY is not there."""
    host = "https://github.com/"
    if not REPOSITORY.startswith(host):
        return ""
    colab = "https://colab.research.google.com"
    link = f"{colab}/github/{REPOSITORY.removeprefix(host)}/blob/main/colabs/{name}.ipynb"
    return f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({link})"


def notebook(name: str) -> str:
    """The contents of a notebook. Cells have their names as ids, so every call returns the same.

    Args:
        name: a key of PAPERS, or "own_images".
    """
    title, idea = PAPERS.get(name, ("", ""))
    own = OWN_CELLS if name == "own_images" else CELLS
    others = OTHERS.get(name, {})
    source = f"git+{REPOSITORY}" if REPOSITORY else ""
    cells = []
    for cell, default in own:
        template = others.get(cell, default)
        text = template.format(name=name, title=title, idea=idea.strip(), source=source).strip()
        if cell == "title" and badge(name):
            text = f"{badge(name)}\n\n{text}"
        is_text = cell == "title" or cell.endswith("_text")
        new_cell = new_markdown_cell if is_text else new_code_cell
        cells.append(new_cell(text, id=cell))

    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book = new_notebook(cells=cells, metadata=metadata)
    book.nbformat_minor = 5
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def main() -> None:
    """Writes the notebooks."""
    for name in (*PAPERS, "own_images"):
        file(name).write_text(notebook(name))
        print(file(name), file=sys.stderr)


if __name__ == "__main__":
    main()
