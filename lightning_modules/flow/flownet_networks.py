"""FlowNet2 and its parts C, S, SD, CS, CSS (Ilg et al. 2017): what NVIDIA's flownet2-pytorch computes, by its keys.

Departures: ChannelNorm's gradient is right for every item of a batch (NVIDIA's for the first only); He initialisation
with zero biases where a network is trained from scratch; a width factor. Networks take NVIDIA's input, a pair
(N, 3, 2, H, W) of RGB frames in 0..255 with H and W multiples of 64.
"""

from abc import abstractmethod
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.flow.correlation import DISPLACEMENTS, correlation
from lightning_modules.flow.flownet_layers import (
    SLOPE,
    PredictFlow,
    UpsampledFlow,
    channelnorm,
    conv,
    deconv,
    inter_conv,
    join,
    resample2d,
    upsample,
)

FLOW_SCALE = 20.0  # the networks predict twentieths of a pixel step
MULTIPLE = 64
Flows = tuple[Tensor, ...]
Variant = Literal["FlowNet2", "FlowNet2C", "FlowNet2S", "FlowNet2SD", "FlowNet2CS", "FlowNet2CSS"]


def scaled(channels: int, width: float) -> int:
    """Channel count of a network `width` times as wide as the published one."""
    return max(1, round(channels * width))


def normalise(pair: Tensor) -> Tensor:
    """Pair (N, 3, 2, H, W) in 0..255 -> (N, 6, H, W): minus the mean over both frames and all pixels, over 255."""
    x = (pair - pair.mean(dim=(2, 3, 4), keepdim=True)) / 255
    return torch.cat((x[:, :, 0], x[:, :, 1]), 1).contiguous(memory_format=torch.channels_last)


def initialise(network: nn.Module) -> None:
    """He initialisation for the leaky ReLU, zero biases, flow predictions near zero: for training from scratch."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # fan_in of a transposed convolution is what reaches one output pixel, a quarter of its kernel at stride 2
            fan = module.in_channels * module.kernel_size[0] ** 2 // (module.stride[0] if module.transposed else 1) ** 2
            gain = nn.init.calculate_gain("leaky_relu", SLOPE)
            if isinstance(module, PredictFlow):
                gain *= 0.1
            nn.init.normal_(module.weight, std=gain / fan**0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Refinement(nn.Module):
    """The deep encoder and the decoder that C, S and SD share: five flows, each from the coarser one and its features.

    `inter` smooths the features before each prediction (SD); `upsample_bias` follows the published keys (not in S).
    """

    def __init__(self, *, width: float, batch_norm: bool, upsample_bias: bool, inter: bool = False) -> None:
        super().__init__()
        c64, c128, c256, c512, c1024 = (scaled(c, width) for c in (64, 128, 256, 512, 1024))
        self.conv4 = conv(c256, c512, stride=2, batch_norm=batch_norm)
        self.conv4_1 = conv(c512, c512, batch_norm=batch_norm)
        self.conv5 = conv(c512, c512, stride=2, batch_norm=batch_norm)
        self.conv5_1 = conv(c512, c512, batch_norm=batch_norm)
        self.conv6 = conv(c512, c1024, stride=2, batch_norm=batch_norm)
        self.conv6_1 = conv(c1024, c1024, batch_norm=batch_norm)

        joined5, joined4, joined3, joined2 = c512 + c512 + 2, c512 + c256 + 2, c256 + c128 + 2, c128 + c64 + 2
        self.deconv5 = deconv(c1024, c512)
        self.deconv4 = deconv(joined5, c256)
        self.deconv3 = deconv(joined4, c128)
        self.deconv2 = deconv(joined3, c64)

        self.inter_conv5: nn.Module = inter_conv(joined5, c512, batch_norm=batch_norm) if inter else nn.Identity()
        self.inter_conv4: nn.Module = inter_conv(joined4, c256, batch_norm=batch_norm) if inter else nn.Identity()
        self.inter_conv3: nn.Module = inter_conv(joined3, c128, batch_norm=batch_norm) if inter else nn.Identity()
        self.inter_conv2: nn.Module = inter_conv(joined2, c64, batch_norm=batch_norm) if inter else nn.Identity()

        self.predict_flow6 = PredictFlow(c1024)
        self.predict_flow5 = PredictFlow(c512 if inter else joined5)
        self.predict_flow4 = PredictFlow(c256 if inter else joined4)
        self.predict_flow3 = PredictFlow(c128 if inter else joined3)
        self.predict_flow2 = PredictFlow(c64 if inter else joined2)

        self.upsampled_flow6_to_5 = UpsampledFlow(bias=upsample_bias)
        self.upsampled_flow5_to_4 = UpsampledFlow(bias=upsample_bias)
        self.upsampled_flow4_to_3 = UpsampledFlow(bias=upsample_bias)
        self.upsampled_flow3_to_2 = UpsampledFlow(bias=upsample_bias)

    def refine(self, features2: Tensor, features3: Tensor) -> Flows:
        """Features at 1/4 and 1/8 size -> flow2 ... flow6 at 1/4 ... 1/64 size."""
        features4 = self.conv4_1(self.conv4(features3))
        features5 = self.conv5_1(self.conv5(features4))
        features6 = self.conv6_1(self.conv6(features5))

        flow6 = self.predict_flow6(features6)
        joined5 = join(features5, self.deconv5(features6), self.upsampled_flow6_to_5(flow6))
        flow5 = self.predict_flow5(self.inter_conv5(joined5))
        joined4 = join(features4, self.deconv4(joined5), self.upsampled_flow5_to_4(flow5))
        flow4 = self.predict_flow4(self.inter_conv4(joined4))
        joined3 = join(features3, self.deconv3(joined4), self.upsampled_flow4_to_3(flow4))
        flow3 = self.predict_flow3(self.inter_conv3(joined3))
        joined2 = join(features2, self.deconv2(joined3), self.upsampled_flow3_to_2(flow3))
        flow2 = self.predict_flow2(self.inter_conv2(joined2))
        return flow2, flow3, flow4, flow5, flow6


class FlowNetC(Refinement):
    """Two streams that share weights and meet in the correlation layer; x (N, 6, H, W) normalised -> five flows."""

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__(width=width, batch_norm=batch_norm, upsample_bias=True)
        c32, c64, c128, c256 = (scaled(c, width) for c in (32, 64, 128, 256))
        self.conv1 = conv(3, c64, kernel=7, stride=2, batch_norm=batch_norm)
        self.conv2 = conv(c64, c128, kernel=5, stride=2, batch_norm=batch_norm)
        self.conv3 = conv(c128, c256, kernel=5, stride=2, batch_norm=batch_norm)
        self.conv_redir = conv(c256, c32, kernel=1, batch_norm=batch_norm)
        self.conv3_1 = conv(c32 + DISPLACEMENTS, c256, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Flows:
        first2 = self.conv2(self.conv1(x[:, :3]))
        first3 = self.conv3(first2)
        second3 = self.conv3(self.conv2(self.conv1(x[:, 3:])))
        matches = F.leaky_relu(correlation(first3, second3), SLOPE)
        redirected = self.conv_redir(first3)
        features3 = self.conv3_1(torch.cat((redirected, matches.to(redirected.dtype)), 1))
        return self.refine(first2, features3)


class FlowNetS(Refinement):
    """One stream; x (N, inputs, H, W) -> five flows."""

    def __init__(self, *, inputs: int = 6, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__(width=width, batch_norm=batch_norm, upsample_bias=False)
        c64, c128, c256 = (scaled(c, width) for c in (64, 128, 256))
        self.conv1 = conv(inputs, c64, kernel=7, stride=2, batch_norm=batch_norm)
        self.conv2 = conv(c64, c128, kernel=5, stride=2, batch_norm=batch_norm)
        self.conv3 = conv(c128, c256, kernel=5, stride=2, batch_norm=batch_norm)
        self.conv3_1 = conv(c256, c256, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Flows:
        features2 = self.conv2(self.conv1(x))
        return self.refine(features2, self.conv3_1(self.conv3(features2)))


class FlowNetSD(Refinement):
    """Small displacements: 3 x 3 kernels and smoothed predictions; x (N, 6, H, W) -> five flows."""

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__(width=width, batch_norm=batch_norm, upsample_bias=True, inter=True)
        c64, c128, c256 = (scaled(c, width) for c in (64, 128, 256))
        self.conv0 = conv(6, c64, batch_norm=batch_norm)
        self.conv1 = conv(c64, c64, stride=2, batch_norm=batch_norm)
        self.conv1_1 = conv(c64, c128, batch_norm=batch_norm)
        self.conv2 = conv(c128, c128, stride=2, batch_norm=batch_norm)
        self.conv2_1 = conv(c128, c128, batch_norm=batch_norm)
        self.conv3 = conv(c128, c256, stride=2, batch_norm=batch_norm)
        self.conv3_1 = conv(c256, c256, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Flows:
        features1 = self.conv1_1(self.conv1(self.conv0(x)))
        features2 = self.conv2_1(self.conv2(features1))
        return self.refine(features2, self.conv3_1(self.conv3(features2)))


class FlowNetFusion(nn.Module):
    """Two candidate flows and how well each explains the pair, (N, 11, H, W) -> flow (N, 2, H, W) in pixels."""

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False) -> None:
        super().__init__()
        c16, c32, c64, c128 = (scaled(c, width) for c in (16, 32, 64, 128))
        self.conv0 = conv(11, c64, batch_norm=batch_norm)
        self.conv1 = conv(c64, c64, stride=2, batch_norm=batch_norm)
        self.conv1_1 = conv(c64, c128, batch_norm=batch_norm)
        self.conv2 = conv(c128, c128, stride=2, batch_norm=batch_norm)
        self.conv2_1 = conv(c128, c128, batch_norm=batch_norm)
        self.deconv1 = deconv(c128, c32)
        self.deconv0 = deconv(c128 + c32 + 2, c16)
        self.inter_conv1 = inter_conv(c128 + c32 + 2, c32, batch_norm=batch_norm)
        self.inter_conv0 = inter_conv(c64 + c16 + 2, c16, batch_norm=batch_norm)
        self.predict_flow2 = PredictFlow(c128)
        self.predict_flow1 = PredictFlow(c32)
        self.predict_flow0 = PredictFlow(c16)
        self.upsampled_flow2_to_1 = UpsampledFlow()
        self.upsampled_flow1_to_0 = UpsampledFlow()

    def forward(self, x: Tensor) -> Tensor:
        features0 = self.conv0(x)
        features1 = self.conv1_1(self.conv1(features0))
        features2 = self.conv2_1(self.conv2(features1))
        flow2 = self.predict_flow2(features2)
        joined1 = join(features1, self.deconv1(features2), self.upsampled_flow2_to_1(flow2))
        flow1 = self.predict_flow1(self.inter_conv1(joined1))
        joined0 = join(features0, self.deconv0(joined1), self.upsampled_flow1_to_0(flow1))
        return self.predict_flow0(self.inter_conv0(joined0))


def stacked_input(x: Tensor, flow: Tensor) -> Tensor:
    """What S1 and S2 read, 12 channels: the pair, the warped second frame, the flow, its brightness error."""
    warped = resample2d(x[:, 3:], flow)
    return torch.cat((x, warped, flow / FLOW_SCALE, channelnorm(x[:, :3] - warped)), 1)


class Alone(nn.Module):
    """C, S or SD used alone; mixed in before the network. `factor` turns its output into pixels."""

    factor: float
    align_corners: bool

    def flow(self, pair: Tensor) -> Tensor:
        """Flow (N, 2, H, W) in pixels."""
        finest = super().forward(normalise(pair))[0]
        return upsample(finest * self.factor, mode="bilinear", align_corners=self.align_corners)

    def training_flows(self, pair: Tensor) -> Flows:
        """Five flows in twentieths of a pixel step at 1/4 ... 1/64 size."""
        return tuple(flow * (self.factor / FLOW_SCALE) for flow in super().forward(normalise(pair)))  # type: ignore[misc]

    def forward(self, pair: Tensor) -> Any:
        """As NVIDIA's: five flows in training mode, the full-size flow in evaluation."""
        return self.training_flows(pair) if self.training else self.flow(pair)


class FlowNet2C(Alone, FlowNetC):
    """FlowNetC alone."""

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False, align_corners: bool = False) -> None:
        super().__init__(width=width, batch_norm=batch_norm)
        self.factor, self.align_corners = FLOW_SCALE, align_corners
        initialise(self)


class FlowNet2S(Alone, FlowNetS):
    """FlowNetS alone."""

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False, align_corners: bool = False) -> None:
        super().__init__(width=width, batch_norm=batch_norm)
        self.factor, self.align_corners = FLOW_SCALE, align_corners
        initialise(self)


class FlowNet2SD(Alone, FlowNetSD):
    """FlowNetSD alone. NVIDIA's code multiplies its output by 20 here and divides it by 20 inside FlowNet2."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        batch_norm: bool = False,
        align_corners: bool = False,
        sd_factor: float = FLOW_SCALE,
    ) -> None:
        super().__init__(width=width, batch_norm=batch_norm)
        self.factor, self.align_corners = sd_factor, align_corners
        initialise(self)


class Stack(nn.Module):
    """What is trained on its one full-size flow in pixels: FlowNet2, CS, CSS."""

    @abstractmethod
    def flow(self, pair: Tensor) -> Tensor:
        """Flow (N, 2, H, W) in pixels."""

    def training_flows(self, pair: Tensor) -> Flows:
        """The full-size flow in pixels, alone."""
        return (self.flow(pair),)

    def forward(self, pair: Tensor) -> Tensor:
        return self.flow(pair)


class FlowNet2CS(Stack):
    """C, then S on what C's flow leaves unexplained."""

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.flownetc = FlowNetC(width=width, batch_norm=batch_norm)
        self.flownets_1 = FlowNetS(inputs=12, width=width, batch_norm=batch_norm)
        initialise(self)

    def flow(self, pair: Tensor) -> Tensor:
        x = normalise(pair)
        flow_c = upsample(FLOW_SCALE * self.flownetc(x)[0], mode="bilinear", align_corners=self.align_corners)
        finest = self.flownets_1(stacked_input(x, flow_c))[0]
        return upsample(FLOW_SCALE * finest, mode="bilinear", align_corners=self.align_corners)


class FlowNet2CSS(Stack):
    """C, S, S."""

    def __init__(self, *, width: float = 1.0, batch_norm: bool = False, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.flownetc = FlowNetC(width=width, batch_norm=batch_norm)
        self.flownets_1 = FlowNetS(inputs=12, width=width, batch_norm=batch_norm)
        self.flownets_2 = FlowNetS(inputs=12, width=width, batch_norm=batch_norm)
        initialise(self)

    def flow(self, pair: Tensor) -> Tensor:
        return self.large_displacements(normalise(pair))

    def large_displacements(self, x: Tensor) -> Tensor:
        """x (N, 6, H, W) normalised -> flow (N, 2, H, W) in pixels."""
        flow_c = upsample(FLOW_SCALE * self.flownetc(x)[0], mode="bilinear", align_corners=self.align_corners)
        finest = self.flownets_1(stacked_input(x, flow_c))[0]
        flow_s1 = upsample(FLOW_SCALE * finest, mode="bilinear", align_corners=self.align_corners)
        return upsample(FLOW_SCALE * self.flownets_2(stacked_input(x, flow_s1))[0], mode="nearest")


class FlowNet2(FlowNet2CSS):
    """The whole: C, S, S for large displacements, SD beside them for small ones, fused at full size."""

    def __init__(
        self,
        *,
        width: float = 1.0,
        batch_norm: bool = False,
        align_corners: bool = False,
        sd_factor: float = 1 / FLOW_SCALE,
    ) -> None:
        super().__init__(width=width, batch_norm=batch_norm, align_corners=align_corners)
        self.sd_factor = sd_factor
        self.flownets_d = FlowNetSD(width=width, batch_norm=batch_norm)
        self.flownetfusion = FlowNetFusion(width=width, batch_norm=batch_norm)
        initialise(self)

    def flow(self, pair: Tensor) -> Tensor:
        x = normalise(pair)
        first, second = x[:, :3], x[:, 3:]
        large = self.large_displacements(x)
        small = upsample(self.sd_factor * self.flownets_d(x)[0], mode="nearest")
        small_error = channelnorm(first - resample2d(second, small))
        large_error = channelnorm(first - resample2d(second, large))
        norms = channelnorm(small), channelnorm(large)
        return self.flownetfusion(torch.cat((first, small, large, *norms, small_error, large_error), 1))


VARIANTS: dict[str, type[Alone] | type[Stack]] = {
    "FlowNet2": FlowNet2,
    "FlowNet2C": FlowNet2C,
    "FlowNet2S": FlowNet2S,
    "FlowNet2SD": FlowNet2SD,
    "FlowNet2CS": FlowNet2CS,
    "FlowNet2CSS": FlowNet2CSS,
}


def identify(state: dict[str, Tensor]) -> str | None:
    """The variant, width and form whose keys and shapes a state dict has, in words; None where it is no FlowNet2."""
    keys = frozenset(_weights(state))
    for name in VARIANTS:
        for batch_norm in (False, True):
            if keys != _keys(name, batch_norm):
                continue
            deepest = next(tensor for key, tensor in state.items() if key.endswith("conv6_1.0.weight"))
            share = deepest.shape[0] / 1024
            for width in dict.fromkeys((round(share, 2), round(share, 3), share)):  # the roundest that fits
                if _weights(state) == _weights(_on_meta(name, width, batch_norm)):
                    return f"{name}, width {width}" + (", batch_norm true" if batch_norm else "")
    return None


def _weights(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    # the counters of batch norms are left out: old files have none
    return {key: tensor.shape for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _on_meta(variant: str, width: float, batch_norm: bool) -> dict[str, Tensor]:
    with torch.device("meta"):
        return VARIANTS[variant](width=width, batch_norm=batch_norm).state_dict()


@cache
def _keys(variant: str, batch_norm: bool) -> frozenset[str]:
    return frozenset(_weights(_on_meta(variant, 1.0, batch_norm)))
