"""Work on untrusted files in a child process that can be killed, with a deadline and a memory limit.

A native library that parses a hostile file may crash, hang or eat all memory; no `except` helps against that.
So every such call runs in a child. `run` starts one for one task; `Worker` keeps one warm for several.
"""

from __future__ import annotations

from sparsecc.worker.parent import Event, Worker, run

__all__ = ["Event", "Worker", "run"]
