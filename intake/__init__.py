"""A folder or archive becomes a checked, split, packed dataset. numpy and Pillow; no torch, no database."""
