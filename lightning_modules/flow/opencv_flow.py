"""What the CPU flow algorithms of OpenCV share: 8-bit grey frames in, pairs in a thread pool, flow out."""

from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn


class OpenCVFlow(nn.Module):
    """Flow between neighbouring frames by an algorithm of OpenCV: on the CPU, without a gradient.

    It sees the 8-bit grey (BT.601) of the frames rounded to 8 bits, half to even. Pairs run in as many threads as torch
    is set to use in this process; the flow does not depend on their number.
    """

    differentiable = False
    rounds_frames = True
    """Frames and frames rounded to 8 bits give the same flow."""
    algorithm: str

    def __init__(self, **options: float) -> None:
        super().__init__()
        self.options: dict[str, Any] = options

    @abstractmethod
    def flow_of_pair(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Grey uint8 (H, W) twice -> flow float32 (H, W, 2) in pixels."""

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [0, 1] -> flow (B, T-1, 2, H, W) float32 in pixels, on the frames' device."""
        if frames.dim() != 5 or frames.shape[1] < 2 or frames.shape[2] != 3:
            raise ValueError(f"{type(self).__name__} needs frames (B, T >= 2, 3, H, W), not {tuple(frames.shape)}")
        grey = [[grey_frame(image) for image in clip] for clip in eight_bit(frames)]
        first = [image for clip in grey for image in clip[:-1]]
        second = [image for clip in grey for image in clip[1:]]
        flow = torch.from_numpy(self._flow_of_pairs(first, second))
        return flow.to(frames.device).unflatten(0, (frames.shape[0], frames.shape[1] - 1))

    def flow_of_images(self, images: np.ndarray) -> np.ndarray:
        """A clip's images as decoded, RGB uint8 (T, H, W, 3) -> flow float32 (T-1, 2, H, W) in pixels: what `forward`
        gives for them as frames in [0, 1], without the way there and back."""
        grey = [grey_frame(image) for image in images]
        return self._flow_of_pairs(grey[:-1], grey[1:])

    def _flow_of_pairs(self, first: list[np.ndarray], second: list[np.ndarray]) -> np.ndarray:
        cv2.setNumThreads(1)  # the pairs are the parallel work; OpenCV's own threads under each only contend
        flow = np.empty((len(first), 2, *first[0].shape), np.float32)

        def fill(pair: int) -> None:
            flow[pair] = self.flow_of_pair(first[pair], second[pair]).transpose(2, 0, 1)

        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            list(pool.map(fill, range(len(first))))
        return flow

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the flow, for manifests and records."""
        return {"algorithm": self.algorithm, **self.options, "opencv": cv2.__version__}


def eight_bit(frames: Tensor) -> np.ndarray:
    """Frames (..., 3, H, W) in [0, 1] -> uint8 (..., H, W, 3), rounded half to even."""
    rounded = (frames.detach() * 255).round().clamp(0, 255).to(torch.uint8)
    return rounded.movedim(-3, -1).contiguous().cpu().numpy()


def grey_frame(frame: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) -> grey uint8 (H, W)."""
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
