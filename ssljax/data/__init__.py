"""From stored images to batches: sources, sampling, host crops in TensorFlow, device augmentation in JAX."""
