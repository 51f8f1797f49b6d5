"""Ways to make one predictor of several trained networks, chosen on val.

A file of this folder is a way, its name is the registered one, and it says

    combine(candidates, evaluate, *, ...) -> NamedTuple      evaluate(combined) -> float on val, larger is better
"""
