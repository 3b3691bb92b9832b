"""The machine: memory, caches, temporary folders."""
