"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def test_both_kinds_of_model_have_an_example():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs_in_under_20_lines_without_a_trainer(block, capsys):
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) < 20 and "Trainer" not in block
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names = {"__name__": "example"}
        exec(compile(block, "README.md", "exec"), names)
    result, frames, labels = names["result"], names["frames"], names["labels"]
    assert result.adversarial.shape == (2, *frames.shape)
    assert result.attacked.all() and (result.frames_perturbed > 0).all()
    distance = (result.adversarial - frames).abs().flatten(1).amax(1)
    assert (distance <= torch.tensor([0.005, 0.035]) + 1e-6).all()
    assert len(labels) == len(frames) and capsys.readouterr().out.startswith("tensor(")
