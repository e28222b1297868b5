"""Small random systems to attack, and the paper's plain algorithms: one stack at a time, whole forwards."""

import os
import runpy
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CLASSES = 4
LENGTH = 6


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Gives a folder of the caller's own with a sweep of the toy over 8 videos, its report included.

    The sweep takes half a minute: whichever of pytest's processes needs it first makes it for all.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "toy-sweep"

    def copy() -> Path:
        with FileLock(f"{shared}.lock"):
            if not shared.exists():
                script = Path(__file__).with_name("toy_sweep.py")
                made = tmp_path_factory.mktemp("made") / "sweep"
                runpy.run_path(str(script), run_name="toy_sweep")["run"](made, videos=8)
                made.replace(shared)
        folder = tmp_path_factory.mktemp("swept") / "sweep"
        shutil.copytree(shared, folder)
        return folder

    return copy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The toys are too small to share out, and threads that wait for each other cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class ToySystem(nn.Module):
    """Convolutional flow and classifier, smooth, with BatchNorm whose statistics a pass in training mode would move."""

    differentiable = True
    pairwise = True

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh(), nn.Conv2d(8, 2, 3, padding=1)
        )
        self.classifier = nn.Sequential(
            nn.Conv2d(2 * (LENGTH - 1), 12, 3, stride=2),
            nn.BatchNorm2d(12),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, CLASSES),
        )
        self.dropout = nn.Dropout(0.5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.02, 0.1)
        self.pairs = 0
        self.pairs_differentiated = 0
        self.calls: list[int] = []
        self.graph_calls: list[int] = []
        self.stacks: list[int] = []

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        self.pairs += len(first)
        self.calls.append(len(first))
        flow = 3 * self.flow(torch.cat([first, second], 1))
        if flow.requires_grad:
            self.graph_calls.append(len(first))
            flow.register_hook(self._count_backward)
        return flow

    def _count_backward(self, gradient: Tensor) -> None:
        self.pairs_differentiated += len(gradient)

    def classify(self, flow: Tensor) -> Tensor:
        self.stacks.append(len(flow))
        return self.dropout(30 * self.classifier(flow.flatten(1, 2).clamp(-20, 20)))

    def forward(self, frames: Tensor) -> Tensor:
        pairs = [self.estimate_flow(frames[:, n], frames[:, n + 1]) for n in range(frames.shape[1] - 1)]
        return self.classify(torch.stack(pairs, 1))


class Computed(TorchDispatchMode):
    """Counts the pairs whose flow the convolutions really compute, and those that they lead a gradient back through."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: Counter[int] = Counter()
        self.backwards: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.forwards[args[1].data_ptr()] += len(args[0])
        if func is torch.ops.aten.convolution_backward.default:
            self.backwards[args[2].data_ptr()] += len(args[0])
        return func(*args, **(kwargs or {}))

    def of(self, system: ToySystem) -> tuple[int, int]:
        """Forwards and backwards of a system, the same for each of its convolutions."""
        pairs = {
            (self.forwards[layer.weight.data_ptr()], self.backwards[layer.weight.data_ptr()])
            for layer in system.flow
            if isinstance(layer, nn.Conv2d)
        }
        (counts,) = pairs
        return counts


class BlackBox(ToySystem):
    """Another system, whose flow has no gradient, as that of TV-L1 has none."""

    differentiable = False
    pairwise = True

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        return super().estimate_flow(first.detach(), second.detach()).mul(64).round().div(64)


class Plain(nn.Module):
    """A system that only maps frames to logits."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, frames: Tensor) -> Tensor:
        return self.system(frames)


class Scaled(nn.Module):
    """The same decisions, by logits `factor` times as large."""

    pairwise = True
    differentiable = True

    def __init__(self, system: nn.Module, factor: float) -> None:
        super().__init__()
        self.system, self.factor = system, factor

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        return self.system.estimate_flow(first, second)

    def classify(self, flow: Tensor) -> Tensor:
        return self.factor * self.system.classify(flow)

    def forward(self, frames: Tensor) -> Tensor:
        return self.factor * self.system(frames)


def random_frames(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(count, LENGTH, 3, 12, 14, generator=generator, dtype=torch.float64)
    return (1.2 * frames - 0.1).clamp(0, 1)


class ReferenceResult(NamedTuple):
    adversarial: Tensor
    logits: Tensor
    attacked: bool
    success: bool
    frame_order: list[int]


def _gradient(system: nn.Module, stack: Tensor, label: int) -> Tensor:
    stack = stack.clone().requires_grad_()
    loss = -system(stack[None])[0].log_softmax(0)[label]
    return torch.autograd.grad(loss, stack)[0]


def _step(frame: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    return torch.clamp(frame + epsilon * torch.sign(gradient), 0.0, 1.0)


def reference_attack(
    mode: str,
    system: nn.Module,
    stack: Tensor,
    label: int,
    epsilon: float,
    judge: nn.Module | None = None,
    random_order: Sequence[int] | None = None,
) -> ReferenceResult:
    """Sections 3.3, 3.4 and 5.3 word by word, on one stack (T, 3, H, W) and systems in eval mode.

    Another order than the paper's stands in brackets behind the mode; a random one is given.
    """
    mode, _, order_name = mode.removesuffix(")").partition(" (")

    def judged(frames: Tensor) -> Tensor:
        with torch.no_grad():
            return (judge or system)(frames[None])[0]

    logits = judged(stack)
    attacked = int(logits.argmax()) == label
    gradient = _gradient(system, stack, label)
    adversarial, order = stack.clone(), []
    if mode == "one-shot":
        for n in range(len(stack)):
            adversarial[n] = _step(stack[n], gradient[n], epsilon)
            order.append(n)
        logits = judged(adversarial)
    elif attacked:
        while len(order) < len(stack):
            saliency = [float(frame.abs().mean()) for frame in gradient]
            left = [n for n in range(len(stack)) if n not in order]
            if order_name == "first-to-last":
                n = left[0]
            elif order_name == "random":
                n = random_order[len(order)]
            elif order_name == "least-salient":
                n = min(left, key=lambda n: saliency[n])
            else:
                n = max(left, key=lambda n: saliency[n])
            adversarial[n] = _step(stack[n], gradient[n], epsilon)
            order.append(n)
            logits = judged(adversarial)
            if int(logits.argmax()) != label:
                break
            if mode == "iterative-saliency-RG":
                gradient = _gradient(system, adversarial, label)
    return ReferenceResult(adversarial, logits, attacked, attacked and int(logits.argmax()) != label, order)


def make_system(seed: int, kind: str = "toy", dtype: torch.dtype = torch.float64) -> ToySystem:
    """A random system from a seed; `kind` is "toy" or "black box"."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        made = {"toy": ToySystem, "black box": BlackBox}[kind]().double().eval()
        if kind == "black box":
            for parameter in made.parameters():
                parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
        # Classes that are equally likely, so that predictions differ and margins are small.
        made.classifier[-1].bias -= made(random_frames(seed, 16)).mean(0) / 30
    made.pairs = 0
    made.calls.clear()
    made.graph_calls.clear()
    made.stacks.clear()
    return made.to(dtype)


@pytest.fixture
def system() -> Callable[..., ToySystem]:
    return make_system


@pytest.fixture
def scaled() -> type[Scaled]:
    return Scaled


@pytest.fixture
def computed() -> type[Computed]:
    return Computed


@pytest.fixture
def plain() -> type[Plain]:
    return Plain


@pytest.fixture
def stacks() -> Callable[..., tuple[Tensor, Tensor]]:
    """Make random stacks with pixels at both ends of the range; the system is right but for every `wrong`-th."""

    def make(system: nn.Module, seed: int, count: int = 6, wrong: int = 4) -> tuple[Tensor, Tensor]:
        dtype = next(system.parameters()).dtype
        frames = random_frames(seed, count).to(dtype)
        with torch.no_grad():
            labels = system(frames).argmax(1)
        labels[wrong - 1 :: wrong] = (labels[wrong - 1 :: wrong] + 1) % CLASSES
        return frames, labels

    return make


@pytest.fixture
def reference() -> Callable[..., ReferenceResult]:
    return reference_attack


@pytest.fixture
def assert_equals_reference() -> Callable[..., None]:
    """Every verdict, order and pixel of an AttackResult against the plain algorithm."""

    def check(
        result: Any,
        mode: str,
        system: nn.Module,
        frames: Tensor,
        labels: Tensor,
        epsilons: Sequence[float],
        judge: nn.Module | None = None,
        random_orders: Sequence[Sequence[int]] | None = None,
    ) -> None:
        for e, epsilon in enumerate(epsilons):
            for b, (stack, label) in enumerate(zip(frames, labels.tolist(), strict=True)):
                random_order = random_orders[b] if random_orders else None
                expected = reference_attack(mode, system, stack, label, epsilon, judge, random_order)
                order = result.frame_order[e, b].tolist()
                assert order == expected.frame_order + [-1] * (len(stack) - len(expected.frame_order))
                assert int(result.frames_perturbed[e, b]) == len(expected.frame_order)
                assert bool(result.attacked[b]) == expected.attacked
                assert bool(result.success[e, b]) == expected.success
                assert torch.equal(result.adversarial[e, b], expected.adversarial)
                torch.testing.assert_close(result.logits[e, b], expected.logits, rtol=1e-9, atol=1e-9)
                assert int(result.predictions[e, b]) == int(expected.logits.argmax())
                confidence = float(expected.logits.softmax(0).max())
                assert float(result.confidence[e, b]) == pytest.approx(confidence, rel=1e-9)

    return check
