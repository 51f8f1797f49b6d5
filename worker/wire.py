"""Messages between a worker and its trial process: JSON over a socket pair, one model per kind."""

import json
from multiprocessing.connection import Connection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from domain.lot import FinishOrder, LotOrder
from domain.trial import Report, TrialOutcome

Wish = Literal["go", "pause", "stop", "cancel"]


class Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hello(Message):
    """First words of a trial process: what it found on this machine."""

    kind: Literal["hello"] = "hello"
    facts: dict[str, str | int | float | bool]


class RunLot(Message):
    kind: Literal["run_lot"] = "run_lot"
    order: LotOrder
    resume_every_s: float


class ProbeLot(Message):
    """Take a few steps of each trial and say what they cost; rank the sources of some by their features, and describe
    the dataset as the best of them sees it.

    `export`: rehearse the export of the bundle too. A trial that takes no step within `limit_s` is given up.
    """

    kind: Literal["probe"] = "probe"
    order: LotOrder
    n_steps: int = 4
    export: bool = False
    limit_s: float | None = None
    ranked: tuple[str, ...] = ()  # trials


class Finish(Message):
    kind: Literal["finish"] = "finish"
    order: FinishOrder


class Wishes(Message):
    """What the parent wants of a trial from the next step on."""

    kind: Literal["wishes"] = "wishes"
    trial_id: str
    wish: Wish


class Alive(Message):
    """A sign of life from work that has nothing else to tell yet."""

    kind: Literal["alive"] = "alive"


class FirstStep(Message):
    kind: Literal["first_step"] = "first_step"
    trial_id: str
    at: float  # seconds since 1970


class Reported(Message):
    kind: Literal["reported"] = "reported"
    report: Report


class Resumable(Message):
    """A resume point lies in `folder`, whole."""

    kind: Literal["resumable"] = "resumable"
    trial_id: str
    folder: str


class Ended(Message):
    kind: Literal["ended"] = "ended"
    outcome: TrialOutcome


class Done(Message):
    """The order is done; `body` is what a probe or a finish found. A process that is `worn` should have no further."""

    kind: Literal["done"] = "done"
    body: dict[str, object] = Field(default_factory=dict)
    worn: bool = False


class Refused(Message):
    """The order could not be carried out: a domain error of the child, which may be `worn` as well."""

    kind: Literal["refused"] = "refused"
    code: str
    detail: str
    worn: bool = False


ToChild = Annotated[RunLot | ProbeLot | Finish | Wishes, Field(discriminator="kind")]
FromChild = Annotated[
    Hello | Alive | FirstStep | Reported | Resumable | Ended | Done | Refused, Field(discriminator="kind")
]
_to_child: TypeAdapter[ToChild] = TypeAdapter(ToChild)
_from_child: TypeAdapter[FromChild] = TypeAdapter(FromChild)


def send(connection: Connection, message: Message) -> None:
    # NaN and infinities travel as they are; Pydantic's own JSON would make null of them, which is no number.
    connection.send_bytes(json.dumps(message.model_dump()).encode())


def receive_order(connection: Connection) -> ToChild:
    """Raises EOFError when the parent is gone."""
    return _to_child.validate_json(connection.recv_bytes())


def receive_news(connection: Connection) -> FromChild:
    """Raises EOFError when the child is gone."""
    return _from_child.validate_json(connection.recv_bytes())
