"""What an attack climbs: the cost C of eq. 1 to 3, which grows as the system turns away from the label.

The paper's cost is the cross-entropy. Its gradient at the label is softmax - 1, which float32 rounds to 0 once the
label's logit leads by about 16.6: the attack then stands still, and the stack only seems robust. The log-odds have no
such end. The cross-entropy is softplus(log-odds), a monotone function, so in exact arithmetic the signs of both
gradients and the order of the frames by saliency are the same.
"""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from attacks.attack_result import margin

Loss = Literal["log-odds", "cross-entropy", "margin"]


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """logsumexp of the other logits less the label's, (n,): the log-odds against the label; the paper's attack.

    Args:
        logits: (n, C), C > 1.
        labels: (n,).
    """
    others = logits.scatter(1, labels[:, None], -float("inf"))
    return others.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax at the label, (n,), as the paper writes it and the toolbox computes it; see the fault above."""
    return F.cross_entropy(logits, labels, reduction="none")


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The greatest other logit less the label's, (n,) (Carlini and Wagner 2017, f6). Unlike the others' gradients, its
    signs do not depend on the scale of the logits."""
    return -margin(logits, labels)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "log-odds": log_odds,
    "cross-entropy": cross_entropy,
    "margin": negative_margin,
}


def check_loss(loss: str) -> None:
    """Raise ValueError that names an unknown loss and the known ones."""
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}: choose {', '.join(get_args(Loss))}")
