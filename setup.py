"""Installation: `pip install -e .[test]`; `[tpu]` and `[cuda]` choose the accelerator's JAX, `[plan]` compiles for a TPU without
one, `[convert]` reads and writes other frameworks' weights."""

import platform

from setuptools import find_packages, setup

# TensorFlow only feeds data: its CPU build where the platform has one (macOS and aarch64 have one package for all).
TENSORFLOW = (
    "tensorflow-cpu" if platform.system() == "Linux" and platform.machine() == "x86_64" else "tensorflow"
)

setup(
    name="ssljax",
    version="0.1.0",
    description="Data-efficient and self-supervised image learning in JAX: ten papers in one readable house",
    python_requires=">=3.11",
    packages=find_packages(include=["ssljax", "ssljax.*"]),
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        f"{TENSORFLOW}>=2.21.0",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=7.1.0",  # tensorflow-datasets imports it undeclared
        "ml-collections>=1.1.0",
        "clu>=0.0.12",
        "tensorboard>=2.21.0",  # clu's metric writers import it undeclared
        "chex>=0.1.92",
        "scikit-learn>=1.9.1",
        "threadpoolctl>=3.8.0",
        "matplotlib>=3.11.2",
        "pillow>=13.0.0",
        "tqdm>=4.70.1",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "plan": ["libtpu>=0.0.42"],  # the TPU's compiler, which needs no TPU
        "cuda": ["jax[cuda12]>=0.10.2"],
        "convert": ["safetensors>=0.8.0"],  # weights of timm and torchvision, without PyTorch
        "test": [
            "pytest>=9.2.0",
            "pytest-xdist>=3.8.0",
            "ruff>=0.17.6", "mypy>=1.18",
            "nbformat>=5.10",
            "nbclient>=0.10",
            "ipykernel>=7.0",
            "safetensors>=0.8.0",
        ],
    },
    entry_points={"console_scripts": ["ssljax = ssljax.__main__:main"]},
)
