"""The parts of a row in the table of keys: a default, the valid values, and when the key is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

Value = bool | int | float | str | tuple
Read = Callable[[str], Any]  # gives the value of a key in the config at hand, or its default

# The names that the conditions of the table know. Keys of other methods, networks and optimizers are taken as
# a config states them.
METHODS = ("simclr", "moco", "byol", "deepcluster", "deit", "supervised", "linear")
OPTIMIZERS = (
    "lars",
    "sgd",
    "adamw",
    "torch_sgd",
    "torch_adamw",
    "deepcluster_sgd",
    "deepcluster_probe_sgd",
    "timm_adamw",
    "timm_sgd",
)
FAMILIES = {
    "resnet": "resnet",
    "regnety": "regnet",
    "vit": "vit",
    "alexnet": "alexnet_vgg",
    "vgg16": "alexnet_vgg",
}


class Range(NamedTuple):
    """An interval of numbers. `open_low` and `open_high` exclude its ends."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value lies in the interval. NaN lies in none."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        left = "(" if self.open_low else "["
        right = ")" if self.open_high else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


COUNT = Range(1)
NATURAL = Range(0)
NOT_NEGATIVE = Range(0)
POSITIVE = Range(0, open_low=True)
UNIT = Range(0, 1)
SHARE = Range(0, 1, open_low=True)
BELOW_ONE = Range(0, 1, open_high=True)
BETWEEN_0_AND_1 = Range(0, 1, open_low=True, open_high=True)


class OneOf(NamedTuple):
    """A choice between values."""

    values: tuple

    def holds(self, value: Value) -> bool:
        """Whether the value is one of them."""
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.values)


class When(NamedTuple):
    """The condition on other settings under which a key is read.

    Attributes:
        text: the condition in words; "" for always.
        holds: whether it is met; None if the table cannot tell, because it does not know the method, the
            network or the optimizer.
    """

    text: str
    holds: Callable[[Read], bool | None]

    def __and__(self, other: When) -> When:
        def both(read: Read) -> bool | None:
            found = (self.holds(read), other.holds(read))
            if False in found:
                return False
            return None if None in found else True

        return When(f"{_bracketed(self.text)} and {_bracketed(other.text)}", both)

    def __or__(self, other: When) -> When:
        def either(read: Read) -> bool | None:
            found = (self.holds(read), other.holds(read))
            if True in found:
                return True
            return None if None in found else False

        return When(f"{self.text}, or {other.text}", either)


def _bracketed(text: str) -> str:
    return f"({text})" if ", or " in text else text


ALWAYS = When("", lambda read: True)


class Key(NamedTuple):
    """One row of the table.

    Attributes:
        name: dotted; `*` stands for the name of any view.
        default: the default value, which also fixes the type.
        meaning: one line for readers.
        valid: the valid values, or valid entries of a tuple; None: anything of the type.
        when: the condition under which the key is read.
    """

    name: str
    default: Value
    meaning: str
    valid: Range | OneOf | None = None
    when: When = ALWAYS


def family(network: str) -> str:
    """The family of a network: resnet, regnet, vit or alexnet_vgg; "" for an unknown network."""
    if network in FAMILIES:
        return FAMILIES[network]
    word = network.split("_")[0]
    return FAMILIES.get(word, FAMILIES.get(word.rstrip("0123456789"), ""))


def method(*names: str) -> When:
    """The method is one of these."""

    def holds(read: Read) -> bool | None:
        return read("method") in names if read("method") in METHODS else None

    return When(f"method is {' or '.join(names)}", holds)


def optimizer(*names: str) -> When:
    """The optimizer is one of these."""

    def holds(read: Read) -> bool | None:
        return read("optim.name") in names if read("optim.name") in OPTIMIZERS else None

    return When(f"optim.name is {' or '.join(names)}", holds)


def network(section: str, *families: str) -> When:
    """The network of this section belongs to one of these families."""

    def holds(read: Read) -> bool | None:
        found = family(read(f"{section}.name"))
        return found in families if found else None

    return When(f"{section}.name belongs to the family {' or '.join(families)}", holds)


def equal(key: str, *values: Value) -> When:
    """The key has one of these values."""
    words = " or ".join(str(value) for value in values)
    return When(f"{key} is {words}", lambda read: read(key) in values)


def other_than(key: str, value: Value) -> When:
    """The key has any value but this one."""
    return When(f"{key} is not {value!r}", lambda read: read(key) != value)


def above(key: str, limit: float) -> When:
    """The key is larger than the limit."""
    return When(f"{key} is above {limit:g}", lambda read: read(key) > limit)
