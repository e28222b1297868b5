"""The sweep of one video: every attack, ε and target system, at stack and at video level (paper, sections 5.1 to 5.3).

The clean pass of each system is made once and shared, and so is the first step of the attacks that begin alike on one
target; the video level follows from the stack results at no cost.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import NamedTuple

import torch
from torch import Tensor

from attacks.attack import Attack, check_epsilons
from attacks.attack_result import AttackResult, FirstStep
from attacks.clean_pass import CleanPass, clean_pass
from attacks.eight_bit import is_8bit
from attacks.examples import Example, make_example, with_flow
from attacks.meter import Meter
from attacks.perceptibility import stack_quality
from attacks.realisability import Row, realisability
from attacks.records import CLEAN, Cost, Record
from attacks.stack_outcomes import StackOutcomes, join, records_of, stack_outcomes
from attacks.victim import BatchedVictim, Victim, under_attack


class OnTarget(NamedTuple):
    """What became of some stacks on one target, by attack; the results only where they are asked for."""

    outcomes: dict[str, StackOutcomes]
    results: dict[str, AttackResult]


class VideoSweep(NamedTuple):
    records: list[Record]
    """in an order that depends on the sweep's settings alone"""
    example: Example | None
    costs: dict[str, Cost]
    """of "check/<target>", "clean/<target>", "<attack>/<target>", "8-bit/<target>", "quality/<target>" and
    "realise/<white box>" """
    realised: list[Row]
    """what the white box says of attacked frames that were stored; empty unless asked for"""


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
        pairs_at_once: most frame pairs whose graphs the clean pass holds together; None keeps those of all its stacks.
    """

    system: str
    targets: Mapping[str, Victim]
    attacks: Mapping[str, Attack]
    transfer: Sequence[str]
    epsilons: Sequence[float]
    batch_size: int = 8
    pairs_at_once: int | None = None
    checked: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    """Systems that were held against themselves on a clean stack: each once in a process, whatever the videos."""

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
        if self.pairs_at_once is not None and self.pairs_at_once < 1:
            raise ValueError(f"pairs_at_once is {self.pairs_at_once}: at least 1 pair is needed")

    def video(
        self,
        white_box: Victim,
        frames: Tensor,
        label: int,
        *,
        clip: str,
        group: str,
        keep_example: bool = False,
        realise: bool = False,
    ) -> VideoSweep:
        """Attack all stacks (S, T, 3, H, W) in [0, 1] of one video with the gradient of `white_box`.

        The example is the first stack that the white box classifies right, else the first stack. `realise` also sends
        what the attacks on the white box made through 8 bits and video files.
        """
        systems = {self.system: white_box, **self.targets}
        meters = {target: Meter(frames) for target in systems}
        outcomes: dict[tuple[str, str], list[StackOutcomes]] = defaultdict(list)
        realised: list[Row] = []
        example, example_is_right = None, False
        for start in range(0, len(frames), self.batch_size):
            chunk = frames[start : start + self.batch_size]
            labels = torch.full((len(chunk),), label, device=chunk.device)
            clean = self._clean(self.system, white_box, chunk, labels, meters[self.system])
            work = partial(self._on_target, systems, chunk, labels, clean, meters, keep=keep_example or realise)
            made = _side_by_side(work, systems)
            for target in systems:
                for name, of_stacks in made[target].outcomes.items():
                    outcomes[name, target].append(of_stacks)
            of_white_box = made[self.system].results
            if realise:
                with meters[self.system].clock(f"realise/{self.system}"):
                    for name, result in of_white_box.items():
                        realised += realisability(
                            white_box,
                            chunk,
                            result,
                            epsilons=self._epsilons(name),
                            label=label,
                            clip=clip,
                            first_stack=start,
                            attack=name,
                            target=self.system,
                            batch_size=self.batch_size,
                        )
            if keep_example and not example_is_right:
                right_when_clean = clean.logits.argmax(1) == labels
                example_is_right = bool(right_when_clean.any())
                if example is None or example_is_right:
                    item = int(right_when_clean.int().argmax())
                    attacked = {name: result for name, result in of_white_box.items() if name != CLEAN}
                    example = make_example(clip, start + item, item, chunk, attacked, self.epsilons)
                    example = with_flow(example, white_box, chunk)
        joined = {key: join(parts) for key, parts in outcomes.items()}
        records = [
            record
            for (name, target), of_stacks in sorted(joined.items(), key=lambda item: item[0][0] != CLEAN)
            for record in records_of(
                joined[CLEAN, target],
                of_stacks,
                self._epsilons(name),
                dense=name == CLEAN or self.attacks[name].dense,
                label=label,
                clip=clip,
                group=group,
                system=self.system,
                target=target,
                attack=name,
            )
        ]
        costs = {what: cost for meter in meters.values() for what, cost in meter.costs.items()}
        return VideoSweep(records, example, costs, realised)

    def _epsilons(self, attack: str) -> Sequence[float]:
        return [0.0] if attack == CLEAN else self.epsilons

    def _on_target(
        self,
        systems: Mapping[str, Victim],
        frames: Tensor,
        labels: Tensor,
        clean: CleanPass,
        meters: Mapping[str, Meter],
        target: str,
        stopped: Event,
        *,
        keep: bool,
    ) -> OnTarget:
        """The clean stacks and all attacks on one target; `clean` is the white box's pass, `keep` its results, too."""
        judge, meter, made = systems[target], meters[target], OnTarget({}, {})
        is_white_box = target == self.system
        judged = clean if is_white_box else self._clean(target, judge, frames, labels, meter)
        for name, result in self._results(systems[self.system], target, judge, frames, labels, clean, judged, meter):
            right = self._right_in_8bit(target, judge, frames, labels, judged, result, meter)
            with meter.clock(f"quality/{target}"):
                quality = stack_quality(frames, result.adversarial, judged.flow, result.flow)
            made.outcomes[name] = stack_outcomes(result, right, quality)
            if keep and is_white_box:
                made.results[name] = result
            if stopped.is_set():
                break
        # As the settings have them, whichever was made first.
        order = [CLEAN, *self.attacks]
        return OnTarget(
            {name: made.outcomes[name] for name in order if name in made.outcomes},
            {name: made.results[name] for name in order if name in made.results},
        )

    def _clean(self, target: str, judge: Victim, frames: Tensor, labels: Tensor, meter: Meter) -> CleanPass:
        gradient = target == self.system and any(attack.needs_gradient for attack in self.attacks.values())
        retained = (attack.retain(frames, len(self.epsilons)) for attack in self.attacks.values())
        if target not in self.checked:
            with meter.clock(f"check/{target}"), under_attack(judge):
                BatchedVictim(judge, 1).check(frames[:1])
            meter.pair_forwards[f"check/{target}"] = 2 * (frames.shape[1] - 1)
            self.checked.add(target)
        with meter.clock(f"clean/{target}"):
            return clean_pass(
                judge,
                frames,
                labels,
                gradient=gradient,
                batch_size=self.batch_size,
                pairs_at_once=self.pairs_at_once,
                retained=next(filter(None, retained), None) if gradient else None,
                check=False,
            )

    def _results(
        self,
        white_box: Victim,
        target: str,
        judge: Victim,
        frames: Tensor,
        labels: Tensor,
        clean: CleanPass,
        judged: CleanPass,
        meter: Meter,
    ) -> Iterator[tuple[str, AttackResult]]:
        """Attack and result: the clean target, then all attacks on the white box or the transferred ones on another.

        Args:
            clean, judged: the clean passes of the white box and of the target.
        """
        black_box = target != self.system
        unperturbed = _unperturbed(frames, labels, judged)
        meter.count(f"clean/{target}", unperturbed)
        yield CLEAN, unperturbed
        first_steps: dict[str, FirstStep] = {}  # by how the attacks begin
        # What retains pairs makes the first step, of which others need the outcome alone.
        for name, attack in sorted(self.attacks.items(), key=lambda item: item[1].retained_pairs == 0):
            if black_box and name not in self.transfer:
                continue
            with meter.clock(f"{name}/{target}"):
                result = attack(
                    white_box,
                    frames,
                    labels,
                    self.epsilons,
                    stop_on=judge if black_box else None,
                    # What it retained is the white box's attacks' alone: others are made beside them.
                    clean=clean._replace(retained=None) if black_box else clean,
                    stop_on_clean=judged if black_box else None,
                    first_step=None if attack.begins is None else first_steps.get(attack.begins),
                )
            meter.count(f"{name}/{target}", result)
            if attack.begins is not None and result.first_step is not None:
                first_steps[attack.begins] = result.first_step
            yield name, result

    def _right_in_8bit(
        self,
        target: str,
        judge: Victim,
        frames: Tensor,
        labels: Tensor,
        clean: CleanPass,
        result: AttackResult,
        meter: Meter,
    ) -> Tensor:
        """(E, B) bool: the judge is right once the adversarial frames are rounded to 8 bits.

        Frames from 8-bit video are their own rounding, so only the pairs with a perturbed frame are estimated again;
        and none where the judge rounds its frames itself (`rounds_frames`).
        """
        if getattr(judge, "rounds_frames", False):
            return result.predictions == labels
        changed = torch.zeros(result.frame_order.shape, dtype=torch.bool, device=frames.device)
        if not is_8bit(frames):
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
            with meter.clock(f"8-bit/{target}"), under_attack(judge):
                pairs = batched.update_flow(rounded, flow, rows, (changed[:, :-1] | changed[:, 1:])[rows])
                logits[rows] = batched.logits(rounded, flow, rows)
            meter.pair_forwards[f"8-bit/{target}"] += int(pairs.sum())
        return logits.argmax(1).unflatten(0, (-1, len(labels))) == labels


def _unperturbed(frames: Tensor, labels: Tensor, clean: CleanPass) -> AttackResult:
    """A clean pass as the result of an attack that does nothing."""
    pairs = torch.full_like(labels, frames.shape[1] - 1)[None]
    return AttackResult(
        adversarial=frames[None],
        flow=None if clean.flow is None else clean.flow[None],
        logits=clean.logits[None],
        labels=labels,
        attacked=clean.logits.argmax(1) == labels,
        success=torch.zeros_like(labels, dtype=torch.bool)[None],
        frames_perturbed=torch.zeros_like(labels)[None],
        frame_order=torch.full((1, *frames.shape[:2]), -1, device=frames.device),
        no_gradient=torch.zeros_like(labels, dtype=torch.bool)[None],
        step_logits=None,
        pair_forwards=pairs,
        pair_backwards=torch.zeros_like(pairs) if clean.gradient is None else pairs,
        first_step=None,
    )


def _side_by_side(work: Callable[[str, Event], OnTarget], systems: Mapping[str, Victim]) -> dict[str, OnTarget]:
    """What `work` makes of each system: one after another, and beside them, each in a thread of its own, those without
    a gradient, whose flow is computed on the CPU (TV-L1, Farneback). If one fails, the event tells the others to stop.
    """
    threads = [name for name, system in systems.items() if getattr(system, "differentiable", True) is False]
    stopped = Event()
    # Modes are set once for all: a thread that restored them would turn back a system that another one is running.
    with under_attack(*systems.values()), ThreadPoolExecutor(max(1, len(threads))) as pool:
        try:
            beside = {name: pool.submit(work, name, stopped) for name in threads}
            made = {name: work(name, stopped) for name in systems if name not in threads}
            return made | {name: future.result() for name, future in beside.items()}
        finally:
            stopped.set()
