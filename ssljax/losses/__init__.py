"""Pure functions from arrays to one value an example. No Flax, no NumPy, no state."""
