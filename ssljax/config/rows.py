"""The parts of a row in the table of keys: a default, the valid values, and when the key is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

Value = bool | int | float | str | tuple
Read = Callable[[str], Any]  # gives the value of a key in the config at hand, or its default

# The names that the conditions of the table know. Keys of other methods, networks and optimizers are taken as
# a config states them.
METHODS = (
    "simclr",
    "moco",
    "byol",
    "deepcluster",
    "deit",
    "simclr_v2",
    "supervised",
    "linear",
    "dvae",
    "beit",
    "noisy_student",
    "cmc",
    "cpc",
    "multilabel",
    "detection",
    "segmentation",
    "predictive",
)
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
    "beit_adamw",
    "tf_rmsprop",
    "adam",
    "sgd_and_adam",
    "halving_sgd",
    "detectron_sgd",
)
FAMILIES = {
    "resnet": "resnet",
    "regnety": "regnet",
    "efficientnet": "efficientnet",
    "vit": "vit",
    "alexnet": "alexnet_vgg",
    "vgg16": "alexnet_vgg",
    "dvae": "dvae",
    "beit": "beit",
    "alexnet_half": "alexnet_half",
    "cpc": "cpc",
}


# The numbers that the devices compute with: int32 and float32.
LARGEST_WHOLE = 2**31 - 1
LARGEST = 3.4e38
SMALLEST = 1.2e-38  # above zero


class Range(NamedTuple):
    """An interval of numbers. `open_low` and `open_high` exclude its ends, `whole` excludes fractions."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def holds(self, value: Value) -> bool:
        """Whether the value lies in the interval. NaN, infinity and what 32 bits do not hold lie in none."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        if beyond(value, self):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "any number"
        if math.isinf(self.high):
            return f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        left = "(" if self.open_low else "["
        right = ")" if self.open_high else "]"
        high = f"{self.high:d}" if isinstance(self.high, int) else f"{self.high:g}"
        return f"{left}{self.low:g}, {high}{right}"


def beyond(value: Value, valid: Range) -> str:
    """How a number exceeds what the devices hold, as the rest of a sentence; "" if it does not."""
    if not isinstance(value, (int, float)):
        return ""
    if valid.whole:
        return f"at most {LARGEST_WHOLE}" if value > max(LARGEST_WHOLE, _finite(valid.high)) else ""
    if math.isnan(value) or abs(value) > LARGEST:
        return f"finite, up to {LARGEST:g}"
    tiny = valid.open_low and valid.low == 0 and 0 < value < SMALLEST
    return f"at least {SMALLEST:g}" if tiny else ""


def _finite(high: float) -> float:
    return 0 if math.isinf(high) else high


COUNT = Range(1, whole=True)
NATURAL = Range(0, whole=True)
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


class Text(NamedTuple):
    """Text that matches a regular expression.

    Attributes:
        words: the valid values in words.
        pattern: the expression, which the whole text must match.
    """

    words: str
    pattern: str

    def holds(self, value: Value) -> bool:
        """Whether the value is such a text."""
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.words


# Without control characters, and without the halves of characters that stand for bytes that are no UTF-8.
_PLAIN = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
LINE = Text("one line of text, up to 4000 characters", f"[^{_PLAIN}]{{0,4000}}")
WORD = Text("text without line breaks, not empty", f"[^{_PLAIN}]{{1,4000}}")
FILE_NAME = Text("a name without / and line breaks, up to 100 characters", f"[^/{_PLAIN}]{{0,100}}")


class Entries(NamedTuple):
    """A tuple of valid entries.

    Attributes:
        of: the valid values of an entry.
        count: how many entries there are; 0: any number.
        rising: whether no entry may be smaller than the one before it.
    """

    of: Range | OneOf | Text
    count: int = 0  # type: ignore[assignment]  # hides the method tuple.count, which nothing calls here
    rising: bool = False

    def holds(self, values: Value) -> bool:
        """Whether the entries are valid."""
        assert isinstance(values, (list, tuple))
        fits = all(self.of.holds(value) for value in values) and self.count in (0, len(values))
        return fits and (not self.rising or list(values) == sorted(values))

    def __str__(self) -> str:
        text = interval(self.of) + " in every entry"
        text += f", with {self.count} entries" if self.count else ""
        return text + (" in rising order" if self.rising else "")


def interval(valid: Range | OneOf | Text | Entries) -> str:
    """What is valid, as the rest of the sentence "it must be"."""
    text = f"one of {valid}" if isinstance(valid, OneOf) else str(valid)
    return text if text[0] not in "[(" else f"in {text}"


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
        valid: the valid values; None: any finite number, one line of text, or a tuple of words.
        when: the condition under which the key is read.
    """

    name: str
    default: Value
    meaning: str
    valid: Range | OneOf | Text | Entries | None = None
    when: When = ALWAYS


def family(network: str) -> str:
    """The family of a network, such as resnet or vit; "" for an unknown network."""
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
