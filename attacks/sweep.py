"""The sweep of one video: every attack, ε and target system, at stack and at video level (paper, sections 5.1 to 5.3).

The clean pass of each system is made once and shared; the video level follows from the stack results at no cost.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.attack import Attack, check_epsilons
from attacks.attack_result import AttackResult
from attacks.clean_pass import CleanPass, clean_pass
from attacks.examples import Example, make_example, with_flow
from attacks.records import CLEAN, Record
from attacks.stack_outcomes import StackOutcomes, join, records_of, stack_outcomes
from attacks.victim import BatchedVictim, Victim, under_attack


class VideoSweep(NamedTuple):
    records: list[Record]
    """in an order that depends on the sweep's settings alone"""
    example: Example | None
    seconds: dict[str, float]
    """wall seconds of "clean/<target>", "<attack>/<target>" and "8-bit/<target>" """


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is attacked, how, and under which ε.

    Args:
        system: name of the white box.
        targets: the black boxes by name.
        attacks: the attacks by name.
        transfer: names of the attacks that are also made on the black boxes.
        epsilons: all above 0; the clean system is always judged.
        batch_size: stacks in one attack call.
    """

    system: str
    targets: Mapping[str, Victim]
    attacks: Mapping[str, Attack]
    transfer: Sequence[str]
    epsilons: Sequence[float]
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_epsilons(self.epsilons)
        if self.system in self.targets:
            raise ValueError(
                f"the name {self.system!r} is both the white box and a target: targets are the other systems"
            )
        if CLEAN in self.attacks:
            raise ValueError(f"an attack cannot be called {CLEAN!r}: that is the name of the rows without an attack")
        if unknown := [name for name in self.transfer if name not in self.attacks]:
            raise ValueError(f"transfer names {unknown}, which are not among the attacks {list(self.attacks)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: at least 1 stack is needed")

    def video(
        self, white_box: Victim, frames: Tensor, label: int, *, clip: str, group: str, keep_example: bool = False
    ) -> VideoSweep:
        """Attack all stacks (S, T, 3, H, W) in [0, 1] of one video with the gradient of `white_box`.

        The example is the first stack that the white box classifies right, else the first stack.
        """
        systems = {self.system: white_box, **self.targets}
        seconds: dict[str, float] = defaultdict(float)
        outcomes: dict[tuple[str, str], list[StackOutcomes]] = defaultdict(list)
        example, example_is_right = None, False
        for start in range(0, len(frames), self.batch_size):
            chunk = frames[start : start + self.batch_size]
            labels = torch.full((len(chunk),), label, device=chunk.device)
            passes: dict[str, CleanPass] = {}
            for target, judge in systems.items():
                with _clock(seconds, f"clean/{target}", chunk):
                    gradient = target == self.system and any(attack.needs_gradient for attack in self.attacks.values())
                    passes[target] = clean_pass(judge, chunk, labels, gradient=gradient, batch_size=self.batch_size)
                    outcomes[CLEAN, target].append(self._clean_outcomes(judge, chunk, labels, passes[target]))
            white_box_results: dict[str, AttackResult] = {}
            for name, target in self._combinations():
                judge = systems[target]
                black_box = target != self.system
                with _clock(seconds, f"{name}/{target}", chunk):
                    result = self.attacks[name](
                        white_box,
                        chunk,
                        labels,
                        self.epsilons,
                        stop_on=judge if black_box else None,
                        clean=passes[self.system],
                        stop_on_clean=passes[target] if black_box else None,
                    )
                with _clock(seconds, f"8-bit/{target}", chunk):
                    right = self._right_in_8bit(judge, chunk, labels, passes[target], result)
                outcomes[name, target].append(stack_outcomes(result, right))
                if keep_example and not black_box:
                    white_box_results[name] = result
            if keep_example and not example_is_right:
                right_when_clean = passes[self.system].logits.argmax(1) == labels
                example_is_right = bool(right_when_clean.any())
                if example is None or example_is_right:
                    item = int(right_when_clean.int().argmax())
                    example = make_example(clip, start + item, item, chunk, white_box_results, self.epsilons)
                    example = with_flow(example, white_box, chunk)
        joined = {key: join(parts) for key, parts in outcomes.items()}
        records = [
            record
            for (name, target), of_stacks in joined.items()
            for record in records_of(
                joined[CLEAN, target],
                of_stacks,
                [0.0] if name == CLEAN else self.epsilons,
                dense=name == CLEAN or self.attacks[name].dense,
                label=label,
                clip=clip,
                group=group,
                system=self.system,
                target=target,
                attack=name,
            )
        ]
        return VideoSweep(records, example, dict(seconds))

    def _combinations(self) -> Iterator[tuple[str, str]]:
        """(attack, target): all attacks on the white box, the transferred ones on the others."""
        for target in (self.system, *self.targets):
            yield from ((name, target) for name in self.attacks if target == self.system or name in self.transfer)

    def _clean_outcomes(self, judge: Victim, frames: Tensor, labels: Tensor, clean: CleanPass) -> StackOutcomes:
        nothing = AttackResult(
            adversarial=frames[None],
            logits=clean.logits[None],
            attacked=clean.logits.argmax(1) == labels,
            success=torch.zeros_like(labels, dtype=torch.bool)[None],
            frames_perturbed=torch.zeros_like(labels)[None],
            frame_order=torch.full((1, *frames.shape[:2]), -1, device=frames.device),
        )
        return stack_outcomes(nothing, self._right_in_8bit(judge, frames, labels, clean, nothing))

    def _right_in_8bit(
        self, judge: Victim, frames: Tensor, labels: Tensor, clean: CleanPass, result: AttackResult
    ) -> Tensor:
        """(E, B) bool: the judge is right once the adversarial frames are rounded to 8 bits.

        Frames from 8-bit video are their own rounding, so only the pairs with a perturbed frame are estimated again;
        and none where the judge rounds its frames itself (`rounds_frames`).
        """
        if getattr(judge, "rounds_frames", False):
            return result.predictions == labels
        changed = torch.zeros(result.frame_order.shape, dtype=torch.bool, device=frames.device)
        if (frames * 255 - (frames * 255).round()).abs().max() > 1e-3:
            changed[:] = True
        else:
            experiment, item, step = (result.frame_order >= 0).nonzero(as_tuple=True)
            changed[experiment, item, result.frame_order[experiment, item, step]] = True
        changed = changed.flatten(0, 1)
        rounded = result.adversarial.flatten(0, 1).mul(255).round().div(255)
        logits = clean.logits.repeat(len(result.logits), 1)
        rows = changed.any(1).nonzero().flatten()
        if len(rows):
            batched = BatchedVictim(judge, self.batch_size)
            flow = None if clean.flow is None else clean.flow.repeat(len(result.logits), 1, 1, 1, 1)
            with under_attack(judge):
                batched.update_flow(rounded, flow, rows, (changed[:, :-1] | changed[:, 1:])[rows])
                logits[rows] = batched.logits(rounded, flow, rows)
        return logits.argmax(1).unflatten(0, (-1, len(labels))) == labels


@contextmanager
def _clock(seconds: dict[str, float], what: str, on: Tensor) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if on.is_cuda:
        torch.cuda.synchronize(on.device)
    seconds[what] += time.perf_counter() - start
