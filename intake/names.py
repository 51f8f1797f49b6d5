"""Names inside archives: what is refused, how the rest is written, and what operating systems leave behind."""

import re
import unicodedata

from domain.errors import Invalid
from intake.limits import Limits

_DRIVE = re.compile(r"^[A-Za-z]:")
_JUNK_FOLDERS = frozenset({"__macosx", ".ipynb_checkpoints", ".git", "@eadir", "__pycache__"})
_JUNK_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".keep"})
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".7z", ".rar", ".zst")


def escape(text: str) -> str:
    """`text` with control, bidirectional and other unprintable characters written as \\u escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def clean(raw: str, limits: Limits) -> str:
    """The name as a relative path with single forward slashes; "" is the root. Invalid when it could mean harm."""
    if "\0" in raw:
        raise _refuse("archive_bad_name", raw, "holds a NUL byte")
    name = raw.replace("\\", "/")  # some Windows tools write backslashes
    if name.startswith("/") or _DRIVE.match(name):
        raise _refuse("archive_path_traversal", raw, "is an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refuse("archive_path_traversal", raw, "points outside the archive")
    if len(parts) > limits.max_depth:
        raise _refuse("archive_bad_name", raw, f"lies {len(parts)} folders deep, {limits.max_depth} are allowed")
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in parts]
    if max(sizes, default=0) > limits.max_name_bytes or sum(sizes) + len(sizes) > limits.max_path_bytes:
        raise _refuse("archive_bad_name", raw, f"is longer than {limits.max_name_bytes} bytes")
    return "/".join(parts)


def fold(name: str) -> str:
    """Equal for names that a file system without case, or with another Unicode form, would confuse."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def is_junk(name: str) -> bool:
    """Left behind by an operating system or an editor; nobody meant to upload it."""
    *folders, last = name.lower().split("/")
    return last in _JUNK_FILES or last.startswith("._") or not _JUNK_FOLDERS.isdisjoint([*folders, last])


def is_archive(name: str) -> bool:
    return name.lower().endswith(_ARCHIVES)


def _refuse(code: str, raw: str, why: str) -> Invalid:
    shown = escape(raw[:200])
    return Invalid(code, f"the archive names {shown!r}, which {why}", path=shown)
