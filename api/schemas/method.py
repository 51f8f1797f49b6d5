"""The catalogue over the wire."""

from pydantic import BaseModel, ConfigDict

from domain.catalogue import BackboneFacts, PartFacts, TaskFacts
from domain.space import Space


class Methods(BaseModel):
    """Everything a recipe can be made of, for clients to show: nothing of it is written twice."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "tasks": [{"name": "classification", "summary": "one label per image",
                               "objectives": ["log_loss", "accuracy"], "space": {}}],
                    "backbones": [],
                    "parts": [{"slot": "regularizer", "name": "l2_sp", "summary": "pull to the starting point",
                               "space": {"alpha": {"kind": "float", "low": 0.0001, "high": 1.0, "log": True,
                                                   "default": 0.01}},
                               "needs": ["start"], "clashes": [], "functions": ["loss"], "searched": True}],
                    "slots": ["surgery", "regularizer"], "samplers": ["tpe", "random"],
                    "pruners": ["extrapolation", "halving", "hyperband", "median", "none"],
                    "default_space": {"dimensions": [], "fixed": {"optimizer.name": "sgd"}},
                    "anchors": ["linear_probe", "fine_tuning", "l2_sp"],
                }
            ]
        }
    )  # fmt: skip

    tasks: list[TaskFacts]
    backbones: list[BackboneFacts]
    parts: list[PartFacts]
    slots: list[str]
    samplers: list[str]
    pruners: list[str]
    default_space: Space
    anchors: list[str]
