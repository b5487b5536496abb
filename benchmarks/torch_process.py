"""PyTorch's side of a comparison: a process of its own, which works only while it is asked. Nothing else imports PyTorch."""

from __future__ import annotations

import subprocess


class TorchProcess:
    """A script started with another Python. It prints "ready", and then a line of numbers for every line that it reads.

    Args:
        python: has PyTorch and what else the script imports.
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
                f"--torch-python {python}: the child failed, its message is above; torch, torchvision and, against lightly, "
                "lightly and Pillow are needed there"
            )

    def ask(self, line: str = "go") -> list[float]:
        """The numbers with which the script answers."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return [float(word) for word in self.process.stdout.readline().split()]

    def close(self) -> None:
        """Ends the script by closing its input."""
        self.process.stdin.close()
        self.process.wait()
