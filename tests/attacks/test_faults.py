"""A sweep in which some stacks say nothing of robustness: counted plainly, told everywhere, and in no rate.

Of a made-up sweep's rows: one-shot finds no gradient on stacks of the groups g01, iterative-saliency's logits are not
finite at ε = 0.01 on those of g02, and one clip of g03 has no verdict even when clean.
"""

import html
import json
import runpy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attacks.metrics import Cell, tally
from attacks.records import CLEAN, NO_GRADIENT, NOT_FINITE, Record, read_records
from attacks.report import Report, write_report
from attacks.report.class_tables import by_class, confusion
from attacks.report.compare import differences
from attacks.report.example_figures import verdict
from attacks.report.results import load_results
from attacks.survival import survival

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
made_up = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "report.py"), run_name="report_benchmark"))
UNTOUCHED = {"success": False, "frames_perturbed": 0, "frame_order": [], "steps": []}
NOTHING = {"prediction": -1, "attacked": False, "correct": False, "correct_8bit": False, "fault": NOT_FINITE}
NOTHING |= UNTOUCHED | {"confidence": None, "margin": None, "psnr": None, "ssim": None}


def faulty(record: Record) -> Record:
    if record.level == "video":
        return record
    if record.clip.endswith("Class000_g03_c01"):
        return record._replace(**NOTHING, clean_prediction=-1)
    if record.attack == "one_shot" and record.group.endswith("g01") and record.attacked:
        stands = {
            "prediction": record.label,
            "correct": True,
            "correct_8bit": True,
            "fault": NO_GRADIENT,
            "steps": None,
        }
        return record._replace(**UNTOUCHED | stands)
    if record.attack == "iterative_saliency" and record.epsilon == 0.01 and record.group.endswith("g02"):
        return record._replace(**NOTHING)
    if record.attack == "iterative_saliency_rg" and record.group.endswith("g01") and record.attacked:
        stands = {"prediction": record.label, "correct": True, "correct_8bit": True, "fault": NO_GRADIENT}
        return record._replace(**UNTOUCHED | stands)
    return record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    made_up.make_sweep(folder, 1000, classes=3, groups=4)
    return folder


@pytest.fixture(scope="module")
def report(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "settings.json").write_bytes((whole / "settings.json").read_bytes())
    with (folder / "records.jsonl").open("w") as file:
        for record in read_records(whole / "records.jsonl"):
            file.write(json.dumps(faulty(record)._asdict()) + "\n")
    with pytest.warns(UserWarning, match="says nothing of robustness"):
        return write_report(folder)


@pytest.fixture(scope="module")
def records(report: Report) -> list[Record]:
    return list(read_records(report.folder / "records.jsonl"))


def stacks(records: list[Record], attack: str, epsilon: float) -> list[Record]:
    wanted = ("stack", attack, "flownet2", epsilon)
    return [r for r in records if (r.level, r.attack, r.target, r.epsilon) == wanted]


def test_faults_are_counted_and_stacks_without_a_verdict_in_no_rate(report: Report, records: list[Record]) -> None:
    for attack, epsilon in ((CLEAN, 0.0), ("one_shot", 0.01), ("iterative_saliency", 0.01), ("noise", 0.01)):
        of = stacks(records, attack, epsilon)
        with_verdict = [r for r in of if r.fault != NOT_FINITE]
        assert len(with_verdict) < len(of)
        counts = report.results.tallies[report.results.cell(attack, "flownet2", epsilon)]
        assert counts.faults == Counter(r.fault for r in of if r.fault)
        standing = sum(r.attacked and r.correct for r in of)
        assert counts.accuracy == standing / len(with_verdict)
        assert counts.accuracy_within(11) == pytest.approx(counts.accuracy)
        assert counts.accuracy_8bit == sum(r.attacked and r.correct_8bit for r in with_verdict) / len(with_verdict)
        bounds = report.results.intervals[report.results.cell(attack, "flownet2", epsilon)]
        assert bounds.accuracy.low < counts.accuracy < bounds.accuracy.high
        assert bounds.accuracy_8bit.low < counts.accuracy_8bit < bounds.accuracy_8bit.high
        classes = by_class(report.results, [report.results.cell(attack, "flownet2", epsilon)])[0]
        assert sum(of_class.stacks for of_class in classes.values()) == len(with_verdict)


def test_no_class_stands_for_no_verdict(report: Report, records: list[Record]) -> None:
    """The class -1 is not the last one: not in the columns, nor in a confusion, a figure or the gallery."""
    cell = report.results.columns.cells[report.results.cell("iterative_saliency", "flownet2", 0.01)]
    of = stacks(records, "iterative_saliency", 0.01)
    assert (
        cell.predictions.tolist() == [[r.clean_prediction, r.prediction] for r in of] and (cell.predictions < 0).any()
    )
    counts = confusion(report.results, "iterative_saliency", 0.01)
    assert counts.sum() == sum(r.attacked for r in of)
    assert "no verdict" in verdict(report.results, next(r for r in of if r.fault == NOT_FINITE))


def test_the_table_of_faults(report: Report, records: list[Record]) -> None:
    table = next(table for table in report.tables if table.name == "faults")
    assert table.headings == [
        "attack", "judged", "epsilon", "stacks", "attacked", "without gradient", "without verdict",
    ]  # fmt: skip
    for row in table.rows:
        of = [r for r in records if (r.level, r.attack, r.target, r.epsilon) == ("stack", row[0], row[1], row[2])]
        faults = Counter(r.fault for r in of)
        assert row[3:] == [len(of), sum(r.attacked for r in of), faults[NO_GRADIENT], faults[NOT_FINITE]]
    assert sum(row[5] for row in table.rows) == sum(r.fault == NO_GRADIENT for r in records) > 0
    assert sum(row[6] for row in table.rows) == sum(r.fault == NOT_FINITE for r in records) > 0
    cells = json.loads((report.folder / "results.json").read_text())["results"]
    assert sum(cell.get("faults", {}).get(NO_GRADIENT, 0) for cell in cells) == sum(row[5] for row in table.rows)


def test_notes_say_what_a_fault_means(report: Report, records: list[Record]) -> None:
    table1 = next(table for table in report.tables if table.name == "table1")
    of = stacks(records, "one_shot", 0.01)
    still, attacked = sum(r.fault == NO_GRADIENT for r in of), sum(r.attacked for r in of)
    said = (
        f"{still} of {attacked} attacked stacks under one-shot, judged by flownet2, had a gradient of zero everywhere"
    )
    assert any(note.startswith(said) and note.endswith("says nothing of robustness.") for note in table1.notes)
    lost = sum(r.fault == NOT_FINITE for r in stacks(records, "iterative_saliency", 0.01))
    said = f"Up to {lost} of {len(of)} stacks under iterative-saliency, judged by flownet2, have no verdict"
    assert any(note.startswith(said) for note in table1.notes)
    clean = sum(r.fault == NOT_FINITE for r in stacks(records, CLEAN, 0.0))
    assert any(note.startswith(f"{clean} of {len(of)} clean stacks, judged by flownet2") for note in table1.notes)
    for name in ("table2", "denominators-flownet2", "rates", "budgets"):
        assert "nothing of robustness" in " ".join(next(t for t in report.tables if t.name == name).notes)
    page = html.unescape(report.page.read_text())
    head = page[: page.index('class="lead"')]
    assert head.count("a gradient of zero everywhere") == head.count("have no verdict") == 1


@pytest.mark.slow
def test_without_faults_nothing_is_said(whole: Path) -> None:
    results = load_results(whole)
    assert not any(counts.faults or counts.unjudged for counts in results.tallies.values())
    report = write_report(whole)
    assert report.reservations == [] and not any(table.name == "faults" for table in report.tables)
    for path in ("report/index.html", "results.json", "tables.txt"):
        assert "nothing of robustness" not in (whole / path).read_text()
    assert not {"faults", "judged"} & json.loads((whole / "results.json").read_text())["results"][0].keys()


def test_a_cell_without_any_verdict_has_no_rate(whole: Path, tmp_path: Path) -> None:
    """Half precision that overflows at every ε: the report is written, with gaps."""
    (tmp_path / "settings.json").write_bytes((whole / "settings.json").read_bytes())
    with (tmp_path / "records.jsonl").open("w") as file:
        for r in read_records(whole / "records.jsonl"):
            lost = NOTHING | {"correct_8bit": None if r.level == "video" else False}
            gone = r._replace(**lost) if r.epsilon and (r.target, r.attack) != ("flownet2", "noise") else r
            file.write(json.dumps(gone._asdict()) + "\n")
    with pytest.warns(UserWarning, match="no verdict"):
        report = write_report(tmp_path)
    assert {"fig4_accuracy", "controls"} <= report.figures.keys()
    written = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    lost = [cell for cell in written["results"] if cell["attack"] == "one_shot"]
    assert lost and all(cell["accuracy"] is None and cell["accuracy_95"] is None for cell in lost)
    assert "nan" not in (tmp_path / "tables.txt").read_text()
    assert "nan" not in report.page.read_text().split('class="numbers"')[1].split("<nav")[0]
    compared = differences({"a": report.results, "b": load_results(whole)}, ["one_shot"]).rows
    assert all(row[5] is None for row in compared if row[2] == "one_shot")


def test_what_could_not_move_is_no_survivor() -> None:
    """Four of ten had no gradient: the curve and its band are those of the six; of ten without one there is none."""
    frames, fell = np.array([1, 2, 5, 11, 11, 11]), np.array([1, 1, 1, 0, 0, 0], bool)
    six = survival(frames, fell, 11)
    ten = survival(np.append(frames, [0] * 4), np.append(fell, [False] * 4), 11)
    for name in ("standing", "low", "high"):
        assert getattr(ten, name).tolist() == getattr(six, name).tolist()
    assert ten[3:] == six[3:]
    nothing = survival(np.zeros(10, int), np.zeros(10, bool), 11)
    assert nothing.standing[0] == 1 and np.isnan(nothing.standing[1:]).all() and nothing.median is None


def test_tally_takes_a_fault_where_it_says_something() -> None:
    """A gradient of zero on a stack that was not attacked changes nothing that could be misread."""
    values = dict.fromkeys(Record._fields[:21], 0) | {"level": "stack", "system": "s", "target": "t", "attack": "a"}
    row = Record(**values | {"fault": NO_GRADIENT, "steps": None, "stacks_perturbed": None, "correct_8bit": None})
    counts = tally([row._replace(attacked=True), row._replace(attacked=False)])[Cell("stack", "s", "a", "t", 0)]
    assert counts.faults == {NO_GRADIENT: 1} and counts.judged == 2
