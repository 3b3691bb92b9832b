"""What keeps a device clean: one shell script there that owns our folder, and ends all of it when we are gone.

It makes the folder, says where it lies, and waits for its input to end: on a close, on a lost connection, and when
this process or machine dies. Then it kills what still works in the folder (found by working folder, as Linux and
Android tell it) and removes it. A keeper that died itself, with its device, is found by the next one: a folder's name
holds its keeper's process.
"""

from __future__ import annotations

import re
import shlex

NAME = "sparsecc-keeper"
BEAT_SECONDS = 20.0
"""How often a connection says that it is there."""
SILENT_SECONDS = 300
"""Without a word for so long, as when a cable is pulled, the other side counts as gone."""

_ENDING = r"""
workers() {
  ls -l /proc/[0-9]*/cwd 2>/dev/null | sed -n "s|.* /proc/\([0-9]*\)/cwd -> $1\( (deleted)\)\{0,1\}\$|\1|p"
}
stop() { for worker in $(workers "$1"); do kill -9 "$worker" 2>/dev/null; done; }
end() { stop "$1"; rm -rf "$1"; }
"""
"""POSIX shell, with what toybox and busybox have. $1 is a folder without links in its path."""

_KEEPER = (
    _ENDING
    + r"""
umask 077
base=$(cd "${1:-${TMPDIR:-/tmp}}" && pwd -P) || exit 1
lives() { { tr '\0' ' ' <"/proc/$1/cmdline" || ps -p "$1" -o args=; } 2>/dev/null | grep -q sparsecc-keeper; }
for left in "$base"/sparsecc-[0-9]*.*; do
  pid=${left##*/sparsecc-}
  if [ -d "$left" ] && [ -O "$left" ] && ! lives "${pid%%.*}"; then end "$left"; fi
done
folder=$(mktemp -d "$base/sparsecc-$$.XXXXXXXXXX") || exit 1
trap 'end "$folder"' EXIT
trap 'exit' HUP INT TERM PIPE
echo "folder=$folder"
limit=
if timeout 5 true 2>/dev/null; then limit="timeout $2"; fi
while [ -n "$($limit dd bs=1 count=1 2>/dev/null)" ]; do :; done
"""
)

_FOLDER = re.compile(r"^folder=(/[A-Za-z0-9._/-]+/sparsecc-[0-9]+\.[A-Za-z0-9]+)$", re.MULTILINE)


def keeper_command(base: str = "") -> str:
    """The keeper as a line for a device's shell; its folder is made in `base`, by default in its $TMPDIR or /tmp."""
    return shlex.join(["sh", "-c", _KEEPER, NAME, base, str(SILENT_SECONDS)])


def stop_command(folder: str) -> str:
    """Kills whatever works in a keeper's folder, as a line for a device's shell."""
    return shlex.join(["sh", "-c", f'{_ENDING}stop "$1"', NAME + "-stop", folder])


def folder_in(said: str) -> str | None:
    """The folder that a keeper named, among what a login shell may print before; None while it has not."""
    found = _FOLDER.search(said)
    return found[1] if found else None
