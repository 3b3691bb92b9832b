"""The latency gate of continuous integration."""
