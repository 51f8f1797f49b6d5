"""Identifiers: a prefix that tells the noun, 48 bits of time so that ids sort by age, 80 random bits."""

import secrets
import time

PREFIXES = {
    "workspace": "ws", "key": "key", "dataset": "ds", "upload": "up", "source": "src",
    "job": "job", "lot": "lot", "trial": "tr",
}  # fmt: skip


def new_id(noun: str) -> str:
    """`new_id("job")` -> `job_0193c1f2a4d1…`; 28 hexadecimal digits behind the prefix."""
    return f"{PREFIXES[noun]}_{int(time.time() * 1000):012x}{secrets.token_hex(8)}"
