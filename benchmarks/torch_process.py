"""The other side of a comparison: a separate process that works only when asked. Only it has PyTorch."""

from __future__ import annotations

import subprocess


class TorchProcess:
    """A script that runs under another Python.

    It prints "ready", and then a line of numbers for every line that it reads.

    Args:
        python: a Python that has PyTorch and whatever else the script imports.
        arguments: the script and its flags.

    Raises:
        SystemExit: the script ended before it was ready.
    """

    def __init__(self, python: str, *arguments: str):
        self.process = subprocess.Popen(
            [python, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self.process.stdout.readline() != "ready\n":
            raise SystemExit(
                f"--torch-python {python}: the child failed, its message is above. That Python needs torch, "
                "torchvision and, for the comparisons with lightly, lightly and Pillow"
            )

    def ask(self, line: str = "go") -> list[float]:
        """Send a line and return the numbers with which the script answers."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return [float(word) for word in self.process.stdout.readline().split()]

    def close(self) -> None:
        """End the script by closing its input."""
        self.process.stdin.close()
        self.process.wait()
