"""Installation: `pip install -e .[test]`.

The extras `[tpu]` and `[cuda]` choose the accelerator's JAX, `[plan]` compiles for a TPU without one,
`[convert]` reads and writes other frameworks' weights, and `[hf]` downloads Hugging Face's data sets.
"""

import platform
from pathlib import Path

from setuptools import find_packages, setup

# TensorFlow only feeds data, so its CPU build will do; macOS and aarch64 have one package for all.
ON_LINUX_X86 = platform.system() == "Linux" and platform.machine() == "x86_64"
TENSORFLOW = "tensorflow-cpu" if ON_LINUX_X86 else "tensorflow"

setup(
    name="ssljax",
    version="0.1.0",
    description="Data-efficient and self-supervised image learning in JAX: ten papers in one readable house",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    author="the ssljax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11,<3.14",  # TensorFlow has no wheel for 3.14
    # The configs stand beside the package in a checkout, and inside it once installed.
    packages=[*find_packages(include=["ssljax", "ssljax.*"]), "ssljax.configs"],
    package_dir={"ssljax.configs": "configs"},
    package_data={"ssljax": ["py.typed", "weights/*.npz"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.2",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.25",
        f"{TENSORFLOW}>=2.20.0",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6.5.2",  # tensorflow-datasets imports it undeclared
        "ml-collections>=1.1.0",
        "clu>=0.0.12",
        "tensorboard>=2.20.0",  # clu's metric writers import it undeclared
        "scikit-learn>=1.5.0",
        "threadpoolctl>=3.5.0",
        "matplotlib>=3.9.0",
        "pillow>=11.0.0",
        "pyarrow>=18.0.0",
        "tqdm>=4.67.0",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "plan": ["libtpu>=0.0.42"],  # the TPU's compiler, which needs no TPU
        "cuda": ["jax[cuda13]>=0.10.2"],  # an NVIDIA driver from 580 on
        "convert": ["safetensors>=0.5.0"],  # weights of timm and torchvision, without PyTorch
        "hf": ["datasets>=4.0.0"],  # `ssljax prepare hf:NAME`; reading what it saved needs only pyarrow
        "docs": ["mkdocs-material>=9.8.2", "mkdocs>=1.6.1"],  # the site
        "export": ["flatbuffers>=24.3.25"],  # TensorFlow brings it
        "wandb": ["wandb>=0.19.0"],  # loggers, `ssljax train --log wandb`
        "mlflow": ["mlflow>=3.0.0"],
        "test": [
            "chex>=0.1.90",
            "pytest>=8.3.0",
            "pytest-xdist>=3.8.0",
            "ruff>=0.17.6",
            "mypy>=2.4.1",
            "nbformat>=5.10.0",
            "nbclient>=0.10.0",
            "ipykernel>=6.29.0",
            "safetensors>=0.5.0",
        ],
    },
    entry_points={"console_scripts": ["ssljax = ssljax.__main__:script"]},
)
