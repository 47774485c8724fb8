"""The training loop, its clock, its checkpoints."""
