"""The Makefile's checks as nox sessions: each runs the target itself, in an environment that nox keeps."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types", "tests", "package"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def make(session: nox.Session, target: str) -> None:
    """Run a target of the Makefile, which installs what it needs into the session's environment."""
    session.run("make", target, f"VENV={session.virtualenv.location}", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, for faults and for format."""
    make(session, "lint")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict."""
    make(session, "types")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Every test that is not slow, on each Python."""
    make(session, "tests")


@nox.session(python=PYTHONS)
def package(session: nox.Session) -> None:
    """The wheel: what it holds, and that it installs and runs."""
    make(session, "package")


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """The wheel alone, with what it asks for: it compiles a model and verifies the bundle."""
    session.install(".")
    session.run("sparsecc", "compile", "models/digits_resnet.onnx", "--ratio", "0.5", "--no-measure",
                "--calib", "models/digits.py:calibration", "-o", f"{session.create_tmp()}/out", "--force")  # fmt: skip


@nox.session
def docs(session: nox.Session) -> None:
    """The site, strictly."""
    make(session, "docs")


@nox.session
def bench(session: nox.Session) -> None:
    """The runs behind the README's figures."""
    make(session, "bench")
