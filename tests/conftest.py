"""What every test may ask for: the reference models, material from outside, optional libraries."""

from __future__ import annotations

import importlib.util
import os
import shutil

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: the suite runs in parallel already

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.sshd import Server

ROOT = Path(__file__).resolve().parent.parent
# No test goes by the clock: the machine may be busy.
settings.register_profile("clockless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("clockless")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("rtx") and importlib.util.find_spec("tensorrt_rtx_bindings") is None:
            item.add_marker(pytest.mark.skip(reason="needs the extra: pip install 'sparsecc[tensorrt-rtx]'"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The small trained reference models."""
    return ROOT / "models"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Test material that is not in the repository: $SPARSECC_SHARED, or ../shared beside the repository."""
    folder = Path(os.environ.get("SPARSECC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no test material at {folder}: set SPARSECC_SHARED to its folder")
    return folder


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """What a user starts from: the model and its data."""
    made = tmp_path / "user"
    made.mkdir()
    shutil.copy(ROOT / "models" / "digits_resnet.onnx", made / "model.onnx")
    for name in ("digits.py", "digits.npz"):
        shutil.copy(ROOT / "models" / name, made)
    return made


@pytest.fixture
def user_home(tmp_path: Path) -> Iterator[Path]:
    """A home in which the board of the tutorial is an SSH server on the loopback."""
    pytest.importorskip("asyncssh", reason="needs the extra: pip install 'sparsecc[board]'")
    from tests.sshd import running_sshd

    sessions = tmp_path / "sshd"
    sessions.mkdir()
    with running_sshd(sessions) as server:
        yield server.home(tmp_path / "home")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Server]:
    """A board in reach over SSH, on the loopback, with a stand-in for trtexec."""
    pytest.importorskip("asyncssh")
    from tests.trtexec_stand_in import running_board

    with running_board(tmp_path) as server:
        yield server


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))
