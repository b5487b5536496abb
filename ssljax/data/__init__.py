"""From stored images to batches: sources, sampling, host crops (the only TensorFlow) and device augmentation in JAX."""
