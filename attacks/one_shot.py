"""The one-shot attack (paper, section 3.3): every frame moves once along the sign of the clean gradient."""

from torch import Tensor

from attacks.attack import Attack, WorkingSet
from attacks.clean_pass import CleanPass
from attacks.victim import BatchedVictim


class OneShot(Attack):
    """Eq. 3 on all frames of all stacks, those that are misclassified already included (section 5.2).

    Args:
        batch_size: most stacks in one forward or backward pass.
        pairs_at_once: most frame pairs whose graphs are in memory together for a gradient; None keeps those of a pass.
        loss: what the attack climbs, see `attacks.loss`.
    """

    name = "one-shot"
    dense = True

    def craft(
        self,
        work: WorkingSet,
        frames: Tensor,
        victim: BatchedVictim,
        judge: BatchedVictim,
        clean: CleanPass,
        judged: CleanPass,
    ) -> None:
        del victim, judged
        assert clean.gradient is not None
        work.no_gradient[:] = (work.epsilon > 0) & ~clean.gradient.flatten(1).any(1)[work.stack]
        self.perturb_all_frames(work, frames, clean.gradient.sign(), judge)
