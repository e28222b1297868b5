"""Which class a flow classifier takes for which: picture and chart of a validation."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from attacks.report.lettering import drawn_class, families, missing, no_font
from lightning_modules.flow_classification import FlowClassification
from lightning_modules.run_folder import RunFolder

COUNTED = 30
"""Up to so many classes each cell of the picture carries its number."""
LONGEST = 24
"""Letters of a class's name."""


class ConfusionMatrix(Callback):
    """The stack-level confusion matrix after each validation of a FlowClassification: in the run folder's `pictures/`
    and, with a W&B logger, as picture and chart in the run."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, FlowClassification):
            raise TypeError(f"ConfusionMatrix is for FlowClassification, and this is {type(pl_module).__name__}")
        counts = pl_module.confusion.compute()  # in every process: it sums over them
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        classes = list(trainer.datamodule.classes)  # type: ignore[attr-defined]
        path = RunFolder(trainer.default_root_dir).pictures / f"confusion-epoch-{trainer.current_epoch:03d}.png"
        draw(counts, classes, path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/confusion", [str(path)], caption=[f"epoch {trainer.current_epoch}"])
                _log_chart(logger, counts, classes, trainer.global_step)


def draw(counts: Tensor, classes: list[str], path: Path) -> None:
    """Counts (C, C), row = class, column = prediction, as a picture: each row's shares as grey, its counts as text."""
    numbers = counts.cpu().numpy()
    share = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    side = 2 + 0.35 * len(classes) if len(classes) <= COUNTED else 2 + 0.16 * len(classes)
    if signs := missing(classes):
        warnings.warn(f"{no_font(signs)}.", stacklevel=2)  # Python says the same only once
    names = [drawn_class(classes, index, LONGEST) for index in range(len(classes))]
    # Class names are the data set's: a $ in one is no formula.
    with matplotlib.rc_context({"font.family": families(classes), "text.parse_math": False, "text.usetex": False}):
        figure = _figure(numbers, share, names, side)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _figure(numbers: np.ndarray, share: np.ndarray, names: list[str], side: float) -> Figure:
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
    small = 8 if len(names) <= COUNTED else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=small)
    axes.set_yticks(range(len(names)), names, fontsize=small)
    axes.set_xlabel("prediction")
    axes.set_ylabel("class")
    if len(names) <= COUNTED:
        for row, column in np.argwhere(numbers):
            ink = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(numbers[row, column]), ha="center", va="center", color=ink, fontsize=small)
    return figure


def _log_chart(logger: WandbLogger, counts: Tensor, classes: list[str], step: int) -> None:
    """W&B's own confusion chart, which `wandb.plot.confusion_matrix` makes from single predictions."""
    import wandb

    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    rows = [
        [actual, predicted, int(counts[i, j])]
        for i, actual in enumerate(classes)
        for j, predicted in enumerate(classes)
    ]
    chart = wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=rows),
        fields={str(name): str(name) for name in columns},
        string_fields={"title": "stack level"},
    )
    logger.experiment.log({"val/confusion_chart": chart, "trainer/global_step": step})
