"""Files that are written whole: no name that a stranger lays beside them leads elsewhere, and no draft stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from sparsecc.system.files import draft_in, replace_whole, write_whole


def test_a_draft_follows_no_link(tmp_path: Path) -> None:
    """Names that earlier versions used for drafts, laid out as links, in a folder of someone else."""
    victim, page = tmp_path / "victim", tmp_path / "page.html"
    victim.write_text("precious")
    (tmp_path / ".page.html.new").symlink_to(victim)
    write_whole(page, b"page")
    assert (victim.read_text(), page.read_text()) == ("precious", "page")


def test_a_file_of_our_choice_replaces_a_link(tmp_path: Path) -> None:
    victim, page = tmp_path / "victim", tmp_path / "page.html"
    victim.write_text("precious")
    page.symlink_to(victim)
    replace_whole(page, b"page")
    assert (victim.read_text(), page.read_text(), page.is_symlink()) == ("precious", "page", False)
    page.unlink()
    page.symlink_to(victim)
    write_whole(page, b"through")  # the user named this one
    assert (victim.read_text(), page.is_symlink()) == ("through", True)


KILLED = """
import os
from pathlib import Path
from sparsecc.system.files import draft_in
with draft_in(Path({folder!r})) as (draft, number):
    os.write(number, b"half")
    os.kill(os.getpid(), 9)
"""


def test_the_draft_of_a_killed_process_is_swept_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED.format(folder=str(tmp_path))], check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with draft_in(tmp_path) as (living, _):
        replace_whole(tmp_path / "a", b"a")
        assert sorted(tmp_path.iterdir()) == sorted([living, tmp_path / "a"])
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_many_writers_of_one_file_leave_one_whole(tmp_path: Path) -> None:
    texts = [bytes([65 + i]) * 200_000 for i in range(8)]

    def write(text: bytes) -> None:
        for _ in range(20):
            replace_whole(tmp_path / "a", text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in texts
    assert os.listdir(tmp_path) == ["a"]
