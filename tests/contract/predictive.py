"""Predictive learning's contract: narrow, so that no unit lies so near to zero that rounding switches it."""

SMALL = {"model.width": 0.125}
