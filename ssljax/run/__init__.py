"""A training run: its folder, checkpoints, loop, hosts and health."""
