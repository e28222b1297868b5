"""What `sweep_engine.py` compares: a system of random networks, stacks of frames, and three ways to sweep over them.

The networks' two classes are as far apart as makes the attacks about as long as the paper's (2 to 3 frames, Table 1),
by chance of the seed or by `set_apart`.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from attacks.clean_pass import clean_pass
from attacks.iterative_saliency import IterativeSaliency
from attacks.one_shot import OneShot
from lightning_modules.classifiers.resnet import ResNet
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.model_under_attack import ModelUnderAttack

LENGTH = 11
ATTACKS = {"one_shot": "one-shot", "iterative_saliency": "it-sal", "iterative_saliency_refresh": "it-sal-RG"}
"""The toolbox's names, and short ones."""


def make_system(variant: str, width: float, depth: int, crop: int) -> ModelUnderAttack:
    estimator = FlowNet2Estimator(variant=variant, width=width)
    classifier = ResNet(depth=depth, num_classes=2)
    for block in classifier.modules():
        if isinstance(block, Bottleneck):  # random and undamped, 50 of them leave a gradient that leads nowhere
            nn.init.constant_(block.bn3.weight, 0.2)
    return ModelUnderAttack(estimator=estimator, classifier=classifier, crop=crop)


def set_apart(system: ModelUnderAttack, stack: Tensor, options: dict[str, int | None], frames: int) -> None:
    """Move the bias of the class of a stack (1, 11, 3, H, W), so that so many frames decide about it at ε = 0.01."""
    with torch.no_grad():
        label = system(stack).argmax(1)
        bias = [layer for layer in system.classifier.modules() if isinstance(layer, nn.Linear)][-1].bias
        bias[label] += 5  # not lost before it is known where it would be
        steps = IterativeSaliency(refresh=True, **options)(system, stack, label, (0.01,)).step_logits[0, 0]
        margins = (steps[:, label] - steps[:, 1 - label]).flatten()
        bias[label] -= margins[frames - 2 : frames].mean()


def moving_textures(stacks: int, height: int, width: int) -> Tensor:
    """Frames (stacks, 11, 3, H, W) in [0, 1]: a texture that moves up to two pixels a frame, each in its own way."""
    margin = 2 * LENGTH
    videos = []
    for _ in range(stacks):
        texture = F.interpolate(
            torch.rand(1, 3, height // 6, width // 6), size=(height + 2 * margin, width + 2 * margin)
        )
        texture = F.avg_pool2d(texture, 5, 1, 2)[0]
        down, right = (4 * torch.rand(2) - 2).tolist()
        corners = [(margin + int(down * n), margin + int(right * n)) for n in range(LENGTH)]
        videos.append(torch.stack([texture[:, y : y + height, x : x + width] for y, x in corners]))
    return torch.stack(videos)


def by_toolbox(system: nn.Module, frames: Tensor, labels: Tensor, epsilons: tuple[float, ...]) -> dict[str, Tensor]:
    """One stack a call, as it works right; adversarial frames (E, B, T, 3, H, W) of each attack."""
    from art.attacks.evasion import FastGradientMethod, FrameSaliencyAttack
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        system,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(frames.shape[1:]),
        nb_classes=2,
        clip_values=(0, 1),
        device_type="gpu" if frames.is_cuda else "cpu",
    )
    x, y = frames.cpu().numpy(), labels.cpu().numpy()
    made = {}
    for method in ATTACKS:
        made[method] = np.empty((len(epsilons), *x.shape), dtype=np.float32)
        for e, epsilon in enumerate(epsilons):
            step = FastGradientMethod(classifier, eps=epsilon, eps_step=epsilon)
            attack = FrameSaliencyAttack(classifier, step, method=method, frame_index=1, verbose=False)
            for b in range(len(x)):
                made[method][e, b] = attack.generate(x[b : b + 1], y[b : b + 1])[0]
    return {method: torch.from_numpy(adversarial).to(frames.device) for method, adversarial in made.items()}


def gradient_of(system: nn.Module, frames: Tensor, labels: Tensor) -> Tensor:
    inputs = frames.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(system(inputs), labels, reduction="sum"), inputs)[0]


def plainly(system: nn.Module, frames: Tensor, labels: Tensor, epsilons: tuple[float, ...]) -> dict[str, Tensor]:
    """The paper's algorithms on a batch of stacks that shrinks as they are lost; whole forwards, nothing shared."""
    made: dict[str, list[Tensor]] = {method: [] for method in ATTACKS}
    for method in ATTACKS:
        for epsilon in epsilons:
            gradient = gradient_of(system, frames, labels)
            if method == "one_shot":
                adversarial = (frames + epsilon * gradient.sign()).clamp(0, 1)
                with torch.no_grad():
                    system(adversarial)
                made[method].append(adversarial)
                continue
            adversarial = frames.clone()
            used = torch.zeros(frames.shape[:2], dtype=torch.bool, device=frames.device)
            active = torch.arange(len(frames), device=frames.device)
            for _ in range(LENGTH):
                saliency = gradient.abs().mean((2, 3, 4)).masked_fill(used[active], -torch.inf)
                frame, row = saliency.argmax(1), torch.arange(len(active), device=frames.device)
                step = epsilon * gradient[row, frame].sign()
                adversarial[active, frame] = (frames[active, frame] + step).clamp(0, 1)
                used[active, frame] = True
                with torch.no_grad():
                    right = system(adversarial[active]).argmax(1) == labels[active]
                active, gradient = active[right], gradient[right]
                if not len(active):
                    break
                if method == "iterative_saliency_refresh":
                    gradient = gradient_of(system, adversarial[active], labels[active])
            made[method].append(adversarial)
    return {method: torch.stack(adversarial) for method, adversarial in made.items()}


class Engine:
    """The attacks as the sweep calls them: one clean pass, one first step; with the loss that the toolbox has."""

    def __init__(self, batch_size: int, pairs_at_once: int | None, retained_pairs: int | None) -> None:
        self.options = {"batch_size": batch_size, "pairs_at_once": pairs_at_once, "loss": "cross-entropy"}
        self.retained_pairs = retained_pairs
        self.results = {}

    def __call__(self, system: nn.Module, frames: Tensor, labels: Tensor, epsilons: tuple[float, ...]) -> dict:
        refreshing = IterativeSaliency(True, retained_pairs=self.retained_pairs, **self.options)
        attacks = {
            "one_shot": OneShot(**self.options),
            "iterative_saliency": IterativeSaliency(**self.options),
            "iterative_saliency_refresh": refreshing,
        }
        retained = refreshing.retain(frames, len(epsilons))
        # A sweep holds its systems against themselves once, not for each video.
        clean = clean_pass(system, frames, labels, retained=retained, check=False, **self.options)
        first_step = None
        for method, attack in sorted(attacks.items(), key=lambda item: item[1].retained_pairs == 0):
            result = attack(
                system, frames, labels, epsilons, clean=clean, first_step=first_step if attack.begins else None
            )
            first_step = result.first_step or first_step
            self.results[method] = result
        self.results = {method: self.results[method] for method in ATTACKS}
        return {method: result.adversarial for method, result in self.results.items()}
