"""The rows of one video against plain attacks on single stacks, judged by whole forwards."""

import gc
import json
import runpy
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.attack_result import AttackResult
from attacks.examples import Example, example_clips, load_examples, save_example
from attacks.iterative_saliency import IterativeSaliency
from attacks.noise import Noise
from attacks.one_shot import OneShot
from attacks.perceptibility import Quality
from attacks.records import CLEAN, NO_GRADIENT, NOT_FINITE, Record, RecordStore, read_records
from attacks.stack_outcomes import stack_outcomes
from attacks.sweep import Sweep, VideoSweep
from attacks.sweep_callback import default_attacks

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy_sweep.py")), run_name="toy_sweep"))
EPSILONS = (0.004, 0.02)
NAMES = list(default_attacks())
TRANSFER = ("one_shot", "iterative_saliency_rg", "noise")


def make_sweep(**options: object) -> Sweep:
    settings = {"system": "flownet2", "targets": {"tvl1": toy.ToySystem(window=3, differentiable=False).eval()}}
    settings |= {"attacks": default_attacks(), "transfer": TRANSFER, "epsilons": EPSILONS, "batch_size": 3}
    return Sweep(**{**settings, **options})


@pytest.fixture(scope="module")
def video() -> Tensor:
    """Seven stacks labelled 0 (Right), of which two move otherwise: those are wrong when clean."""
    frames = toy.moving_texture(0, seed=3, stacks=7)
    frames[[1, 4]] = toy.moving_texture(2, seed=5, stacks=2)
    return frames


@pytest.fixture(scope="module")
def white_box() -> torch.nn.Module:
    return toy.ToySystem().eval()


@pytest.fixture(scope="module")
def swept(video: Tensor, white_box: torch.nn.Module) -> VideoSweep:
    return make_sweep().video(white_box, video, 0, clip="Right/v_Right_g00_c01", group="Right_g00", keep_example=True)


def of(records: Sequence[Record], **fields: object) -> list[Record]:
    return [r for r in records if all(getattr(r, name) == value for name, value in fields.items())]


def test_one_row_for_each_level_stack_attack_target_and_epsilon(swept: VideoSweep) -> None:
    keys = [(r.level, r.stack, r.attack, r.target, r.epsilon) for r in swept.records]
    assert len(set(keys)) == len(keys) == (7 + 1) * (2 + (len(NAMES) + len(TRANSFER)) * 2)
    assert {(r.attack, r.target) for r in swept.records if r.target == "tvl1"} == {
        (name, "tvl1") for name in (CLEAN, *TRANSFER)
    }
    assert {r.epsilon for r in of(swept.records, attack=CLEAN)} == {0.0}
    assert {(r.clip, r.group, r.label, r.system) for r in swept.records} == {
        ("Right/v_Right_g00_c01", "Right_g00", 0, "flownet2")
    }


def test_retained_pairs_change_the_costs_alone(swept: VideoSweep, video: Tensor, white_box: torch.nn.Module) -> None:
    """Rows, their order and results; the attack that retains pairs makes the shared first step."""
    anew = make_sweep(attacks=default_attacks(retained_pairs=0)).video(
        white_box, video, 0, clip="Right/v_Right_g00_c01", group="Right_g00", keep_example=True
    )
    assert swept.example is not None and anew.example is not None
    assert list(anew.example.adversarial) == list(swept.example.adversarial)
    costs = ("pair_forwards", "pair_backwards", "seconds")
    one, other = (
        [{key: value for key, value in record._asdict().items() if key not in costs} for record in sweep.records]
        for sweep in (swept, anew)
    )
    assert one == other
    for parts in (["iterative_saliency_rg/tvl1"], ["iterative_saliency/flownet2", "iterative_saliency_rg/flownet2"]):
        now, before = (sum(sweep.costs[part].pair_forwards for part in parts) for sweep in (swept, anew))
        assert now < before


@pytest.mark.parametrize("target", ["flownet2", "tvl1"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_what_the_attack_alone_gives(
    name: str, target: str, swept: VideoSweep, video: Tensor, white_box: torch.nn.Module
) -> None:
    if target == "tvl1" and name not in TRANSFER:
        assert not of(swept.records, attack=name, target=target)
        return
    judge = white_box if target == "flownet2" else make_sweep().targets["tvl1"]
    label, attack = torch.tensor([0]), default_attacks()[name]
    means: list[list[Tensor]] = []
    for e, epsilon in enumerate(EPSILONS):
        means.append([])
        for stack in range(len(video)):
            frames = video[stack : stack + 1]
            result = attack(white_box, frames, label, (epsilon,), stop_on=None if judge is white_box else judge)
            with torch.no_grad():
                probabilities = judge(result.adversarial[0]).softmax(1)[0]
                rounded = judge((result.adversarial[0] * 255).round() / 255).argmax(1)
                clean = judge(frames).softmax(1)[0]
            means[e].append(probabilities)
            (row,) = of(swept.records, level="stack", stack=stack, attack=name, target=target, epsilon=epsilon)
            assert row.clean_prediction == int(clean.argmax())
            assert row.clean_confidence == pytest.approx(float(clean.max()), abs=2e-5)
            assert row.attacked == (int(clean.argmax()) == 0)
            assert row.prediction == int(probabilities.argmax())
            assert row.confidence == pytest.approx(float(probabilities.max()), abs=2e-5)
            assert row.correct == (row.prediction == 0)
            assert row.success == (row.attacked and not row.correct)
            assert row.correct_8bit == (int(rounded) == 0)
            assert row.frame_order == [n for n in result.frame_order[0, 0].tolist() if n >= 0]
            assert row.frames_perturbed == len(row.frame_order)
            with torch.no_grad():
                logits = judge(result.adversarial[0])[0].tolist()
            assert row.margin == pytest.approx(logits[0] - max(logits[1:]), abs=2e-4)
            if attack.dense:
                assert row.steps is None
                continue
            current = frames.clone()
            assert [step[0] for step in row.steps] == row.frame_order
            for frame, prediction, confidence, margin in row.steps:
                current[0, frame] = result.adversarial[0, 0, frame]
                with torch.no_grad():
                    logits = judge(current)[0]
                assert prediction == int(logits.argmax())
                assert confidence == pytest.approx(float(logits.softmax(0).max()), abs=2e-5)
                assert margin == pytest.approx(float(logits[0] - logits[1:].max()), abs=2e-4)


def test_costs_are_the_pairs_that_the_systems_saw(video: Tensor) -> None:
    white_box, black_box = Counting(), Counting(window=3, differentiable=False)
    sweep = make_sweep(targets={"tvl1": black_box}, attacks=default_attacks(retained_pairs=0))
    swept = sweep.video(white_box.eval(), video, 0, clip="c", group="g")
    assert white_box.pairs + black_box.pairs == sum(cost.pair_forwards for cost in swept.costs.values())
    assert white_box.differentiated == sum(cost.pair_backwards for cost in swept.costs.values())
    assert swept.costs.keys() == {
        *(
            f"{what}/{target}"
            for what in ("check", CLEAN, *TRANSFER, "8-bit", "quality")
            for target in ("flownet2", "tvl1")
        ),
        *(f"{name}/flownet2" for name in NAMES),
    }
    for name, target in {(r.attack, r.target) for r in swept.records}:
        rows, cost = of(swept.records, attack=name, target=target), swept.costs[f"{name}/{target}"]
        assert sum(r.pair_forwards for r in rows) == cost.pair_forwards
        assert sum(r.pair_backwards for r in rows) == cost.pair_backwards
    pairs = toy.FRAMES - 1
    for r in of(swept.records, level="stack", attack=CLEAN):
        assert (r.pair_forwards, r.pair_backwards) == (pairs, pairs if r.target == "flownet2" else 0)
    for r in of(swept.records, level="stack", attack="one_shot"):
        assert (r.pair_forwards, r.pair_backwards) == (pairs, 0)
    # The first step is made by the attack without refresh: one that was lost at once then costs the other nothing.
    rows = of(swept.records, level="stack", attack="iterative_saliency_rg", target="flownet2")
    at_once = [r for r in rows if r.frames_perturbed == 1]
    assert at_once and not any(r.pair_forwards or r.pair_backwards for r in at_once)


class Counting(toy.ToySystem):
    """Counts the pairs that it estimates, and those that a gradient goes through, in whatever thread."""

    pairwise = True

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.requires_grad_(False)
        self.pairs = self.differentiated = 0
        self.lock = threading.Lock()

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        flow = super().estimate_flow(first, second)
        with self.lock:
            self.pairs += len(flow)
        if flow.requires_grad:
            flow.register_hook(self.count)
        return flow

    def count(self, gradient: Tensor) -> None:
        with self.lock:
            self.differentiated += len(gradient)


class Meeting(toy.ToySystem):
    """Waits, once asked for the first attack's flow, until another system is."""

    pairwise = True

    def __init__(self, meeting: threading.Barrier, passes: int, **options: object) -> None:
        super().__init__(**options)
        self.meeting, self.passes = meeting, passes

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        self.passes -= 1  # before it waits: those that it met ask it, too
        if self.passes == -1:
            self.meeting.wait()
        return super().estimate_flow(first, second)


def test_black_boxes_without_a_gradient_are_attacked_beside_the_white_box(swept: VideoSweep, video: Tensor) -> None:
    meeting = threading.Barrier(3, timeout=60)  # broken, an error, unless all three are at work together
    black_boxes = {name: Meeting(meeting, 3, window=3, differentiable=False).eval() for name in ("tvl1", "farneback")}
    together = make_sweep(targets=black_boxes).video(
        Meeting(meeting, 3).eval(), video, 0, clip="Right/v_Right_g00_c01", group="Right_g00", keep_example=True
    )
    assert of(together.records, target="tvl1") == of(swept.records, target="tvl1")
    assert [r._replace(target="tvl1") for r in of(together.records, target="farneback")] == of(
        swept.records, target="tvl1"
    )
    assert of(together.records, target="flownet2") == of(swept.records, target="flownet2")


class Failing(toy.ToySystem):
    pairwise = True

    def classify(self, flow: Tensor) -> Tensor:
        raise RuntimeError("Failing is out of memory")


def test_what_fails_beside_the_white_box_is_raised_and_leaves_the_systems_as_they_were(video: Tensor) -> None:
    white_box = toy.ToySystem().train()
    with pytest.raises(RuntimeError, match="Failing is out of memory"):
        make_sweep(targets={"tvl1": Failing(differentiable=False)}).video(white_box, video, 0, clip="c", group="g")
    assert white_box.training and white_box.estimator.training
    assert all(parameter.requires_grad for parameter in white_box.parameters())


class Breaking(toy.ToySystem):
    """Raises at its fourth pass, the first of an attack, once the other system is in the middle of one."""

    pairwise = True

    def __init__(self, error: BaseException, at_work: threading.Event, failed: threading.Event, **options: Any) -> None:
        super().__init__(**options)
        self.error, self.at_work, self.failed, self.passes = error, at_work, failed, 0

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == 4:
            assert self.at_work.wait(60)
            self.failed.set()
            raise self.error
        return super().estimate_flow(first, second)


class Witness(toy.ToySystem):
    """Counts the passes that it begins after the other system failed; its fourth pass lasts until then."""

    pairwise = True

    def __init__(self, at_work: threading.Event, failed: threading.Event, **options: Any) -> None:
        super().__init__(**options)
        self.at_work, self.failed, self.passes, self.late = at_work, failed, 0, 0

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        self.passes += 1
        self.late += self.failed.is_set()
        if self.passes == 4:
            self.at_work.set()
            assert self.failed.wait(60)
            time.sleep(0.5)  # the error is on its way
        return super().estimate_flow(first, second)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("broken", ["white box", "black box"])
def test_when_one_system_fails_the_others_stop_at_their_next_pass(
    broken: str, error: BaseException, video: Tensor
) -> None:
    at_work, failed = threading.Event(), threading.Event()
    black = {"window": 3, "differentiable": False}
    if broken == "white box":
        witness = Witness(at_work, failed, **black)
        white_box, black_box = Breaking(error, at_work, failed), witness
    else:
        witness = Witness(at_work, failed)
        white_box, black_box = witness, Breaking(error, at_work, failed, **black)
    with pytest.raises(type(error)) as raised:
        make_sweep(targets={"tvl1": black_box.eval()}).video(white_box.eval(), video, 0, clip="c", group="g")
    assert raised.value is error
    assert witness.passes == 4 and witness.late == 0
    error.__traceback__ = None  # it lives as long as the tests, and holds the frames of this one


class Weighing(toy.ToySystem):
    """Notes how many bytes of large tensors are alive in every tenth of its passes."""

    pairwise = True

    def __init__(self, large: int) -> None:
        super().__init__()
        self.large, self.most, self.passes = large, 0, 0
        gc.collect()
        self.before = self.alive()  # other tests' fixtures

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        self.passes += 1
        if self.passes % 10 == 0:
            self.most = max(self.most, self.alive() - self.before)
        return super().estimate_flow(first, second)

    def alive(self) -> int:
        storages = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) is Tensor]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for size in sizes.values() if size >= self.large)


def test_a_kept_clip_holds_the_frames_of_one_attack_at_a_time(video: Tensor) -> None:
    """Its frames and flow, which is half as large; the rest is the pass under way, of eight of the sixteen rows here.
    What is judged in 8 bits is one ε at a time, an eighth."""
    epsilons = [0.001 * n for n in range(1, 9)]
    result = len(epsilons) * video[:2].numel() * video.element_size()
    white_box = Weighing(result // 3)
    sweep = make_sweep(epsilons=epsilons, targets={}, batch_size=2)
    kept = sweep.video(white_box.eval(), video[:4], 0, clip="c", group="g", keep_example=True)
    assert kept.example is not None and list(kept.example.adversarial) == NAMES
    assert result < white_box.most < 3 * result  # 23 with the results of all attacks


def test_rows_of_files_name_their_stacks_in_every_chunk(video: Tensor, white_box: torch.nn.Module) -> None:
    sweep = make_sweep(targets={}, attacks={"noise": Noise()}, transfer=(), epsilons=(0.02,), batch_size=1)
    swept = sweep.video(white_box, video[:2], 0, clip="c", group="g", realise=True)
    float_rows = [row for row in swept.realised if row["medium"] == "float"]
    assert [(row["attack"], row["stack"]) for row in float_rows] == [
        (CLEAN, 0), ("noise", 0), (CLEAN, 1), ("noise", 1)
    ]  # fmt: skip
    for row in float_rows:
        (record,) = of(swept.records, level="stack", stack=row["stack"], attack=row["attack"])
        assert row["prediction"] == record.prediction


@pytest.mark.parametrize("target", ["flownet2", "tvl1"])
def test_flow_changes_from_the_clean_flow_of_the_same_system(
    target: str, swept: VideoSweep, video: Tensor, white_box: torch.nn.Module
) -> None:
    judge = white_box if target == "flownet2" else make_sweep().targets["tvl1"]
    labels = torch.zeros(len(video), dtype=torch.long)
    adversarial = OneShot()(white_box, video, labels, EPSILONS).adversarial

    def flow(frames: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack([judge.estimate_flow(stack[:-1], stack[1:]) for stack in frames])

    for e, epsilon in enumerate(EPSILONS):
        expected = (flow(adversarial[e]) - flow(video)).norm(dim=2).mean((1, 2, 3))
        rows = of(swept.records, level="stack", attack="one_shot", target=target, epsilon=epsilon)
        assert [row.flow_epe for row in rows] == pytest.approx(expected.tolist(), abs=1e-4)


MARK = 250 / 255
BLANK = {"confidence": 0.0, "clean_confidence": 0.0, "margin": 0.0, "steps": None, "flow_epe": 0.0, "pair_backwards": 0}


class Marked(toy.ToySystem):
    """Its flow, or its gradient, is NaN where a frame's first pixel bears the mark, moved by an attack or not."""

    pairwise = True

    def __init__(self, *, nan: str, moved: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.nan, self.moved = nan, moved

    def estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        flow = super().estimate_flow(first, second)
        pixel = second[:, 0, 0, 0].detach()
        marked = (pixel - MARK).abs() < 0.0205
        if self.moved:
            marked &= (pixel - MARK).abs() > 1e-4
        factor = torch.where(marked, torch.nan, 1.0)[:, None, None, None]
        if self.nan == "flow":
            return flow * factor
        if flow.requires_grad:
            flow.register_hook(lambda gradient: gradient * factor)
        return flow


@pytest.fixture
def marked(video: Tensor) -> Tensor:
    """The same stacks, of which the third bears the mark."""
    frames = video.clone()
    assert ((frames[:, :, 0, 0, 0] - MARK).abs() > 0.05).all()
    frames[2, :, 0, 0, 0] = MARK
    return frames


def faults(records: Sequence[Record], target: str) -> dict[str, set[str | None]]:
    """Of the marked stack and of the video, by attack."""
    return {
        f"{level} {name}": {r.fault for r in of(records, level=level, stack=stack, attack=name, target=target)}
        for name in {r.attack for r in of(records, target=target)}
        for level, stack in (("stack", 2), ("video", None))
    }


def expected_faults(judged: Sequence[str], names: Sequence[str]) -> dict[str, set[str | None]]:
    return {
        f"{level} {name}": {None if name in judged else NOT_FINITE}
        for name in (CLEAN, *names)
        for level in ("stack", "video")
    }


@pytest.mark.parametrize(
    ("white_box", "black_box", "on_white", "on_black"),
    [
        ({"nan": "flow"}, None, [], [CLEAN, "noise"]),
        ({"nan": "gradient"}, None, [CLEAN, "noise"], [CLEAN, "noise"]),
        ({"nan": "flow", "moved": True}, None, [CLEAN], [CLEAN, *TRANSFER]),
        (None, {"nan": "flow"}, [CLEAN, *NAMES], []),
        (None, {"nan": "flow", "moved": True}, [CLEAN, *NAMES], [CLEAN]),
    ],
    ids=["clean", "gradient", "attacked", "black box", "black box attacked"],
)
def test_a_stack_that_is_not_finite_costs_its_own_verdicts_alone(
    white_box: dict | None,
    black_box: dict | None,
    on_white: list[str],
    on_black: list[str],
    marked: Tensor,
    tmp_path: Path,
) -> None:
    black = {"window": 3, "differentiable": False}
    plain = make_sweep().video(toy.ToySystem().eval(), marked, 0, clip="c", group="g")
    sweep = make_sweep(targets={"tvl1": toy.ToySystem(**black) if black_box is None else Marked(**black_box, **black)})
    system = toy.ToySystem() if white_box is None else Marked(**white_box)
    swept = sweep.video(system.eval(), marked, 0, clip="c", group="g", keep_example=True)
    assert faults(swept.records, "flownet2") == expected_faults(on_white, NAMES)
    assert faults(swept.records, "tvl1") == expected_faults(on_black, TRANSFER)

    assert len(swept.records) == len(plain.records)
    for row, expected in zip(swept.records, plain.records, strict=True):
        if row.fault is None:  # the black box's transferred frames depend on the white box's gradient alone
            assert row._replace(**BLANK) == expected._replace(**BLANK)
            continue
        assert (row.prediction, row.confidence, row.margin, row.steps) == (-1, 0.0, None, None)
        assert not (row.attacked or row.success or row.correct or row.correct_8bit or row.frames_perturbed)
        judged_clean = CLEAN in (on_white if row.target == "flownet2" else on_black)
        assert (row.clean_prediction == -1) == (not judged_clean)
        assert row._replace(**BLANK)[:9] == expected._replace(**BLANK)[:9]
    assert swept.example is not None and swept.example.stack == 0

    for name, target in {(r.attack, r.target) for r in swept.records}:
        rows, cost = of(swept.records, attack=name, target=target), swept.costs.get(f"{name}/{target}")
        if cost is not None:
            assert sum(r.pair_forwards for r in rows) == cost.pair_forwards

    store = RecordStore(tmp_path)
    store.append("c", swept.records, swept.costs)
    for line in store.merge().read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(read_records(tmp_path / "records.jsonl")) == swept.records


class Overflowing(toy.ToySystem):
    """The logits of stacks that bear the mark are +inf, or NaN; others are drawn at random if asked."""

    pairwise = False

    def __init__(self, value: float, *, random: bool = False) -> None:
        super().__init__()
        self.value, self.random = value, random

    def forward(self, frames: Tensor) -> Tensor:
        marked = ((frames[:, :, 0, 0, 0] - MARK).abs() < 0.05).any(1, keepdim=True)
        logits = super().forward(frames)
        return torch.where(marked, self.value, logits + self.random * torch.rand(1))


@pytest.mark.filterwarnings("ignore:the gradient of Overflowing")
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_first_stack_that_overflows_ends_no_sweep(value: float, marked: Tensor) -> None:
    sweep = make_sweep(targets={}, attacks={"one_shot": OneShot()}, transfer=[])
    frames = marked[[2, 0, 1]]
    swept = sweep.video(Overflowing(value).eval(), frames, 0, clip="c", group="g")
    rows = of(swept.records, level="stack", attack=CLEAN)
    assert [row.fault for row in rows] == [NOT_FINITE, None, None]
    with pytest.raises(ValueError, match="two forwards of Overflowing"):  # a check of nothing is none
        sweep.video(Overflowing(value, random=True).eval(), frames, 0, clip="c", group="g")


def test_a_white_box_is_checked_whatever_its_name(video: Tensor) -> None:
    sweep = make_sweep(targets={}, attacks={"one_shot": OneShot()}, transfer=[])
    costs = [sweep.video(toy.ToySystem().eval(), video[:1], 0, clip="c", group="g").costs for _ in range(2)]
    assert all("check/flownet2" in of_video for of_video in costs)
    white_box = toy.ToySystem().eval()
    costs = [sweep.video(white_box.forward, video[:1], 0, clip="c", group="g").costs for _ in range(2)]
    assert ["check/flownet2" in of_video for of_video in costs] == [True, False]
    with pytest.raises(ValueError, match="two forwards of Overflowing"):
        sweep.video(Overflowing(1.0, random=True), video[:1], 0, clip="c", group="g")


class Still(Attack):
    """Moves nothing, for want of a gradient, on the stacks that are right when clean, or else wrong."""

    name = "still"
    dense = False
    needs_gradient = False

    def __init__(self, *, on_right: bool) -> None:
        super().__init__()
        self.on_right = on_right

    def craft(self, work: Any, *_: Any) -> None:
        work.no_gradient[:] = work.attacked == self.on_right


class StillEverywhere(Still):
    dense = True


@pytest.mark.parametrize("target", ["flownet2", "tvl1"])
def test_rows_of_an_attack_without_a_gradient_say_so(target: str, video: Tensor, white_box: torch.nn.Module) -> None:
    attacks = {"right": Still(on_right=True), "wrong": Still(on_right=False), "all": StillEverywhere(on_right=False)}
    sweep = make_sweep(attacks=attacks, transfer=list(attacks))
    records = of(sweep.video(white_box, video, 0, clip="c", group="g").records, target=target)
    for name, attack in attacks.items():
        rows = of(records, level="stack", attack=name)
        assert [r.fault for r in rows] == [NO_GRADIENT if r.attacked == attack.on_right else None for r in rows]
    video_faults = {name: {r.fault for r in of(records, level="video", attack=name)} for name in attacks}
    # A stack that is wrong when clean is left alone by an attack that goes stack by stack: it counted for nothing.
    assert video_faults == {"right": {NO_GRADIENT}, "wrong": {None}, "all": {NO_GRADIENT}}
    assert {r.fault for r in of(records, attack=CLEAN)} == {None}


def test_steps_predict_what_the_logits_say_where_probabilities_are_equal() -> None:
    logits = torch.tensor([1e-8, 2e-8, -5.0])
    assert logits.softmax(0).argmax() == 0 and logits.argmax() == 1
    result = AttackResult(
        adversarial=torch.zeros(1, 1, 2, 3, 1, 1),
        flow=None,
        logits=logits[None, None],
        labels=torch.tensor([0]),
        attacked=torch.tensor([True]),
        success=torch.tensor([[True]]),
        frames_perturbed=torch.tensor([[1]]),
        frame_order=torch.tensor([[[1, -1]]]),
        no_gradient=torch.tensor([[False]]),
        step_logits=torch.stack([logits, torch.full((3,), torch.nan)])[None, None],
        pair_forwards=torch.tensor([[1]]),
        pair_backwards=torch.tensor([[0]]),
        first_step=None,
    )
    outcomes = stack_outcomes(result, torch.tensor([[False]]), [[Quality(None, None, None, None)]])
    assert outcomes.steps is not None
    assert int(outcomes.steps[0, 0, 0, 0]) == int(outcomes.prediction[0, 0]) == 1


def test_the_cases_that_matter_occur(swept: VideoSweep) -> None:
    stacks = of(swept.records, level="stack")
    assert any(not r.attacked for r in stacks)
    assert any(r.success for r in stacks) and any(r.attacked and not r.success for r in stacks)
    assert any(r.correct != r.correct_8bit for r in stacks)
    assert any(0 < r.frames_perturbed < toy.FRAMES for r in stacks)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("name", ["one_shot", "iterative_saliency_rg"])
def test_video_rows_follow_section_5_2(
    name: str, epsilon: float, swept: VideoSweep, video: Tensor, white_box: torch.nn.Module
) -> None:
    labels = torch.zeros(len(video), dtype=torch.long)
    result = default_attacks()[name](white_box, video, labels, (epsilon,))
    with torch.no_grad():
        current = list(white_box(video).softmax(1).double())
        adversarial = white_box(result.adversarial[0]).softmax(1).double()
    stacks = frames = 0
    for s in range(len(video)):
        if name == "one_shot" or bool(result.attacked[s]):
            current[s] = adversarial[s]
            stacks, frames = stacks + 1, frames + int(result.frames_perturbed[0, s])
            if name != "one_shot" and int(torch.stack(current).mean(0).argmax()) != 0:
                break
    mean = torch.stack(current).mean(0)
    (row,) = of(swept.records, level="video", attack=name, target="flownet2", epsilon=epsilon)
    assert (row.prediction, row.stacks_perturbed, row.frames_perturbed) == (int(mean.argmax()), stacks, frames)
    assert row.confidence == pytest.approx(float(mean.max()), abs=2e-5)
    assert row.attacked and row.success == (row.prediction != 0)
    assert row.stack is row.frame_order is row.correct_8bit is row.margin is row.steps is None
    assert row.pair_forwards == row.pair_backwards == 0


def test_chunks_do_not_change_the_rows(swept: VideoSweep, video: Tensor, white_box: torch.nn.Module) -> None:
    whole = make_sweep(batch_size=100).video(white_box, video, 0, clip="Right/v_Right_g00_c01", group="Right_g00")
    for one, other in zip(swept.records, whole.records, strict=True):
        blank = {"confidence": 0.0, "clean_confidence": 0.0, "margin": 0.0, "steps": None}
        assert one._replace(**blank) == other._replace(**blank)
        assert one.confidence == pytest.approx(other.confidence, abs=2e-5)
        assert one.margin == pytest.approx(other.margin, abs=2e-4)
        assert (one.steps is None) == (other.steps is None)
        for step, expected in zip(one.steps or (), other.steps or (), strict=True):
            assert step == pytest.approx(expected, abs=2e-4)
    assert whole.example is None


def test_frames_that_are_not_eight_bit_are_rounded_too(white_box: torch.nn.Module) -> None:
    """Contrast below one grey level: rounding takes some stacks' motion away, and the clean rows must say so."""
    contrast = torch.linspace(0.003, 0.2, 8).view(-1, 1, 1, 1, 1)
    frames = 40 / 255 + contrast * (toy.moving_texture(1, seed=0, stacks=8) - 0.5)
    with torch.no_grad():
        exact, rounded = white_box(frames).argmax(1) == 1, white_box((frames * 255).round() / 255).argmax(1) == 1
    assert exact.any() and (exact & ~rounded).any() and (exact & rounded).any()
    records = make_sweep().video(white_box, frames, 1, clip="c", group="g").records
    rows = of(records, level="stack", attack=CLEAN, target="flownet2")
    assert [r.correct for r in rows] == exact.tolist()
    assert [r.correct_8bit for r in rows] == rounded.tolist()


def test_example_holds_the_frames_of_its_rows(swept: VideoSweep, video: Tensor, tmp_path: Path) -> None:
    example = swept.example
    assert example is not None and example.stack == 0 and example.epsilon == 0.02
    save_example(tmp_path, example)
    (loaded,) = load_examples(tmp_path)
    assert (loaded.frames == (video[0] * 255).round().movedim(1, -1).numpy()).all()
    for name, frames in loaded.adversarial.items():
        (row,) = of(swept.records, level="stack", stack=0, attack=name, target="flownet2", epsilon=0.02)
        moved = {n for n in range(len(frames)) if (frames[n] != loaded.frames[n]).any()}
        assert moved == set(row.frame_order or [])
        assert abs(frames.astype(int) - loaded.frames).max() == round(0.02 * 255)
        assert (loaded.frame_at[name][1] == frames[loaded.frame[name]]).all()
    assert isinstance(loaded, Example) and loaded.epsilons == list(EPSILONS)


def test_example_is_of_a_stack_that_is_right_when_clean(white_box: torch.nn.Module) -> None:
    frames = torch.cat([toy.moving_texture(2, seed=5, stacks=4), toy.moving_texture(0, seed=3, stacks=2)])
    sweep = make_sweep(batch_size=3)
    assert sweep.video(white_box, frames, 0, clip="c", group="g", keep_example=True).example.stack == 4
    assert sweep.video(white_box, frames[:4], 0, clip="c", group="g", keep_example=True).example.stack == 0


def test_example_clips_spread_over_classes() -> None:
    labels = [label for label in range(6) for _ in range(3)]
    assert [labels[i] for i in example_clips(labels, 3)] == [0, 2, 4]
    assert example_clips(labels, 6) == [0, 3, 6, 9, 12, 15]
    assert example_clips(labels, 8) == [0, 3, 6, 9, 12, 15, 1, 10]
    assert sorted(example_clips(labels, 100)) == list(range(18))
    assert example_clips([], 4) == example_clips(labels, 0) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilons": (0.01, 1.5)}, "ε = 1.5 is outside"),
        ({"epsilons": (-0.01,)}, "ε = -0.01 is outside"),
        ({"epsilons": ()}, "at least one ε"),
        ({"transfer": ("one_shot", "deepfool")}, r"\['deepfool'\].*one_shot"),
        ({"system": "tvl1"}, "'tvl1' is both"),
        ({"attacks": {CLEAN: default_attacks()["noise"]}, "transfer": ()}, "cannot be called 'clean'"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sweep(**options)


class Rounding(torch.nn.Module):
    """A judge that sees 8-bit frames whatever it is given, and counts how often it looks."""

    differentiable = False

    def __init__(self, rounds_frames: bool) -> None:
        super().__init__()
        self.inner = toy.ToySystem(window=3, differentiable=False).eval()
        self.rounds_frames = rounds_frames
        self.calls = 0

    def forward(self, frames: Tensor) -> Tensor:
        self.calls += 1
        return self.inner((frames * 255).round() / 255)


def test_a_judge_that_rounds_its_frames_is_not_asked_twice(video: Tensor, white_box: torch.nn.Module) -> None:
    rows, calls = [], []
    for rounds_frames in (False, True):
        judge = Rounding(rounds_frames)
        sweep = make_sweep(targets={"tvl1": judge})
        rows.append(sweep.video(white_box, video, 0, clip="Right/v_Right_g00_c01", group="Right_g00").records)
        calls.append(judge.calls)
    assert rows[0] == rows[1]
    assert calls[1] < calls[0]


def test_attacks_of_one_sweep_may_climb_different_losses(swept: VideoSweep, video: Tensor) -> None:
    """Each has the clean gradient of its own loss, and its rows are those that it has alone."""
    white_box = Counting().eval()
    attacks = {
        "rg": IterativeSaliency(refresh=True),
        "rg_margin": IterativeSaliency(refresh=True, loss="margin"),
        "noise": Noise(),
        "one_shot_margin": OneShot(loss="margin"),
    }
    both = make_sweep(attacks=attacks, transfer=("rg_margin",)).video(
        white_box, video, 0, clip="Right/v_Right_g00_c01", group="Right_g00"
    )
    assert white_box.differentiated == sum(cost.pair_backwards for cost in both.costs.values())
    costs = both.costs["clean/flownet2"], both.costs["clean for margin/flownet2"]
    pairs = len(video) * (toy.FRAMES - 1)
    assert [(cost.pair_forwards, cost.pair_backwards) for cost in costs] == [(pairs, pairs)] * 2
    for name in ("rg_margin", "one_shot_margin"):
        alone = make_sweep(attacks={name: attacks[name]}, transfer=[name] if name == "rg_margin" else []).video(
            white_box, video, 0, clip="Right/v_Right_g00_c01", group="Right_g00"
        )
        assert of(both.records, attack=name) == of(alone.records, attack=name)
    again = [row._replace(attack="rg") for row in of(swept.records, attack="iterative_saliency_rg", target="flownet2")]
    blank = {"pair_forwards": 0, "pair_backwards": 0}  # the other sweep shares the first step
    rows = of(both.records, attack="rg", target="flownet2")
    assert [row._replace(**blank) for row in rows] == [row._replace(**blank) for row in again]
