"""What `config.views` says: the named views of an image, each a recipe of its own, without a pixel or a draw.

A view holds what differs from `config.augment`, its `size` and `count`, and in `of` the view whose crop it
shares:

    views=dict(one=dict(), two=dict(blur_probability=0.1, solarize_probability=0.2))       # a recipe each
    views=dict(large=dict(count=2), small=dict(count=6, size=96, max_area=0.14))           # sizes and counts
    views=dict(patches=dict(size=224), tokens=dict(size=112, of="patches"))                # one crop, two sizes
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssljax.config import view_names

TAKEN = ("image", "label", "index", "copy", "mask", "boxes")  # entries of a batch that are no view
GEOMETRY = ("crop", "min_area", "max_area", "aspect", "flip", "rotate", "shift", "zoom", "shear")


class View(NamedTuple):
    """One entry of `config.views`.

    Attributes:
        name: its key.
        augment: its recipe, `config.augment` with what the view overrides.
        size: side in pixels.
        count: how many views it stands for.
        first: the number of the first of them, from which its random key is folded; the others follow. With
            `of` these are the numbers of the view named there, so that all that is drawn is the same.
    """

    name: str
    augment: ConfigDict
    size: int
    count: int
    first: int


def resolved(config: ConfigDict) -> tuple[View, ...]:
    """The views in the order of `config.views`.

    A view with `of` starts from the recipe of the view it names; what it overrides itself (size,
    interpolation, mean, ...) comes on top.

    Args:
        config: reads `views`, `augment` and `data.image_size`.

    Raises:
        ValueError: a view that cannot be (named).
    """
    stated = {
        name: {"size": config.data.image_size, "count": 1, "of": "", **config.views[name].to_dict()}
        for name in view_names(config)
    }
    if not stated:
        raise ValueError("config.views is empty: name at least one view, e.g. views=dict(one=dict())")
    firsts, drawn = {}, 0
    for name, view in stated.items():
        _check(name, view, stated)
        if not view["of"]:
            firsts[name] = drawn
            drawn += view["count"]
    return tuple(
        View(
            name,
            _recipe(config.augment, stated, name),
            view["size"],
            view["count"],
            firsts[view["of"] or name],
        )
        for name, view in stated.items()
    )


def _check(name: str, view: Mapping[str, Any], stated: Mapping[str, Mapping[str, Any]]) -> None:
    place = f"config.views.{name}"
    if name in TAKEN:
        raise ValueError(
            f"{place}: a batch has another entry of that name; call the view something other "
            f"than {', '.join(TAKEN)}"
        )
    for key in ("size", "count"):
        if view[key] < 1:
            raise ValueError(
                f"{place}.{key}={view[key]}: it must be at least 1; leave the view out if it is not wanted"
            )
    if not view["of"]:
        return
    partners = [other for other, values in stated.items() if not values["of"]]
    if view["of"] not in partners:
        raise ValueError(
            f"{place}.of={view['of']!r} is not a view with a crop of its own. Use one of: "
            f"{', '.join(partners) or '(there is none)'}"
        )
    count = stated[view["of"]]["count"]
    if view["count"] != count:
        raise ValueError(
            f"{place}.count={view['count']}, but {view['of']!r}, whose crops it shares, has "
            f"count {count}: set {place}.count={count}"
        )
    own = [key for key in GEOMETRY if key in view]
    if own:
        raise ValueError(
            f"{place}.{own[0]}={view[own[0]]!r} does not go with of={view['of']!r}: a shared "
            f"crop is that view's. Set config.views.{view['of']}.{own[0]}, or leave `of` out"
        )


def _recipe(augment: ConfigDict, stated: Mapping[str, Mapping[str, Any]], name: str) -> ConfigDict:
    """The recipe of a view.

    `config.augment`, then what its partner overrides, then what it overrides itself.
    """
    recipe = augment.copy_and_resolve_references().unlock()
    partner = stated[name]["of"]
    for view in [*([stated[partner]] if partner else []), stated[name]]:
        recipe.update({key: value for key, value in view.items() if key not in ("size", "count", "of")})
    return recipe.lock()


def evaluation_resize(augment: ConfigDict) -> str:
    """How images are resized for evaluation: as the crop is, and bicubic beside a warp, which names no kind."""
    return "bicubic" if augment.crop == "affine" else augment.interpolation


def total(config: ConfigDict) -> int:
    """How many views are drawn per image: those that share the crop of another do not count."""
    return max(view.first + view.count for view in resolved(config))


def host_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Shapes per example of the uint8 crops that the host delivers where data.crop_on="host".

    Returns:
        image: (V, S, S, C), all views in order, where they have one size; where sizes differ
        (count, size, size, C) by the view's name.
    """
    views, channels = resolved(config), config.data.channels
    if len({view.size for view in views}) == 1:
        return {"image": (sum(view.count for view in views), views[0].size, views[0].size, channels)}
    return {view.name: (view.count, view.size, view.size, channels) for view in views}
