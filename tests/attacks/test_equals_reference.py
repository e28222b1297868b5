"""The engine against the plain algorithm, stack by stack with whole forwards: verdicts, orders, pixels, in float64.

On random systems, stacks and options, and once on a real system.
"""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attacks.iterative_saliency import IterativeSaliency, Order
from attacks.one_shot import OneShot
from lightning_modules.classifiers.resnet import ResNet
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.model_under_attack import ModelUnderAttack

LENGTH = 6  # of the toys


@st.composite
def cases(draw):
    epsilons = draw(st.lists(st.sampled_from((0.0, 0.001, 0.003, 0.006, 0.012, 0.035)), min_size=1, max_size=3))
    return {
        "seed": draw(st.integers(0, 2**31 - 1)),
        "count": draw(st.integers(1, 5)),
        "wrong": draw(st.integers(2, 6)),
        "kind": draw(st.sampled_from(("pairwise", "plain", "transfer", "transfer from plain", "transfer to plain"))),
        "epsilons": epsilons,
        "attack": draw(st.sampled_from(("one-shot", "iterative-saliency", "iterative-saliency-RG"))),
        "order": draw(st.sampled_from(get_args(Order))),
        "batch_size": draw(st.sampled_from((1, 2, 3, 100))),
        "pairs_at_once": draw(st.sampled_from((None, 1, 4, 7))),
        "retained_pairs": draw(st.sampled_from((0, 3, 8, None, 1000))),
    }


@given(case=cases())
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # they make things, and keep nothing
)
def test_random_systems_stacks_and_options(case, system, plain, stacks, assert_equals_reference):
    victim = system(case["seed"])
    judge = system(case["seed"], "black box") if case["kind"].startswith("transfer") else None
    frames, labels = stacks(judge or victim, case["seed"], case["count"], case["wrong"])
    options = {"batch_size": case["batch_size"], "pairs_at_once": case["pairs_at_once"]}
    attack, mode, orders = OneShot(**options), "one-shot", None
    if case["attack"] != "one-shot":
        refresh = case["attack"] == "iterative-saliency-RG"
        retained = case["retained_pairs"] if refresh else 0
        attack = IterativeSaliency(refresh, case["order"], seed=case["seed"], retained_pairs=retained, **options)
        mode = f"{case['attack']} ({case['order']})"
        if case["order"] == "random":
            orders = whole_orders(attack, victim, frames, labels)
    result = attack(
        plain(victim) if case["kind"] in ("plain", "transfer from plain") else victim,
        frames,
        labels,
        case["epsilons"],
        stop_on=plain(judge) if case["kind"] == "transfer to plain" else judge,
    )
    moved = [epsilon for epsilon in case["epsilons"] if epsilon > 0]
    e = [e for e, epsilon in enumerate(case["epsilons"]) if epsilon > 0]
    parts = {f: v if v is None or f in ("attacked", "labels", "first_step") else v[e] for f, v in _fields(result)}
    assert_equals_reference(type(result)(**parts), mode, victim, frames, labels, moved, judge, orders)
    for zero in (e for e, epsilon in enumerate(case["epsilons"]) if epsilon == 0):
        assert torch.equal(result.adversarial[zero], frames) and not result.frames_perturbed[zero].any()


def _fields(result):
    return result._asdict().items()


def whole_orders(attack, victim, frames, labels):
    """The order that each stack's frames would be taken in by a judge that is never fooled."""

    def never(frames):
        return F.one_hot(torch.zeros(len(frames), dtype=torch.int64), 4).to(frames)

    return attack(victim, frames, torch.zeros_like(labels), (1e-9,), stop_on=never).frame_order[0].tolist()


@pytest.mark.parametrize(
    "attack",
    [
        OneShot(),
        IterativeSaliency(),
        IterativeSaliency(refresh=True, pairs_at_once=7),
        IterativeSaliency(refresh=True, retained_pairs=0),
    ],
)
def test_a_real_system(attack, assert_equals_reference):
    """FlowNet2-S of an eighth of its width and ResNet-18, eleven frames."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        estimator = FlowNet2Estimator(variant="FlowNet2S", width=0.125)
        victim = ModelUnderAttack(estimator=estimator, classifier=ResNet(depth=18, num_classes=2), crop=56).double()
        texture = F.interpolate(torch.rand(3, 3, 16, 16, dtype=torch.float64), size=(84, 84), mode="bilinear")
    frames = torch.stack([torch.stack([t[:, n : n + 64, 2 * n : 2 * n + 64] for n in range(10)]) for t in texture])
    frames = torch.cat([frames, frames[:, -1:]], 1)
    with torch.no_grad():
        labels = victim(frames).argmax(1)
    labels[1] = 1 - labels[1]  # one is wrong when clean
    epsilons = (0.005, 0.03)
    result = attack(victim, frames, labels, epsilons)
    assert_equals_reference(result, attack.name, victim, frames, labels, epsilons)
    assert result.attacked.tolist() == [True, False, True]
