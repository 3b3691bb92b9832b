"""Latency: interleaved comparison with an interval, per-layer profiles, load time and memory."""
