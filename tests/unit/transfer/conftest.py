"""A pack and a source that the tests of training share; neither is ever written to."""

from collections.abc import Callable
from pathlib import Path

import pytest

from domain.lot import TeacherFiles
from tests.toys import make_recipe, write_pack, write_source


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("toy") / "pack")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("toy") / "source.safetensors")


@pytest.fixture
def teach() -> Callable[[Path], TeacherFiles]:
    """A teacher for three classes, of another backbone than the student's."""

    def write(path: Path) -> TeacherFiles:
        write_source(path, "tiny_resnet", n_classes=3, seed=5)
        return TeacherFiles(weights=str(path), recipe=make_recipe("tiny_resnet"))

    return write
