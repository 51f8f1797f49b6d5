"""One file per family of backbones; `models.build` finds them by name.

A family exposes `VARIANTS: dict[str, Variant]` (facts) and
`build(variant) -> Anatomy` (modules). Adding a family is one file.
"""
