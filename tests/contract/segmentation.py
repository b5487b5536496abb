"""Segmentation's contract: squares of scenes, a quarter of whose pixels is padding that counts nowhere."""

SMALL = {"fcn.channels": 16, "annotated.crop": 32}
