"""The user's devices by name: one small YAML file in the config folder, private to the user."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsecc.errors import InputError, SystemFailureError
from sparsecc.system.files import replace_whole
from sparsecc.system.plain_yaml import read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def book_path() -> Path:
    """$XDG_CONFIG_HOME/sparsecc/devices.yaml, or ~/.config/sparsecc/devices.yaml."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(config) if os.path.isabs(config) else Path.home() / ".config"
    return base / "sparsecc" / "devices.yaml"


def read_book() -> dict[str, str]:
    """Name -> address. InputError when the file is no such mapping; none when there is no file."""
    path = book_path()
    if not os.path.lexists(path):
        return {}
    book = read_yaml(path, "book of devices", deepest=1, how="correct or remove it")
    pairs = book.items() if isinstance(book, dict) else [(None, None)]
    if not all(isinstance(one, str) for pair in pairs for one in pair):
        raise InputError(f"{path} must hold `name: address` lines; correct or remove it")
    return dict(pairs)


def add_device(name: str, address: str) -> None:
    """Keep an address under a name. InputError for a bad name or address."""
    from sparsecc.devices.device import parse_device

    if not NAME.fullmatch(name) or name == "local":
        raise InputError(
            f"'{name}' cannot name a device: use letters, digits, dots and dashes, and not 'local'"
        )
    parse_device(address)
    with _alone():
        _write_book({**read_book(), name: address})


def remove_device(name: str) -> str:
    """Forget a name and return its address. InputError for an unknown name."""
    with _alone():
        book = read_book()
        if name not in book:
            raise _unknown(name, book)
        address = book.pop(name)
        _write_book(book)
    return address


def address_of(device: str) -> str:
    """The address of a named device; an address is returned as it is. InputError for an unknown name."""
    if device == "local" or ":" in device:
        return device
    book = read_book()
    if device not in book:
        raise _unknown(device, book)
    return book[device]


def _unknown(device: str, book: dict[str, str]) -> InputError:
    known = ", ".join(["local", *sorted(book)])
    return InputError(
        f"no device is called '{device}': known are {known}; add it with `sparsecc devices add`"
    )


@contextmanager
def _alone() -> Iterator[None]:
    """No other command changes the book meanwhile; its folder is there."""
    folder = book_path().parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SystemFailureError(f"cannot write {folder}: {error.strerror}; check the folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _write_book(book: dict[str, str]) -> None:
    import yaml

    path = book_path()
    try:
        replace_whole(path, yaml.safe_dump(book).encode(), 0o600)
    except OSError as error:
        raise SystemFailureError(f"cannot write {path}: {error.strerror}; check the folder") from error
