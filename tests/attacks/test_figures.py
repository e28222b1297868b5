"""What the figures of a toy sweep show is what its records say."""

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imread

from attacks.iterative_saliency import IterativeSaliency
from attacks.records import read_records
from attacks.report import Report, evidence_figures, example_figures, figures, style, write_report
from attacks.report.results import Results, load_results

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy_sweep.py")), run_name="toy_sweep"))


@pytest.fixture(scope="module")
def folder(swept: Callable[[], Path]) -> Path:
    return swept()


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return write_report(folder)


@pytest.fixture(scope="module")
def results(report: Report) -> Results:
    return report.results


def test_all_figures_are_written_with_something_on_them(report: Report) -> None:
    assert list(report.figures) == [
        "fig3_stack",
        "fig4_accuracy",
        "fig5_frames_perturbed",
        "fig6_transfer",
        "fig7_epsilons",
        "budgets",
        "survival",
        "controls",
        "per_class",
        "confusion",
        "realisability",
    ]
    for name, path in report.figures.items():
        pixels = imread(path)[..., :3]
        height, width = pixels.shape[:2]
        assert 300 < height < 3000 and 800 < width < 3000, name
        ink = (pixels < 0.95).any(-1)
        assert 0.005 < ink.mean() < 0.98, name
        # The drawing reaches into all four quarters: nothing is squeezed into a corner.
        assert all(ink[rows][:, columns].mean() > 0.002 for rows in halves(height) for columns in halves(width)), name


def halves(length: int) -> tuple[slice, slice]:
    return slice(0, length // 2), slice(length // 2, None)


def test_accuracy_curves_are_the_metrics(results: Results) -> None:
    for ax, level in zip(figures.accuracy(results).axes, ("stack", "video"), strict=True):
        drawn = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
        assert list(drawn) == ["one-shot", "iterative-saliency", "iterative-saliency-RG", "noise"]
        for attack, line in zip([*results.gradient_attacks, "noise"], drawn.values(), strict=True):
            points = results.curve(attack, "flownet2", level)
            assert list(line.get_xdata()) == pytest.approx([0, *toy.EPSILONS], abs=0.0005)  # a little aside
            assert list(line.get_ydata()) == [100 * tally.accuracy for tally in points.values()]
        looks = {(line.get_marker(), line.get_linestyle()) for line in drawn.values()}
        assert len({marker for marker, _ in looks}) == 4, "curves must differ without colour"


def test_transfer_curves_are_the_metrics(results: Results) -> None:
    axes = figures.transfer(results).axes
    assert [ax.get_title() for ax in axes] == ["one-shot", "iterative-saliency-RG", "noise"]
    for ax, attack in zip(axes, ("one_shot", "iterative_saliency_rg", "noise"), strict=True):
        drawn = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
        assert list(drawn) == ["flownet2", "tvl1", "farneback"]
        for system, line in drawn.items():
            expected = [100 * tally.accuracy for tally in results.curve(attack, system).values()]
            assert list(line.get_ydata()) == expected
        assert len({line.get_marker() for line in drawn.values()}) == 3


def test_no_targets_no_transfer_figure(results: Results) -> None:
    assert figures.transfer(results._replace(targets=[])) is None


def test_histogram_bars_sum_to_all_successes(results: Results) -> None:
    (ax,) = figures.frames_perturbed(results).axes
    assert len(ax.containers) >= 2
    for bars in (container for container in ax.containers if hasattr(container, "patches")):
        assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["iterative-saliency", "iterative-saliency-RG"]


def test_stack_figure_marks_the_perturbed_frames(results: Results) -> None:
    figure = example_figures.example_stack(results)
    grid = np.array(figure.axes).reshape(7, toy.FRAMES)
    example = max(results.examples, key=lambda e: example_figures.telling(results, e))
    assert example.clip in figure.get_suptitle() and "ε = 0.025" in figure.get_suptitle()
    for i, attack in enumerate(["one_shot", "iterative_saliency", "iterative_saliency_rg"]):
        record = results.example_records[example.clip, attack, 0.025]
        row = grid[1 + 2 * i]
        color = to_rgb(style.STYLES[i][0])
        marked = {n: ax for n, ax in enumerate(row) if ax.spines["left"].get_visible()}
        assert set(marked) == set(record.frame_order)
        assert all(to_hex(ax.spines["left"].get_edgecolor()) == to_hex(color) for ax in marked.values())
        if attack != "one_shot":
            numbers = {n: int(ax.texts[0].get_text()) for n, ax in marked.items()}
            assert sorted(numbers, key=numbers.get) == record.frame_order
        assert toy.CLASSES[record.prediction] in row[0].get_ylabel()
        assert f"{record.confidence:.1%}" in row[0].get_ylabel()
        for n, ax in enumerate(row):
            assert (ax.get_images()[0].get_array() == example.adversarial[attack][n]).all()
        noise = [grid[2 + 2 * i, n].get_images()[0].get_array() for n in range(toy.FRAMES)]
        assert [bool((image != 128).any()) for image in noise] == [n in record.frame_order for n in range(toy.FRAMES)]


def test_epsilon_figure_amplifies_in_proportion(results: Results) -> None:
    figure = example_figures.example_frames(results)
    columns = 1 + len(toy.EPSILONS)
    grid = np.array(figure.axes).reshape(-1, columns)
    assert len(grid) == 2 * 4
    for row in grid[1::2]:
        strength = [np.abs(ax.get_images()[0].get_array().astype(float) - 127.5).max() for ax in row]
        assert strength[0] < 1 < strength[1] < strength[2]
    assert ["0" in grid[0, 0].get_title(), "0.005" in grid[0, 1].get_title()] == [True, True]


def test_examples_that_no_attack_touched_are_left_out(results: Results) -> None:
    """A white box that is wrong on a clean stack leaves it to the dense attack; without one, there is no figure."""
    untouched = {
        key: record._replace(frames_perturbed=0, attacked=False, success=False)
        if key[1].startswith("iterative")
        else record
        for key, record in results.example_records.items()
    }
    shown = example_figures.example_frames(results._replace(example_records=untouched))
    assert "one-shot" in shown.axes[0].get_ylabel()
    only_iterative = results._replace(example_records=untouched, attacks=["iterative_saliency"], dense=set())
    assert example_figures.example_frames(only_iterative) is None
    assert example_figures.example_stack(results._replace(examples=[])) is None


def test_error_bars_are_the_intervals(results: Results) -> None:
    """Of the first curve at the largest ε: the bar ends where the interval does."""
    ax = figures.accuracy(results).axes[0]
    bars = ax.containers[0].lines[2][0].get_segments()
    interval = results.bounds("one_shot", "flownet2")[toy.EPSILONS[-1]].accuracy
    assert bars[-1][:, 1] == pytest.approx([100 * interval.low, 100 * interval.high])


def test_budget_map_is_printed_in_its_cells(results: Results) -> None:
    ax = evidence_figures.budget_maps(results).axes[0]
    assert ax.get_title() == "iterative-saliency"
    shown = np.array([int(text.get_text()) for text in ax.texts]).reshape(len(toy.EPSILONS), toy.FRAMES + 1)
    curve = results.curve("iterative_saliency", "flownet2")
    assert shown[:, 0].tolist() == [round(100 * curve[0.0].accuracy)] * 2
    assert shown[:, -1].tolist() == [round(100 * curve[epsilon].accuracy) for epsilon in toy.EPSILONS]
    assert (np.diff(shown, axis=1) <= 0).all()


def test_survival_ends_at_the_accuracy_of_the_attacked(results: Results) -> None:
    for ax, epsilon in zip(evidence_figures.survival_curves(results).axes, toy.EPSILONS, strict=True):
        lines = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
        assert len({line.get_marker() for line in lines.values()}) == len(lines)
        step_by_step = [attack for attack in results.attacks if attack not in ("one_shot", "noise")]
        for attack, line in zip(step_by_step, lines.values(), strict=True):
            right = results.curve(attack, "flownet2")[epsilon].accuracy_of_attacked
            assert line.get_ydata()[0] == 100 and line.get_ydata()[-1] == pytest.approx(100 * right)


def test_a_stack_has_all_its_frames_where_no_attack_needs_them(tmp_path: Path) -> None:
    """Every stack falls to one or two frames of five: there are still budgets up to five."""
    toy.run(tmp_path, videos=2, attacks={"rg": IterativeSaliency(refresh=True)}, epsilons=(0.5,), targets={}, realise=0)
    results = load_results(tmp_path)
    curve = results.survivals[results.cell("rg", "flownet2", 0.5)]
    needed = {r.frames_perturbed for r in read_records(tmp_path / "records.jsonl") if r.level == "stack" and r.attacked}
    assert max(needed) < toy.FRAMES == results.frames
    assert curve.standing[max(needed) :].tolist() == [0] * (1 + toy.FRAMES - max(needed))


def test_class_bars_have_hatches_and_every_class(results: Results) -> None:
    ax = evidence_figures.class_bars(results).axes[0]
    assert {text.get_text() for text in ax.get_yticklabels()} == set(toy.CLASSES)
    bars = [container for container in ax.containers if hasattr(container, "patches")]
    assert len({bar.patches[0].get_hatch() for bar in bars}) == 2
    accuracy = results.clean("flownet2").accuracy
    stacks = [sum(2 + i % 3 for i in range(8) if i % 4 == label) for label in range(4)]
    order = [toy.CLASSES.index(text.get_text()) for text in ax.get_yticklabels()]
    widths = [patch.get_width() for patch in bars[0].patches]
    assert np.average(widths, weights=[stacks[label] for label in order]) == pytest.approx(100 * accuracy)
