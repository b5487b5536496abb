"""A run while it lives: its folder, checkpoints, loop, hosts and health."""
