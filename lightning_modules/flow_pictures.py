"""Pictures of what a flow network sees while it is fine-tuned."""

import cv2
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor
from torchvision.utils import flow_to_image, make_grid

from datamodules.batches import FlowPairBatch
from lightning_modules.run_folder import RunFolder


class FlowPictures(Callback):
    """Frame, estimated flow, target flow and their difference, one row a pair, after a validation: in the run folder's
    `pictures/` and, with a W&B logger, in the run.

    Args:
        pairs: how many pairs of the first validation batch.
        every_n_epochs: how often.
    """

    def __init__(self, *, pairs: int = 4, every_n_epochs: int = 1) -> None:
        self.pairs, self.every_n_epochs = pairs, every_n_epochs

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: FlowPairBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        wanted = batch_idx == 0 and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if not wanted or trainer.sanity_checking or not trainer.is_global_zero:
            return
        frames = batch.frames[: self.pairs]
        picture = draw(frames[:, 0], pl_module(frames)[:, 0], batch.flow[: self.pairs, 0])
        path = RunFolder(trainer.default_root_dir).pictures / f"epoch-{trainer.current_epoch:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(picture.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("val/flow", [str(path)], caption=["frame, estimated, target, difference"])


def draw(frames: Tensor, estimated: Tensor, target: Tensor) -> Tensor:
    """Frames (N, 3, H, W) in [0, 1], flows (N, 2, H, W) -> uint8 picture (3, h, w), a row of four for each.

    `flow_to_image` scales each call by its longest vector: one call draws all, so that colours can be compared.
    """
    flows = torch.stack((estimated, target, estimated - target), 1).detach().float().cpu()
    drawn = flow_to_image(flows.flatten(0, 1)).unflatten(0, flows.shape[:2])
    shown = (frames.detach().float().cpu() * 255).round().to(torch.uint8)
    return make_grid(torch.cat((shown[:, None], drawn), 1).flatten(0, 1), nrow=4, pad_value=255)
