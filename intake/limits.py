"""How much of a stranger's upload is looked at before it is refused."""

from dataclasses import dataclass

MIB, GIB = 1024**2, 1024**3


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults suit one machine; every field can be set by the installation."""

    max_archive_bytes: int = 20 * GIB
    max_unpacked_bytes: int = 50 * GIB
    max_files: int = 200_000
    max_ratio: float = 200  # unpacked : packed, of one entry of a zip or of a whole tar.gz
    ratio_floor_bytes: int = 4 * MIB  # below this a high ratio is a blank bitmap, not a bomb
    max_name_bytes: int = 255  # of one component
    max_path_bytes: int = 1024
    max_depth: int = 32
    max_item_bytes: int = 64 * MIB
    max_pixels: int = 50_000_000  # Pillow itself stops at 89 million
    min_side: int = 4
    max_aspect: float = 50
    max_frames: int = 1
    max_metadata_bytes: int = 4 * MIB
    max_label_chars: int = 200
    max_findings: int = 10_000
    max_model_header_bytes: int = 16 * MIB
    max_tensors: int = 100_000
