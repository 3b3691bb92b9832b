"""One table, one row per ATen operator."""
