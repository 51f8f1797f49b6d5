"""Ids in paths. One of the wrong shape is as unknown as a missing one: 404, and it never reaches the database."""

import re
from collections.abc import Callable
from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator

from domain.errors import NotFound
from domain.ids import PREFIXES

_EXAMPLE = "0193c1f2a4d10f2b3c4d5e6f7081"


def _shaped(noun: str) -> Callable[[str], str]:
    shape = re.compile(rf"{PREFIXES[noun]}_[0-9a-z]{{1,36}}")

    def check(value: str) -> str:
        if shape.fullmatch(value) is None:
            raise NotFound(f"{noun}_not_found", f"there is no such {noun} in this workspace")
        return value

    return check


DatasetId = Annotated[str, Path(examples=[f"ds_{_EXAMPLE}"]), AfterValidator(_shaped("dataset"))]
UploadId = Annotated[str, Path(examples=[f"up_{_EXAMPLE}"]), AfterValidator(_shaped("upload"))]
SourceId = Annotated[str, Path(examples=[f"src_{_EXAMPLE}"]), AfterValidator(_shaped("source"))]
JobId = Annotated[str, Path(examples=[f"job_{_EXAMPLE}"]), AfterValidator(_shaped("job"))]
TrialId = Annotated[str, Path(examples=[f"tr_{_EXAMPLE}"]), AfterValidator(_shaped("trial"))]
KeyId = Annotated[str, Path(examples=[f"key_{_EXAMPLE}"]), AfterValidator(_shaped("key"))]
