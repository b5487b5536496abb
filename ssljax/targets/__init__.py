"""Typed pytrees that follow the network: pure functions from the old state to the new. No Flax, no NumPy."""
