"""A pack and a source that the tests of training share; neither is ever written to."""

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from domain.lot import TeacherFiles
from tests.toys import make_recipe, write_pack, write_source
from transfer.phase import Outcome, Phase


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


@pytest.fixture
def carried_out() -> Callable[[Generator[Phase, Outcome, None]], list[Phase]]:
    """All phases of a schedule, each answered as if it had gone well."""

    def collect(phases: Generator[Phase, Outcome, None]) -> list[Phase]:
        found = [next(phases)]
        while True:
            try:
                found.append(phases.send(Outcome(len(found) - 1, 1, 0.5, 1.0)))
            except StopIteration:
                return found

    return collect
