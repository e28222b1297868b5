"""What a classifier must be to be trained and attacked here: a module that is built for a number of classes."""

from typing import Protocol

from torch import nn


class ClassifierFactory(Protocol):
    """A classifier class with all its arguments but `num_classes`, which the dataset or a checkpoint decides.

    In a YAML it is the class and its other arguments. What it makes maps a flow stack (B, 2(T-1), h, w), in pixels
    within ±20, to logits (B, num_classes) and normalises the flow itself.
    """

    def __call__(self, *, num_classes: int) -> nn.Module: ...
