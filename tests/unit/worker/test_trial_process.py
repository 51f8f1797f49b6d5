"""Resume points that are written while training goes on."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from transfer import resume
from worker.trial_process import Saver
from worker.wire import Message, Resumable

FACTS = {"fingerprint": "of a trial"}


def test_a_point_is_what_training_was_when_it_was_saved(tmp_path: Path) -> None:
    told: list[Message] = []
    saver, weight = Saver(told.append), torch.zeros(1000, requires_grad=True)
    saver.save((FACTS, {"w": weight, "same": weight}), "tr_1", tmp_path / "point")
    with torch.no_grad():
        weight.fill_(1.0)  # the next step
    saver.settle()
    assert saver.idle
    assert told == [Resumable(trial_id="tr_1", folder=str(tmp_path / "point"))]
    point = resume.read(tmp_path / "point", "of a trial")
    assert point is not None
    assert point[1].keys() == {"w", "same"}
    assert not any(tensor.any() for tensor in point[1].values())


def test_training_goes_on_while_a_point_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes its time: `save` is back before anything is there."""
    told: list[Message] = []
    free, write = threading.Event(), resume.write

    def slow(*given: Any) -> None:
        assert free.wait(60)
        write(*given)

    monkeypatch.setattr(resume, "write", slow)
    saver = Saver(told.append)
    saver.save((FACTS, {"w": torch.zeros(3)}), "tr_1", tmp_path / "point")
    assert not saver.idle
    assert told == []
    free.set()
    saver.settle()
    assert told == [Resumable(trial_id="tr_1", folder=str(tmp_path / "point"))]


def test_what_could_not_be_written_is_told_to_whoever_waits(tmp_path: Path) -> None:
    told: list[Message] = []
    (tmp_path / "file").write_text("no folder")
    saver = Saver(told.append)
    saver.save((FACTS, {"w": torch.zeros(3)}), "tr_1", tmp_path / "file" / "point")
    with pytest.raises(NotADirectoryError):
        saver.settle()
    assert told == []
