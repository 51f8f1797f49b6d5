"""The units that schedules thaw one by one: stages, or a stem and the blocks that the other stages are made of."""

from transfer.phase import Plan, covers


def units(plan: Plan, unit: str) -> tuple[str, ...]:
    """What came from the source, input side first. What has no start is no unit: it is trained with the head.

    The first stage is one unit whatever the others are: a stem's convolution and batch norm belong together.
    """
    found = plan.stages
    if unit == "block":
        found = (*plan.stages[:1], *(part for parts in plan.children[1:] for part in parts))
    return tuple(name for name in found if not covers(plan.new, name))


def novel(plan: Plan) -> tuple[str, ...]:
    """The head, and what surgery added or drew anew: N, the weights that start from nothing."""
    return ("head", *plan.new)
