"""Pure functions from arrays to one value per example. No Flax, no NumPy, no state."""
