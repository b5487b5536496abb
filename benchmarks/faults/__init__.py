"""Drills: what goes wrong with a run, done to real runs, and what must follow. See `__main__`."""
