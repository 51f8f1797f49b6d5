"""`client.keys`: who may use this workspace."""

from collections.abc import Iterator

from graft.answers import ApiKey, read, read_page
from graft.resources.lists import everything
from graft.transport import Transport, segment


class Keys:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> Iterator[ApiKey]:
        return everything(
            lambda cursor: read_page(ApiKey, self._transport.send("GET", "/keys", params={"cursor": cursor}).json())
        )

    def create(self, name: str) -> ApiKey:
        """A new key; its secret, `key`, is shown this once."""
        return read(ApiKey, self._transport.send("POST", "/keys", json={"name": name}).json())

    def delete(self, key_id: str) -> None:
        self._transport.send("DELETE", f"/keys/{segment(key_id)}")
