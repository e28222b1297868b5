"""The control, not in the paper: noise of the same ε with random signs, to see what the gradient adds."""

import zlib

import torch
from torch import Tensor

from attacks.attack import Attack, WorkingSet
from attacks.clean_pass import CleanPass
from attacks.victim import BatchedVictim


class Noise(Attack):
    """Every value of every frame moves by +ε or -ε at random, clipped to [0, 1].

    A stack's signs depend on `seed` and the stack's own content (as float32), not on its batch, ε, dtype or device.

    Args:
        seed: another seed, other signs.
        batch_size: most stacks in one forward pass.
    """

    name = "noise"
    dense = True
    needs_gradient = False

    def __init__(self, seed: int = 0, batch_size: int = 8) -> None:
        super().__init__(batch_size)
        self.seed = seed

    def craft(
        self,
        work: WorkingSet,
        frames: Tensor,
        victim: BatchedVictim,
        judge: BatchedVictim,
        clean: CleanPass,
        judged: CleanPass,
    ) -> None:
        del victim, clean, judged
        signs = torch.stack([random_signs(stack, self.seed) for stack in frames])
        self.perturb_all_frames(work, frames, signs, judge)


def random_signs(stack: Tensor, seed: int) -> Tensor:
    """-1 or 1 for each value of one stack (T, 3, H, W), drawn from `seed` and the stack's content."""
    return torch.randint(0, 2, stack.shape, generator=stack_generator(stack, seed)).mul(2).sub(1).to(stack)


def stack_generator(stack: Tensor, seed: int) -> torch.Generator:
    """A source of chance that is the stack's own: it starts from `seed` and the content (as float32) alone."""
    content = stack.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    # The seed starts the checksum, since the CPU generator reads the low 32 bits of its own seed only.
    return torch.Generator().manual_seed(zlib.crc32(content, seed & 0xFFFFFFFF))
