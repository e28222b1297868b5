"""Flow-aware augmentation: a resize scales the vectors, a horizontal flip negates u, a vertical one v."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import erase


def resize_flow(flow: Tensor, height: int, width: int) -> Tensor:
    """Flow (N, 2, H, W) in pixels, resized bilinearly to (N, 2, height, width), its vectors in the new pixels."""
    scale = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
    return F.interpolate(flow, (height, width), mode="bilinear", align_corners=False, antialias=True) * scale


def flip_flow(flow: Tensor) -> Tensor:
    """Flow (…, 2, H, W) of the horizontally mirrored frames."""
    return flow.flip(-1) * flow.new_tensor([-1.0, 1.0]).view(2, 1, 1)


def reverse_flow(flow: Tensor) -> Tensor:
    """Flow fields (T, 2, H, W) of the video played backwards, nearly: last field first, every vector turned round. (The
    true one lies where the vectors end, not where they begin.)"""
    return -flow.flip(0)


def erase_flow(flow: Tensor, share: float) -> Tensor:
    """Random erasing (Zhong et al. 2020) of flow (…, H, W): a square of `share` of the area, at one random place in all
    planes, becomes the plane's mean, a motion like that of the whole picture."""
    height, width = flow.shape[-2:]
    side = min(height, width, round((share * height * width) ** 0.5))
    top, left = int(torch.randint(height - side + 1, ())), int(torch.randint(width - side + 1, ()))
    return erase(flow, top, left, side, side, flow.mean((-2, -1), keepdim=True))


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The (…, size, size) in the middle of (…, H, W).

    Raises:
        ValueError: the images are smaller.
    """
    height, width = images.shape[-2:]
    if height < size or width < size:
        raise ValueError(f"crop {size}: frames of {height}×{width} are smaller; lower `crop` or enlarge `frame_size`")
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]


def random_square(height: int, width: int, scales: tuple[float, ...]) -> tuple[slice, slice]:
    """Section 4's "random scaling and cropping": rows and columns of a square of the shorter side times a random scale,
    at a random place."""
    scale = scales[int(torch.randint(len(scales), ()))]
    side = max(1, round(min(height, width) * scale))
    top = int(torch.randint(height - side + 1, ()))
    left = int(torch.randint(width - side + 1, ()))
    return slice(top, top + side), slice(left, left + side)


def random_pair_zoom(frames: Tensor, flow: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """A pair (2, 3, H, W) and its flow (1, 2, H, W), enlarged by a random factor of 1 to `largest`, vectors too."""
    factor = 1 + (largest - 1) * float(torch.rand(()))
    height, width = (round(side * factor) for side in frames.shape[-2:])
    return F.interpolate(frames, (height, width), mode="bilinear"), resize_flow(flow, height, width)


def random_pair_crop(frames: Tensor, flow: Tensor, size: tuple[int, int], *, shift: int = 0) -> tuple[Tensor, Tensor]:
    """A random (height, width) window of a pair (2, C, H, W) and its flow (1, 2, H, W).

    The second frame's window lies up to `shift` pixels beside the first's in each direction, at random, and the vectors
    are from the one to the other: the relative translation of FlowNet's augmentation (Dosovitskiy et al. 2015, 5.1).

    Raises:
        ValueError: the window is larger than the frames.
    """
    height, width = frames.shape[-2:]
    if height < size[0] or width < size[1]:
        raise ValueError(f"crop {size[0]}×{size[1]}: frames of {height}×{width} are smaller; lower `crop`")
    (top, below), (left, beside) = (
        _places(full, part, shift) for full, part in zip((height, width), size, strict=True)
    )

    def window(images: Tensor, top: int, left: int) -> Tensor:
        return images[..., top : top + size[0], left : left + size[1]]

    moved = flow.new_tensor([beside - left, below - top]).view(2, 1, 1)
    seconds = window(frames[1:], below, beside)
    return torch.cat((window(frames[:1], top, left), seconds)), window(flow, top, left) - moved


def _places(full: int, part: int, shift: int) -> tuple[int, int]:
    """Where two windows of `part` pixels start in `full`, at most `shift` apart."""
    first = int(torch.randint(full - part + 1, ()))
    least, most = max(first - shift, 0), min(first + shift, full - part)
    return first, int(torch.randint(least, most + 1, ()))


def random_pair_flips(frames: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror a pair (…, 3, H, W) and its flow (…, 2, H, W) left to right, upside down, both or not at all."""
    if torch.rand(()) < 0.5:
        frames, flow = frames.flip(-1), flip_flow(flow)
    if torch.rand(()) < 0.5:
        frames, flow = frames.flip(-2), flow.flip(-2) * flow.new_tensor([1.0, -1.0]).view(2, 1, 1)
    return frames, flow


def random_photometry(frames: Tensor, *, strength: float) -> Tensor:
    """FlowNet's photometric augmentation (Dosovitskiy et al. 2015, section 5): contrast, brightness, colour and gamma,
    the same for both frames, and Gaussian noise of its own on each pixel, σ up to 0.04.

    Args:
        frames: (…, 3, H, W) in [0, 1].
        strength: 1 is FlowNet's range; 0 changes nothing.
    """
    if strength == 0:
        return frames
    contrast = 1 + strength * float(torch.empty(()).uniform_(-0.3, 0.3))
    brightness = strength * float(torch.randn(())) * 0.1
    colour = 1 + strength * torch.empty(3, 1, 1).uniform_(-0.2, 0.2)
    gamma = 2 ** (strength * float(torch.empty(()).uniform_(-0.5, 0.5)))
    noise = strength * float(torch.empty(()).uniform_(0, 0.04))
    lit = (((frames - 0.5) * contrast + 0.5 + brightness) * colour).clamp(0, 1) ** gamma
    return (lit + noise * torch.randn_like(lit)).clamp(0, 1)
