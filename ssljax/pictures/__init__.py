"""What `ssljax report` draws, and what it keeps of a run to draw from."""
