import socket
import threading
from pathlib import Path

import pytest

from domain.errors import Invalid
from store.queue import (
    HANDLERS,
    CeleryDoorbell,
    LocalDoorbell,
    celery_app,
    doorbell_folder,
    listen_local,
    open_doorbell,
)
from store.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


def test_nobody_listens_and_nothing_happens(settings: Settings) -> None:
    open_doorbell(settings).wake("advance", "job_1")


def test_everybody_who_listens_hears_each_ring_once(settings: Settings) -> None:
    bell = open_doorbell(settings)
    with listen_local(settings) as one, listen_local(settings, ["control"]) as two:
        for handler, row_id in (("advance", "job_1"), ("run_lot", "lot_1"), ("advance", "job_1"), ("advance", "job_2")):
            bell.wake(handler, row_id)
        assert one.wait(5) == [("advance", "job_1"), ("run_lot", "lot_1"), ("advance", "job_2")]
        assert two.wait(5) == [("advance", "job_1"), ("advance", "job_2")]
        assert one.wait(0) == []


def test_a_ring_ends_a_wait(settings: Settings) -> None:
    with listen_local(settings) as listener:
        heard: list[tuple[str, str]] = []
        waiting = threading.Thread(target=lambda: heard.extend(listener.wait(30)))
        waiting.start()
        open_doorbell(settings).wake("prepare_dataset", "ds_1")
        waiting.join(10)
    assert heard == [("prepare_dataset", "ds_1")]


def test_a_listener_that_died_is_forgotten(settings: Settings) -> None:
    listener = listen_local(settings)
    listener._socket.close()  # as by a kill: the file stays
    assert listener.path.exists()
    with listen_local(settings) as alive:
        open_doorbell(settings).wake("advance", "job_1")
        assert alive.wait(5) == [("advance", "job_1")]
    assert not listener.path.exists()
    assert list(listener.path.parent.iterdir()) == []


def test_a_listener_that_does_not_read_holds_up_nobody(settings: Settings) -> None:
    with listen_local(settings) as listener:
        bell = open_doorbell(settings)
        for n in range(2000):
            bell.wake("advance", f"job_{n}")
        assert listener.wait(5)[0] == ("advance", "job_0")


def test_noise_is_no_ring(settings: Settings) -> None:
    with listen_local(settings) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        for noise in (b"", b"\xff", b"[]", b"[1, 2]", b'["no_such", "a"]', b'{"a": 1}', b"[" * 3000):
            stranger.sendto(noise, str(listener.path))
        LocalDoorbell(settings.home).wake("advance", "job_1")
        assert listener.wait(5) == [("advance", "job_1")]


def test_a_home_too_long_for_a_socket_gets_a_short_stand_in(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / ("x" * 120))
    assert doorbell_folder(settings.home) != doorbell_folder(tmp_path / ("y" * 120))
    with listen_local(settings) as listener:
        open_doorbell(settings).wake("advance", "job_1")
        assert listener.wait(5) == [("advance", "job_1")]
        folder = listener.path.parent
    folder.rmdir()


@pytest.mark.parametrize("redis_url", [None, "redis://127.0.0.1:9/0"])
def test_an_unknown_handler_is_refused(tmp_path: Path, redis_url: str | None) -> None:
    bell = open_doorbell(Settings(home=tmp_path, redis_url=redis_url))
    with pytest.raises(Invalid, match="prepare_dataset"):
        bell.wake("prepare", "ds_1")


def test_a_broker_that_is_away_is_no_error(tmp_path: Path) -> None:
    bell = open_doorbell(Settings(home=tmp_path, redis_url="redis://127.0.0.1:9/0"))
    assert isinstance(bell, CeleryDoorbell)
    bell.wake("advance", "job_1")
    assert not bell.check()


def test_every_handler_has_a_route(tmp_path: Path) -> None:
    conf = celery_app(Settings(home=tmp_path, redis_url="redis://127.0.0.1:9/0")).conf
    assert {name.removeprefix("graft."): route["queue"] for name, route in conf.task_routes.items()} == HANDLERS
    assert conf.task_acks_late is False
    assert conf.result_backend is None
    assert conf.accept_content == ["json"]
    assert conf.worker_disable_prefetch is True
    with pytest.raises(Invalid, match="GRAFT_REDIS_URL"):
        celery_app(Settings(home=tmp_path))
