"""The benchmark commands run and say what they measured; their figures are for an idle machine."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def run(script: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, BENCHMARKS / script, "--rounds=2", *arguments],
        cwd=BENCHMARKS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_correlation():
    printed = run("correlation.py", "--device=cpu", "--channels=8", "--height=6", "--width=7")
    for name in ("parity classes", "loop over 441 shifts"):
        assert re.search(rf"{name}.* ms .*× .* ms .*× .* MB", printed), printed


def test_flownet2():
    printed = run("flownet2.py", "--device=cpu", "--variant=FlowNet2CS", "--width=0.0625", "--size", "64", "64")
    assert re.search(r"forward +[\d.]+ ms +[\d.]+ ms +[\d.]+", printed), printed
    agreement = {mode: float(re.search(rf"{mode} .* ([\d.]+)%$", printed, re.M)[1]) for mode in ("float32", "bfloat16")}
    assert 80 < agreement["bfloat16"] < agreement["float32"] <= 100
    assert agreement["float32"] > 99.9


def test_flow_reading():
    printed = run("flow_reading.py", "--clips=2", "--fields=20", "--size", "240", "240", "--stacks=4")
    for kind in ("archive", "loose"):
        assert re.search(rf"{kind}: .*\n.*read_planes.*% of bare imdecode\n.*%.*\n.*workers.*× one", printed), printed


@pytest.mark.parametrize("algorithm", ["tvl1", "farneback"])
def test_extraction(ucf101_root, algorithm):
    """The loop and the extraction make the same flow: their stores are of one size a pair, their counts agree."""
    printed = run(
        "extraction.py", str(ucf101_root), f"--algorithm={algorithm}", "--clips=1", "--max-frames=3", "--workers", "1"
    )
    assert re.search(r"1 clips, \d+ pairs", printed) and "UCF-101 at this rate" in printed, printed


def test_sweep_engine():
    """One stack of the smallest frames: the three agree, and the engine sees the fewest pairs."""
    printed = run(
        *("sweep_engine.py", "--device=cpu", "--stacks=1", "--size", "64", "64", "--crop=56"),
        *("--epsilons", "0.01", "0.03", "--rounds=1", "--width=0.125"),
    )
    shares = [float(s) for s in re.findall(r"^(?:toolbox|plain) .* ([\d.]+)$", printed, re.M)]
    assert len(shares) == 2 and shares[0] > shares[1] > 1.5, printed
    assert float(re.search(r"backwards alone ([\d.]+)", printed)[1]) == 1, printed
    assert len(re.findall(r"differ from \w+'s: 0 of 6", printed)) == 2, printed


def test_sweep_engine_limit():
    printed = run(
        "sweep_engine.py", "--limit", "--device=cpu", "--stacks=1", "--size", "64", "64", "--crop=56", "--width=0.125"
    )
    assert re.search(r"bare networks [\d.]+ s, clean pass [\d.]+ s - clean pass at [\d.]+% of the speed", printed), (
        printed
    )


def test_sweep_engine_precisions():
    """In float64 nothing changes; every verdict counts for 1000 / 6 per thousand."""
    printed = run(
        *("sweep_engine.py", "--precisions", "--device=cpu", "--stacks=1", "--size", "64", "64", "--crop=56"),
        *("--epsilons", "0.01", "0.03", "--width=0.125"),
    )
    figures = re.findall(r"^(\w+) +([\d.]+) ‰ +([\d.]+) ‰ +([\d.]+)%$", printed, re.M)
    assert [precision for precision, *_ in figures] == ["float64", "float32", "bfloat16"], printed
    assert [float(figure) for figure in figures[0][1:]] == [0, 0, 0], printed
    assert float(figures[2][3]) > float(figures[1][3]), printed
    assert "6 stacks attacked" in printed
