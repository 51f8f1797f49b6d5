"""`python -m api`: the HTTP server of this installation, until SIGINT or SIGTERM."""

import argparse
import logging
import os
import signal
import sys
import threading
from types import FrameType

import uvicorn

from api.app import create_app
from api.site import Site
from domain.errors import GraftError
from store.settings import load

GRACE_S = 10  # for requests in progress
LAST_S = 4  # of it, for breaking off uploads that would not end in time


class Server(uvicorn.Server):
    """Says where it listens, and ends the event streams when it is told to stop."""

    def __init__(self, config: uvicorn.Config, site: Site) -> None:
        super().__init__(config)
        self._site = site

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.should_exit or not self.servers:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"Graft API listening on http://{shown}:{port}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._site.stopping.set()
        last_call = threading.Timer(GRACE_S - LAST_S, self._site.closing.set)
        last_call.daemon = True
        last_call.start()
        super().handle_exit(sig, frame)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument("--host", help="address to listen on (GRAFT_HOST)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for a free one (GRAFT_PORT)")
    parser.add_argument("--watch-parent", action="store_true", help="stop when standard input ends")
    given = parser.parse_args(arguments)
    if given.watch_parent:
        threading.Thread(target=_watch, daemon=True).start()
    try:
        settings = load()
        asked = {name: value for name, value in vars(given).items() if name != "watch_parent" and value is not None}
        settings = settings.model_copy(update=asked)
        logging.basicConfig(
            level=settings.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        app = create_app(settings)
    except GraftError as error:
        print(error, file=sys.stderr)
        return 2
    config = uvicorn.Config(
        app, host=settings.host, port=settings.port, log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_keep_alive=30, timeout_graceful_shutdown=GRACE_S, lifespan="on", ws="none",
    )  # fmt: skip
    server = Server(config, app.state.site)
    server.run()
    return 0 if server.started else 1


def _watch() -> None:
    """The parent holds the other end of standard input; when it dies, however it dies, this ends."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
