"""Work on untrusted files in a child process that can be killed, with a deadline and a memory limit.

A native library that parses a hostile file may crash, hang or eat all memory; no `except` helps against that.
So every such call runs in a child. `run` starts one for one task, or takes the one that its caller keeps (`kept`);
`Worker` serves several.
"""

from __future__ import annotations

from sparsecc.worker.asking import Answer, Exchange, Question, Reply, ask, nothing_held
from sparsecc.worker.parent import Event, Worker, kept, run

__all__ = ["Answer", "Event", "Exchange", "Question", "Reply", "Worker", "ask", "kept", "nothing_held", "run"]
