"""What a worker does: one file per command, top to bottom."""
