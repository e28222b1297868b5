"""Frame pairs with true flow in .flo files, to judge a flow network by: FlyingChairs, or files named like its."""

from pathlib import Path

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batches import FlowPairBatch
from datamodules.flow_precompute import to_frames
from datamodules.transforms import resize_flow
from datamodules.video_decode import resize_frame

UNKNOWN = 1e9  # the format's mark of a pixel without known flow


class TrueFlow(pl.LightningDataModule):
    """Validation and test: every pair of a folder, one a batch. FlyingChairs' naming: beside NAMEflow.flo (pixels) lie
    two images NAMEimg*, which follow each other in the order of the alphabet.

    Args:
        root: the folder.
        frame_size: (H, W) to resize frames to (area interpolation), and the flow with its vectors: the size that a
            network was trained at, and with it the range of motion; None keeps the pairs' own.
        num_workers: processes that load pairs.

    Raises:
        FileNotFoundError: there is no such folder, or no .flo file in it.
        ValueError: a flow file cannot be read, has pixels of unknown flow, or has not two images of its size; names it.
    """

    def __init__(self, root: Path, *, frame_size: tuple[int, int] | None = None, num_workers: int = 0) -> None:
        super().__init__()
        self.root, self.num_workers = Path(root), num_workers
        self.frame_size = None if frame_size is None else (frame_size[0], frame_size[1])
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"no folder {self.root}: it should hold NAMEflow.flo files, each beside two NAMEimg*"
            )
        self.flows = sorted(self.root.glob("*flow.flo"))
        if not self.flows:
            raise FileNotFoundError(f"{self.root} holds no *flow.flo file; each lies beside its two images NAMEimg*")

    def test_dataloader(self) -> DataLoader:
        """FlowPairBatch of one pair."""
        return DataLoader(TruePairs(self.flows, self.frame_size), batch_size=None, num_workers=self.num_workers)

    val_dataloader = test_dataloader


class TruePairs(Dataset[FlowPairBatch]):
    """Item i: the pair of the i-th .flo file, as a FlowPairBatch of one."""

    def __init__(self, flows: list[Path], frame_size: tuple[int, int] | None = None) -> None:
        self.flows, self.frame_size = flows, frame_size

    def __len__(self) -> int:
        return len(self.flows)

    def __getitem__(self, index: int) -> FlowPairBatch:
        path = self.flows[index]
        images = [_image(image) for image in _images(path)]
        flow = _flow(path)
        if any(image.shape[:2] != flow.shape[:2] for image in images):
            sizes = ", ".join("×".join(map(str, item.shape[:2])) for item in (flow, *images))
            raise ValueError(f"{path} and its two images differ in size (height×width): {sizes}")
        if (unknown := int((~(np.abs(flow) < UNKNOWN)).any(-1).sum())) > 0:
            raise ValueError(f"{path}: the flow of {unknown} pixels is unknown; only dense flow can be judged by")
        target = torch.from_numpy(flow).permute(2, 0, 1)[None]
        if self.frame_size is not None:
            images = [resize_frame(image, self.frame_size) for image in images]
            target = resize_flow(target, *self.frame_size)
        return FlowPairBatch(to_frames(np.stack(images))[None], target[None])


def _flow(path: Path) -> np.ndarray:
    try:
        flow = cv2.readOpticalFlow(str(path))
    except cv2.error:  # it believes whatever size a broken file tells
        flow = None
    if flow is None or not flow.size:
        raise ValueError(f"{path} cannot be read as a .flo file: is it cut off or of another format?")
    return flow


def _images(flow: Path) -> list[Path]:
    prefix = flow.name.removesuffix("flow.flo") + "img"
    found = sorted(path for path in flow.parent.iterdir() if path.name.startswith(prefix))
    if len(found) != 2:
        raise ValueError(f"{flow} needs two images {prefix}* beside it, found {[path.name for path in found]}")
    return found


def _image(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{path} cannot be read as an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
