"""The benchmark commands run and say what they measured; their figures are for an idle machine."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from attacks.processor import processor_name

aten = torch.ops.aten
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


@pytest.mark.slow
def test_correlation():
    printed = run("correlation.py", "--device=cpu", "--channels=8", "--height=6", "--width=7")
    assert processor_name() in printed
    for name in ("parity classes", "loop over 441 shifts"):
        assert re.search(rf"{name}.* ms .*× .* ms .*× .* MB", printed), printed


@pytest.mark.slow
def test_flownet2():
    printed = run("flownet2.py", "--device=cpu", "--variant=FlowNet2CS", "--width=0.0625", "--size", "64", "64")
    assert f"{processor_name()}, " in printed
    assert re.search(r"forward +[\d.]+ ms +[\d.]+ ms +[\d.]+", printed), printed
    agreement = {mode: float(re.search(rf"{mode} .* ([\d.]+)%$", printed, re.M)[1]) for mode in ("float32", "bfloat16")}
    assert 80 < agreement["bfloat16"] < agreement["float32"] <= 100
    assert agreement["float32"] > 99.9


@pytest.mark.slow
def test_flow_reading():
    printed = run("flow_reading.py", "--clips=2", "--fields=20", "--size", "240", "240", "--stacks=4")
    assert processor_name() in printed
    for kind in ("archive", "loose"):
        assert re.search(rf"{kind}: .*\n.*read_planes.*% of bare imdecode\n.*%.*\n.*workers.*× one", printed), printed


@pytest.mark.parametrize("algorithm", [pytest.param("tvl1", marks=pytest.mark.slow), "farneback"])
def test_extraction(ucf101_root, algorithm):
    """The loop and the extraction make the same flow: their stores are of one size a pair, their counts agree."""
    printed = run(
        "extraction.py", str(ucf101_root), f"--algorithm={algorithm}", "--clips=1", "--max-frames=3", "--workers", "1"
    )
    assert re.search(r"1 clips, \d+ pairs", printed) and "UCF-101 at this rate" in printed, printed


@pytest.mark.slow
def test_sweep_engine():
    """One stack of the smallest frames: the three agree, and the engine sees the fewest pairs."""
    printed = run(
        *("sweep_engine.py", "--device=cpu", "--stacks=1", "--size", "64", "64", "--crop=56"),
        *("--epsilons", "0.01", "0.03", "--rounds=1", "--width=0.125"),
    )
    rows = re.findall(r"^(toolbox|plain|engine|required) +([\d. ]+)", printed, re.M)
    figures = {name: [float(figure) for figure in row.split()] for name, row in rows}
    assert len(figures["toolbox"]) == len(figures["plain"]) == len(figures["engine"]) == 10, printed
    pairs = {name: sum(row[4:6]) for name, row in figures.items() if name != "required"}
    assert pairs["toolbox"] > pairs["plain"] > 1.5 * pairs["engine"], printed
    for name, row in figures.items():
        if name != "required":
            assert row[3] == pytest.approx(pairs[name] / pairs["engine"], abs=0.01), printed
    assert figures["engine"][4:6] == figures["required"][:2], printed
    assert len(re.findall(r"differ from \w+'s: 0 of 6", printed)) == 2, printed


def test_passes_are_those_of_the_last_convolution(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    contenders, benchmark = (importlib.import_module(name) for name in ("sweep_contenders", "sweep_engine"))
    torch.manual_seed(0)
    system, frames = contenders.make_system("FlowNet2S", 0.125, 18, 56), contenders.moving_textures(2, 64, 64)
    weight = [m.weight for m in system.estimator.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))][-1]
    computed = [0, 0]

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            for i, kind in enumerate((aten.convolution.default, aten.convolution_backward.default)):
                if func is kind and args[1 + i].data_ptr() == weight.data_ptr():
                    computed[i] += len(args[0])
            return func(*args, **(kwargs or {}))

    with Counting(), torch.no_grad():
        counter = benchmark.Counter(system)
        labels = system(frames).argmax(1)
        contenders.Engine(8, None, 7)(system, frames, labels, (0.005, 0.02))
        passes = counter.stop()
    assert [passes.pairs, passes.pairs_back] == computed
    assert passes.stacks > passes.stacks_back > 2
    results = contenders.Engine(8, None, None)
    results(system, frames, labels, (0.005, 0.02))
    assert passes.pairs > benchmark.required(results.results, 2)[0]  # seven retained are too few


@pytest.mark.slow
def test_what_a_gpu_is_to_show_runs_on_a_cpu():
    command = ["sh", BENCHMARKS / "gpu.sh"]
    environment = {**os.environ, "SMALL": "1", "PYTHON": sys.executable}
    result = subprocess.run(command, cwd=BENCHMARKS.parents[1], env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().count("sweep_engine.py ") == 5


@pytest.mark.slow
def test_sweep_engine_limit():
    printed = run(
        "sweep_engine.py", "--limit", "--device=cpu", "--stacks=1", "--size", "64", "64", "--crop=56", "--width=0.125"
    )
    assert f"{processor_name()}, " in printed
    assert re.search(r"bare networks [\d.]+ s, clean pass [\d.]+ s - clean pass at [\d.]+% of the speed", printed), (
        printed
    )


@pytest.mark.slow
def test_loss():
    """The accuracy under attack: with log-odds and margin that of float64 at every scale of the logits."""
    result = subprocess.run(
        [sys.executable, BENCHMARKS / "loss.py"],
        cwd=BENCHMARKS.parents[1],
        env={**os.environ, "FLOWFOOL_STACKS": "12"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert processor_name() in result.stdout
    rows = re.findall(r"^toy \d +(?:one-shot|RG) +(.*)$", result.stdout, re.M)
    assert len(rows) == 3 * 2 * 4
    for row in rows:
        _, _, entropy, odds, _, exact, *_ = map(float, row.split())
        assert odds == exact and entropy >= odds


@pytest.mark.slow
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
