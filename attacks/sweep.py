"""The sweep of one video: every attack, ε and target system, at stack and at video level (paper, sections 5.1 to 5.3).

The clean pass of each system is made once and shared, and so is the first step of the attacks that begin alike on one
target; the video level follows from the stack results at no cost.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
from attacks.examples import Example, Shown, make_example, shown_of, with_flow
from attacks.loss import Loss
from attacks.meter import Meter
from attacks.perceptibility import stack_quality
from attacks.realisability import Row, realisability
from attacks.records import CLEAN, Cost, Record, sum_costs
from attacks.stack_outcomes import StackOutcomes, join, no_verdict, records_of, stack_outcomes
from attacks.stopping import Stopped, stopped_by
from attacks.victim import BatchedVictim, Victim, same_victim, under_attack


class Stacks(NamedTuple):
    """Some stacks of one clip, attacked in one call."""

    clip: str
    first: int
    """index in the clip of the first of them"""
    frames: Tensor
    """(B, T, 3, H, W)"""
    label: int
    labels: Tensor
    """(B,), all `label`"""
    clean: Mapping[Loss | None, CleanPass]
    """the white box's, by the loss whose gradient it has, or None without one; empty where its logits are not finite"""
    shown: int | None
    """which of them is to be the example; None for none"""
    realise: bool


class OnTarget(NamedTuple):
    """What became of some stacks on one target, by attack."""

    outcomes: dict[str, StackOutcomes]
    shown: dict[str, Shown]
    """what the example shows"""
    realised: dict[str, list[Row]]


class VideoSweep(NamedTuple):
    records: list[Record]
    """in an order that depends on the sweep's settings alone"""
    example: Example | None
    costs: dict[str, Cost]
    """of "check/<target>", "clean/<target>", "clean for <loss>/<white box>", "<attack>/<target>", "8-bit/<target>",
    "quality/<target>" and "realise/<white box>" """
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
    checked: list[Victim] = field(default_factory=list, init=False, repr=False, compare=False)
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
        what the attacks on the white box made through 8 bits and video files. A stack whose logits or gradient are not
        finite has rows with the fault NOT_FINITE for what could not be judged; the others are judged as ever.
        """
        outcomes: dict[tuple[str, str], list[StackOutcomes]] = defaultdict(list)
        costs: list[Mapping[str, Cost]] = []
        realised: list[Row] = []
        example, example_is_right = None, False

        def attack(start: int, stop: int) -> None:
            nonlocal example, example_is_right
            part = _Part(clip, start, frames[start:stop], label, keep_example and not example_is_right, realise)
            try:
                made = self._stacks(white_box, part, has_example=example is not None)
            except FloatingPointError:
                if len(part.frames) == 1:
                    raise
                made = None  # whose the fault is shows one by one; outside of the handler, which holds the frames
            if made is None:
                for stack in range(start, stop):
                    attack(stack, stack + 1)
                return
            for target, of_target in made.by_target.items():
                for name, of_stacks in of_target.outcomes.items():
                    outcomes[name, target].append(of_stacks)
            for rows in made.by_target[self.system].realised.values():
                realised.extend(rows)
            costs.append(made.costs)
            if made.example is not None:
                example, example_is_right = made.example, made.example_is_right

        for start in range(0, len(frames), self.batch_size):
            attack(start, min(start + self.batch_size, len(frames)))
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
        return VideoSweep(records, example, sum_costs(costs), realised)

    def _epsilons(self, attack: str) -> Sequence[float]:
        return [0.0] if attack == CLEAN else self.epsilons

    def _stacks(self, white_box: Victim, part: "_Part", *, has_example: bool) -> "_Made":
        """Attack some stacks on all targets.

        Raises:
            FloatingPointError: logits or a gradient of several stacks are not finite. Of one, it becomes its fault.
        """
        systems = {self.system: white_box, **self.targets}
        frames = part.frames
        # A part that fails is attacked again, and counted then: its meters go with it.
        meters = {target: Meter(frames) for target in systems}
        labels = torch.full((len(frames),), part.label, device=frames.device)
        clean = self._clean_of_white_box(white_box, frames, labels, meters[self.system])
        shown, is_right = None, False
        if part.keep_example and clean:
            right = _any(clean).logits.argmax(1) == labels
            is_right = bool(right.any())
            shown = int(right.int().argmax()) if is_right or not has_example else None
        stacks = Stacks(part.clip, part.first, frames, part.label, labels, clean, shown, part.realise)
        made = _side_by_side(partial(self._on_target, systems, stacks, meters), systems)
        example, pieces = None, made[self.system].shown
        if shown is not None and pieces.keys() == self.attacks.keys():  # fewer where an attack has no verdict
            example = make_example(part.clip, part.first + shown, frames[shown], pieces, self.epsilons)
            example = with_flow(example, white_box, frames)
        costs = {what: cost for meter in meters.values() for what, cost in meter.costs.items()}
        return _Made(made, costs, example, is_right)

    def _on_target(
        self, systems: Mapping[str, Victim], stacks: Stacks, meters: Mapping[str, Meter], target: str
    ) -> OnTarget:
        """The clean stacks and all attacks on one target: those that are transferred, on a black box."""
        white_box, judge, meter = systems[self.system], systems[target], meters[target]
        frames, labels, clean = stacks.frames, stacks.labels, stacks.clean
        black_box = target != self.system
        made = OnTarget({}, {}, {})
        alone = len(frames) == 1
        try:
            if not black_box and not clean:
                raise FloatingPointError(f"{target} has no finite logits for the clean stack")
            judged = self._clean(judge, target, frames, labels, meter) if black_box else _any(clean)
            self._judge(made, CLEAN, _unperturbed(frames, labels, judged), target, judge, stacks, judged, meter)
        except FloatingPointError:
            if not alone:
                raise
            judged = None
            made.outcomes[CLEAN] = no_verdict(1, frames.shape[1])
        first_steps: dict[str, FirstStep] = {}  # by how the attacks begin
        # What retains pairs makes the first step, of which others need the outcome alone.
        for name, attack in sorted(self.attacks.items(), key=lambda item: item[1].retained_pairs == 0):
            if black_box and name not in self.transfer:
                continue
            if judged is None or (attack.needs_gradient and attack.loss not in clean):
                made.outcomes[name] = no_verdict(len(self.epsilons), frames.shape[1])
                continue
            try:
                self._attack(made, name, white_box, target, judge, stacks, judged, first_steps, meter)
            except FloatingPointError:
                if not alone:
                    raise
                made.outcomes[name] = no_verdict(len(self.epsilons), frames.shape[1])
        # As the settings have them, whichever was made first.
        order = [CLEAN, *self.attacks]
        return OnTarget(
            {name: made.outcomes[name] for name in order if name in made.outcomes},
            {name: made.shown[name] for name in order if name in made.shown},
            {name: made.realised[name] for name in order if name in made.realised},
        )

    def _attack(
        self,
        made: OnTarget,
        name: str,
        white_box: Victim,
        target: str,
        judge: Victim,
        stacks: Stacks,
        judged: CleanPass,
        first_steps: dict[str, FirstStep],
        meter: Meter,
    ) -> None:
        """Make one attack and keep what is wanted of it; its frames are gone before the next one is made."""
        attack, black_box = self.attacks[name], target != self.system
        clean = stacks.clean[attack.loss] if attack.needs_gradient else None if black_box else _any(stacks.clean)
        with meter.clock(f"{name}/{target}"):
            result = attack(
                white_box,
                stacks.frames,
                stacks.labels,
                self.epsilons,
                stop_on=judge if black_box else None,
                # What it retained is the white box's attacks' alone: others are made beside them.
                clean=clean._replace(retained=None) if black_box and clean is not None else clean,
                stop_on_clean=judged if black_box else None,
                first_step=None if attack.begins is None else first_steps.get(attack.begins),
            )
        self._judge(made, name, result, target, judge, stacks, judged, meter)
        if attack.begins is not None and result.first_step is not None:
            first_steps[attack.begins] = result.first_step

    def _judge(
        self,
        made: OnTarget,
        name: str,
        result: AttackResult,
        target: str,
        judge: Victim,
        stacks: Stacks,
        judged: CleanPass,
        meter: Meter,
    ) -> None:
        """Add a result to what is `made`; `judged` is the target's clean pass."""
        right = self._right_in_8bit(target, judge, stacks.frames, stacks.labels, judged, result, meter)
        with meter.clock(f"quality/{target}"):
            quality = stack_quality(stacks.frames, result.adversarial, judged.flow, result.flow)
        if target == self.system and stacks.shown is not None and name != CLEAN:
            made.shown[name] = shown_of(result, stacks.shown, self.epsilons)
        if target == self.system and stacks.realise:
            with meter.clock(f"realise/{target}"):
                made.realised[name] = realisability(
                    judge,
                    stacks.frames,
                    result,
                    epsilons=self._epsilons(name),
                    label=stacks.label,
                    clip=stacks.clip,
                    first_stack=stacks.first,
                    attack=name,
                    target=target,
                    batch_size=self.batch_size,
                )
        made.outcomes[name] = stack_outcomes(result, right, quality)
        meter.count(f"{name}/{target}", result)

    def _clean_of_white_box(
        self, white_box: Victim, frames: Tensor, labels: Tensor, meter: Meter
    ) -> dict[Loss | None, CleanPass]:
        """One for each loss that an attack climbs. Of one stack: those whose gradient is finite, else one without."""
        found: dict[Loss | None, CleanPass] = {}
        losses = dict.fromkeys(attack.loss for attack in self.attacks.values() if attack.needs_gradient)
        for loss in [*losses, None]:
            if loss is None and found:
                break
            try:
                found[loss] = self._clean(white_box, self.system, frames, labels, meter, loss=loss, again=bool(found))
            except FloatingPointError:
                if len(frames) > 1:
                    raise
        return found

    def _clean(
        self,
        judge: Victim,
        target: str,
        frames: Tensor,
        labels: Tensor,
        meter: Meter,
        *,
        loss: Loss | None = None,
        again: bool = False,
    ) -> CleanPass:
        """With the gradient of a loss, or without; one that is made `again`, for another loss, counts by itself."""
        if not any(same_victim(judge, seen) for seen in self.checked):
            for stack in frames.split(1):  # the first whose logits tell something
                with meter.clock(f"check/{target}"), under_attack(judge):
                    compared = BatchedVictim(judge, 1).check(stack)
                meter.pair_forwards[f"check/{target}"] += 2 * (frames.shape[1] - 1)
                if compared:
                    self.checked.append(judge)
                    break
        climbing = [attack for attack in self.attacks.values() if attack.loss == loss]
        retained = (attack.retain(frames, len(self.epsilons)) for attack in climbing)
        part = f"clean for {loss}/{target}" if again else f"clean/{target}"
        if again:
            pairs = len(frames) * (frames.shape[1] - 1)
            meter.pair_forwards[part] = meter.pair_backwards[part] = pairs
        with meter.clock(part):
            return clean_pass(
                judge,
                frames,
                labels,
                gradient=loss is not None,
                batch_size=self.batch_size,
                pairs_at_once=self.pairs_at_once,
                retained=next(filter(None, retained), None) if loss is not None else None,
                loss=loss or "log-odds",
                check=False,
            )

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
        and none where the judge rounds its frames itself (`rounds_frames`). One ε after another: the rounded frames and
        their flow are a second copy of what is judged.
        """
        if getattr(judge, "rounds_frames", False):
            return result.predictions == labels
        changed = torch.zeros(result.frame_order.shape, dtype=torch.bool, device=frames.device)
        if not is_8bit(frames):
            changed[:] = True
        else:
            experiment, item, step = (result.frame_order >= 0).nonzero(as_tuple=True)
            changed[experiment, item, result.frame_order[experiment, item, step]] = True
        batched, right = BatchedVictim(judge, self.batch_size), []
        for adversarial, of_frames in zip(result.adversarial, changed, strict=True):
            logits, rows = clean.logits.clone(), of_frames.any(1).nonzero().flatten()
            if len(rows):
                rounded = adversarial[rows].mul_(255).round_().div_(255)
                flow = None if clean.flow is None else clean.flow[rows]
                every = torch.arange(len(rows), device=rows.device)
                with meter.clock(f"8-bit/{target}"), under_attack(judge):
                    pairs = batched.update_flow(rounded, flow, every, (of_frames[:, :-1] | of_frames[:, 1:])[rows])
                    logits[rows] = batched.logits(rounded, flow, every)
                meter.pair_forwards[f"8-bit/{target}"] += int(pairs.sum())
            right.append(logits.argmax(1) == labels)
        return torch.stack(right)


def _any(clean: Mapping[Loss | None, CleanPass]) -> CleanPass:
    """All of them have the same logits and flow."""
    return next(iter(clean.values()))


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


class _Part(NamedTuple):
    clip: str
    first: int
    frames: Tensor
    label: int
    keep_example: bool
    realise: bool


class _Made(NamedTuple):
    by_target: dict[str, OnTarget]
    costs: dict[str, Cost]
    example: Example | None
    example_is_right: bool
    """its stack is classified right when clean"""


def _side_by_side(work: Callable[[str], OnTarget], systems: Mapping[str, Victim]) -> dict[str, OnTarget]:
    """What `work` makes of each system: one after another, and beside them, each in a thread of its own, those without
    a gradient, whose flow is computed on the CPU (TV-L1, Farneback). If one fails, the others stop at their next pass
    of a system, and its error is raised.
    """
    threads = [name for name, system in systems.items() if getattr(system, "differentiable", True) is False]
    stop, errors = Event(), list[BaseException]()

    def watched(name: str) -> OnTarget:
        with stopped_by(stop):
            try:
                return work(name)
            except Stopped:
                raise
            except BaseException as error:
                errors.append(error)  # before the others stop, and look for it
                stop.set()
                raise

    # Modes are set once for all: a thread that restored them would turn back a system that another one is running.
    with under_attack(*systems.values()), ThreadPoolExecutor(max(1, len(threads))) as pool:
        try:
            beside = {name: pool.submit(watched, name) for name in threads}
            made = {name: watched(name) for name in systems if name not in threads}
            return made | {name: future.result() for name, future in beside.items()}
        except BaseException as error:
            errors.append(error)
        finally:
            stop.set()  # an interrupt may come between two of them
    raise errors[0]
