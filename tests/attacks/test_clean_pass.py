import pytest
import torch
from torch import nn

from attacks.clean_pass import clean_pass, frame_saliency


def test_flow_and_logits_are_those_of_the_system(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    with torch.no_grad():
        logits = victim(frames)
        flow = torch.stack([victim.estimate_flow(frames[:, n], frames[:, n + 1]) for n in range(5)], 1)
    for clean in (clean_pass(victim, frames, labels), clean_pass(victim, frames, labels, gradient=False)):
        torch.testing.assert_close(clean.logits, logits, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(clean.flow, flow, rtol=1e-12, atol=1e-12)


def test_eq_1_gradient_of_a_frame_is_the_sum_of_its_two_paths(system, stacks):
    victim = system(1)
    frames, labels = stacks(victim, 1)

    def gradient_through(open_role: str) -> torch.Tensor:
        """The loss seen through the frames' role as first, or as second, of a pair; the other path is cut."""
        inputs = frames.clone().requires_grad_()
        cut = inputs.detach()
        first, second = (inputs, cut) if open_role == "first" else (cut, inputs)
        flow = [victim.estimate_flow(first[:, n], second[:, n + 1]) for n in range(frames.shape[1] - 1)]
        loss = nn.functional.cross_entropy(victim.classify(torch.stack(flow, 1)), labels, reduction="sum")
        return torch.autograd.grad(loss, inputs)[0]

    as_first, as_second = gradient_through("first"), gradient_through("second")
    gradient = clean_pass(victim, frames, labels, loss="cross-entropy").gradient
    torch.testing.assert_close(gradient, as_first + as_second, rtol=1e-10, atol=1e-14)
    # The ends have one path each; between them both count.
    torch.testing.assert_close(gradient[:, 0], as_first[:, 0], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradient[:, -1], as_second[:, -1], rtol=1e-10, atol=1e-14)
    assert not as_first[:, -1].any() and not as_second[:, 0].any()
    for path in (as_first, as_second):
        assert (path[:, 1:-1].abs().amax((2, 3, 4)) > 1e-3 * gradient[:, 1:-1].abs().amax((2, 3, 4))).all()


def _log_odds(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """By probabilities, as its name says; fit for float64 and small margins alone."""
    probability = logits.softmax(1)[torch.arange(len(labels)), labels]
    return ((1 - probability) / probability).log()


def _negative_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    return torch.tensor(
        [max(v for c, v in enumerate(row) if c != label) - row[label] for row, label in rows], dtype=logits.dtype
    )


PLAIN_LOSSES = {
    "log-odds": _log_odds,
    "cross-entropy": lambda logits, labels: nn.functional.cross_entropy(logits, labels, reduction="none"),
    "margin": _negative_margin,
}


@pytest.mark.parametrize("loss_name", PLAIN_LOSSES)
@pytest.mark.parametrize("kind", ["pairwise", "plain"])
def test_gradient_equals_finite_differences(kind, loss_name, system, plain, stacks):
    victim = system(2)
    frames, labels = stacks(victim, 2, count=3, wrong=3)
    frames = frames.clamp(0.05, 0.95)
    gradient = clean_pass(plain(victim) if kind == "plain" else victim, frames, labels, loss=loss_name).gradient
    step = 1e-6

    def loss(at: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return PLAIN_LOSSES[loss_name](victim(at), labels)

    generator = torch.Generator().manual_seed(0)
    for n in range(frames.shape[1]):  # a random direction in every frame, and a single value of it
        direction = torch.zeros_like(frames)
        direction[:, n] = torch.randn(frames[:, n].shape, generator=generator, dtype=frames.dtype)
        value = torch.zeros_like(frames)
        value[:, n, n % 3, 4 + n % 4, 7] = 1
        for move in (direction, value):
            numeric = (loss(frames + step * move) - loss(frames - step * move)) / (2 * step)
            torch.testing.assert_close((gradient * move).flatten(1).sum(1), numeric, rtol=1e-5, atol=1e-8)


def test_saliency_is_the_mean_magnitude_of_a_frames_gradient():
    gradient = torch.randn(2, 4, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for stack, saliency in zip(gradient.tolist(), frame_saliency(gradient).tolist(), strict=True):
        for frame, value in zip(stack, saliency, strict=True):
            values = [abs(v) for colour in frame for row in colour for v in row]
            assert value == pytest.approx(sum(values) / len(values), rel=1e-12)


@pytest.mark.parametrize("kind", ["pairwise", "plain"])
def test_each_stack_is_its_own_whatever_the_batch(kind, system, plain, stacks):
    system = system(3)
    frames, labels = stacks(system, 3, count=7)
    victim = plain(system) if kind == "plain" else system
    whole = clean_pass(victim, frames, labels, batch_size=100)
    for batch_size in (1, 3):
        system.calls.clear()
        system.stacks.clear()
        parts = clean_pass(victim, frames, labels, batch_size=batch_size)
        for field in ("flow", "logits", "gradient", "saliency"):
            part, expected = getattr(parts, field), getattr(whole, field)
            if expected is not None:
                torch.testing.assert_close(part, expected, rtol=1e-10, atol=1e-13)
        assert max(system.stacks) <= batch_size and max(system.calls) <= batch_size * (frames.shape[1] - 1)
    assert (whole.flow is None) == (kind == "plain")


def test_estimates_each_pair_once(system, stacks):
    victim = system(0)
    frames, labels = stacks(victim, 0)
    victim.pairs = 0
    clean_pass(victim, frames, labels)
    assert victim.pairs == (len(frames) + 2) * (frames.shape[1] - 1)  # the check runs one stack twice
    victim.pairs = 0
    clean_pass(victim, frames, labels, check=False)
    assert victim.pairs == len(frames) * (frames.shape[1] - 1)


def test_a_judge_needs_no_gradient(system, stacks):
    judge = system(0, "black box")
    frames, labels = stacks(judge, 0)
    clean = clean_pass(judge, frames, labels, gradient=False)
    assert clean.gradient is None and clean.saliency is None
    with pytest.raises(ValueError, match=r"BlackBox is not differentiable.*differentiable flow estimator.*stop_on"):
        clean_pass(judge, frames, labels)


class _RootAtZero(nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.stack([frames[:, 0].sqrt().sum((1, 2, 3)), frames[:, 1].sum((1, 2, 3))], 1)


def test_a_gradient_without_a_sign_is_named():
    frames = torch.full((5, 2, 3, 4, 4), 0.5)
    frames[3, 0, 0, 1, 1] = 0  # the root has an infinite slope there
    with pytest.raises(FloatingPointError, match=r"gradient of _RootAtZero is NaN or infinite for stacks \[3\]"):
        clean_pass(_RootAtZero(), frames, torch.zeros(5, dtype=torch.int64), batch_size=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, y: ((f * 255).to(torch.uint8), y), "frames are torch.uint8: .*divide 8-bit frames by 255"),
        (lambda f, y: (f * 255, y), r"frames lie in \[0, 255\]"),
        (lambda f, y: (f - 0.5, y), r"frames lie in \[-0.5, 0.5\]"),
        (lambda f, y: (f * torch.nan, y), r"frames lie in \[nan, nan\]"),
        (lambda f, y: (f[0], y), r"shape \(6, 3, 12, 14\): \(B, T, 3, H, W\)"),
        (lambda f, y: (f.transpose(1, 2), y), r"shape \(6, 3, 6, 12, 14\).* is frames\.transpose\(1, 2\)"),
        (lambda f, y: (f.movedim(2, -1), y), r"shape \(6, 6, 12, 14, 3\).* is frames\.permute\(0, 1, 4, 2, 3\)"),
        (lambda f, y: (f[:, :1], y), "T > 1"),
        (lambda f, y: (f[:0], y[:0]), "B > 0"),
        (lambda f, y: (f, y[:-1]), r"labels are torch.int64 of shape \(5,\): one class index for each of 6"),
        (lambda f, y: (f, y.double()), "labels are torch.float64"),
        (lambda f, y: (f, y[:, None]), r"shape \(6, 1\)"),
        (lambda f, y: (f, y - 5), "label -[2-5] is out of range: class indices start at 0"),
        (lambda f, y: (f, y.clamp_max(0) + 4), "label 4 is out of range: ToySystem has 4 classes"),
    ],
)
@pytest.mark.parametrize("gradient", [True, False])
def test_bad_input_is_named(change, message, gradient, system, stacks):
    victim = system(0)
    frames, labels = change(*stacks(victim, 0))
    with pytest.raises(ValueError, match=message):
        clean_pass(victim, frames, labels, gradient=gradient)
