"""What a compiler says of a step that is never run: memory, FLOPs, collectives, for a slice that is not there."""
