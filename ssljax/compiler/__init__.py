"""What the compiler says about a step without running it: memory, FLOPs and collectives on any TPU slice."""
