"""Short texts that people type and that logs, file names and databases must survive."""

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, StringConstraints


def check_printable(text: str) -> str:
    """No control characters (NUL breaks Postgres, line breaks forge log lines) and no lone surrogates."""
    bad = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if bad is not None:
        raise ValueError(f"the character U+{ord(bad):04X} is not allowed here")
    return text


Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), AfterValidator(check_printable)
]
