from attacks.faults import describe_faults
from attacks.records import NO_GRADIENT, NOT_FINITE, Record


def row(stack: int | None, epsilon: float, fault: str | None, attack: str = "one_shot", target: str = "tvl1") -> Record:
    return Record(
        level="video" if stack is None else "stack",
        clip="c",
        group="g",
        stack=stack,
        label=0,
        system="flownet2",
        target=target,
        attack=attack,
        epsilon=epsilon,
        clean_prediction=0,
        clean_confidence=1.0,
        prediction=-1 if fault == NOT_FINITE else 0,
        confidence=0.0,
        attacked=fault != NOT_FINITE,
        success=False,
        correct=fault != NOT_FINITE,
        correct_8bit=None,
        frames_perturbed=0,
        frame_order=[],
        stacks_perturbed=None,
        fault=fault,
    )


def test_faults_are_counted_by_attack_and_target_with_what_to_do() -> None:
    records = [
        *(row(stack, epsilon, NOT_FINITE if stack == 1 else None) for stack in range(3) for epsilon in (0.1, 0.2)),
        *(row(None, epsilon, NOT_FINITE) for epsilon in (0.1, 0.2)),
        *(row(stack, 0.1, NO_GRADIENT if stack else None, target="flownet2") for stack in range(3)),
        row(0, 0.0, None, attack="clean"),
    ]
    said = describe_faults(records)
    assert said is not None
    no_gradient, not_finite = said.split("Logits or a gradient that are not finite")
    assert "loss" in no_gradient and "float32" in not_finite
    assert "one_shot on flownet2: 2 stacks, 2 of 3 rows" in no_gradient and "tvl1" not in no_gradient
    assert "one_shot on tvl1: 1 stacks, 2 of 6 rows" in not_finite and "clean" not in said


def test_sound_rows_are_not_spoken_of() -> None:
    assert describe_faults([row(0, 0.1, None)]) is None
    assert describe_faults([]) is None
