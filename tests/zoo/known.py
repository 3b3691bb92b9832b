"""What is known not to work: which exporter fails on which entry, and which exports hold only fixed sizes."""

from __future__ import annotations

FAILURES: dict[tuple[str, str], str] = {}
"""(entry, exporter) -> why that exporter cannot export it."""

STATIC: dict[tuple[str, str], str] = {}
"""(entry, exporter) -> which dimension the exporter bakes ("batch", "size") and why. The rest stays free."""
