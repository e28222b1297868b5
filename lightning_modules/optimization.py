"""How a LightningModule here gets its optimizer: classes from the YAML, built on the parameters that are trained."""

from collections.abc import Iterable
from typing import Literal

from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn

Interval = Literal["epoch", "step"]


def configure(
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
    interval: Interval,
) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns, for the parameters that require a gradient.

    Args:
        interval: whether the scheduler counts epochs or optimizer steps.
    """
    built = optimizer([parameter for parameter in parameters if parameter.requires_grad])
    if lr_scheduler is None:
        return {"optimizer": built}
    scheduler = lr_scheduler(built)
    # Only Lightning's ReduceLROnPlateau has a metric to watch.
    monitor = getattr(scheduler, "monitor", None)
    return {"optimizer": built, "lr_scheduler": {"scheduler": scheduler, "interval": interval, "monitor": monitor}}
