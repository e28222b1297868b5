import pytest

from attacks.progress import Progress


def test_counts_stacks_and_foresees_the_rest() -> None:
    progress = Progress(videos=10)
    assert str(progress) == "Attacking stacks" and progress.seconds_left is None
    progress.add(4, seconds=8.0)
    progress.add(2, seconds=10.0)
    # 6 stacks in 18 s; eight videos of three stacks are to come.
    assert progress.seconds_left == pytest.approx(72)
    assert str(progress) == "Attacking stacks: 6 of about 30, about 72 s left"


def test_what_was_found_done_takes_no_time_and_is_not_waited_for() -> None:
    progress = Progress(videos=6, found=3)
    progress.add(5, seconds=None)
    assert progress.seconds_left is None
    assert str(progress) == "Attacking stacks: 5 of about 30"
    progress.add(3, seconds=30.0)
    # 10 s a stack, 4 stacks a video; of the four videos to come two are done.
    assert progress.seconds_left == pytest.approx(80)


def test_at_the_end_the_number_is_exact() -> None:
    progress = Progress(videos=2)
    for stacks in (3, 4):
        progress.add(stacks, seconds=1.0)
    assert str(progress) == "Attacking stacks: 7 of 7"


@pytest.mark.parametrize(("seconds", "spoken"), [(60, "about 60 s"), (600, "about 10 min"), (7200, "about 2.0 h")])
def test_the_time_left_is_round(seconds: float, spoken: str) -> None:
    progress = Progress(videos=2)
    progress.add(1, seconds=seconds)
    assert str(progress).endswith(f"1 of about 2, {spoken} left")
