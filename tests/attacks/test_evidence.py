"""The evidence behind the curves, counted from the rows once more, plainly; and the forms of a table."""

import json
import os
import re
import runpy
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from attacks.columns import SEVERAL
from attacks.records import CLEAN, Record, read_records
from attacks.report import evidence_figures
from attacks.report.class_tables import confusion, per_class
from attacks.report.evidence_tables import all_tables, rates
from attacks.report.results import Results, load_results
from attacks.report.table import Table
from attacks.report.tables import SHARED, table1
from attacks.statistics import clustered_rate

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
made_up = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "report.py"), run_name="report_benchmark"))
CLASSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up sweep of three classes with four groups each, controls and steps included."""
    folder = tmp_path_factory.mktemp("sweep")
    made_up.make_sweep(folder, 1000, classes=CLASSES, groups=4)
    return folder


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return list(read_records(folder / "records.jsonl"))


@pytest.fixture(scope="module")
def results(folder: Path, records: list[Record]) -> Results:
    """With a made-up realisability.json: H.264 undoes the successes on first stacks."""
    of = [r for r in records if r.level == "stack" and r.target == "flownet2" and r.epsilon in (0, 0.01)]
    rows = []
    for r in (r for r in of if r.attack in (CLEAN, "one_shot")):
        common = {"clip": r.clip, "stack": r.stack, "attack": r.attack, "target": r.target, "epsilon": r.epsilon}
        common |= {"prediction": r.prediction, "label": r.label, "attacked": r.attacked}
        rows.append({**common, "medium": "float", "correct": r.correct})
        rows.append({**common, "medium": "h264 crf 23", "correct": r.correct or (r.success and r.stack == 0)})
    (folder / "realisability.json").write_text(json.dumps(rows))
    return load_results(folder)


@pytest.fixture(scope="module")
def tables(results: Results) -> dict[str, Table]:
    return {table.name: table for table in all_tables(results)}


def dicts(table: Table) -> list[dict]:
    return [dict(zip(table.headings, row, strict=True)) for row in table.rows]


def stacks(records: list[Record], attack: str, target: str, epsilon: float) -> list[Record]:
    wanted = ("stack", attack, target, epsilon)
    return [r for r in records if (r.level, r.attack, r.target, r.epsilon) == wanted]


def test_controls_stand_apart(results: Results, tables: dict[str, Table]) -> None:
    assert results.gradient_attacks == ["one_shot", "iterative_saliency", "iterative_saliency_rg"]
    assert results.attacks[3:] == ["noise", "random_order", "first_to_last", "least_salient"]
    assert {"control", "orders"} < tables.keys()
    assert not any("random_order" in heading for heading in tables["table1"].headings)


def test_orders_are_counted_at_a_budget_of_frames(
    results: Results, records: list[Record], tables: dict[str, Table]
) -> None:
    attacks = ["iterative_saliency", "iterative_saliency_rg", "random_order", "first_to_last", "least_salient"]
    rows = dicts(tables["orders"])[::2]
    assert [row["epsilon"] for row in rows] == results.epsilons
    for row, attack in product(rows, attacks):
        of = stacks(records, attack, "flownet2", row["epsilon"])
        right = [r for r in of if r.attacked]
        within = [r for r in right if all(step[1] == r.label for step in r.steps[:3])]
        fooled = [r.frames_perturbed for r in right if r.success]
        assert row[f"{attack}/Stk-A≤3"] == round(100 * len(within) / len(of), 2)
        assert row[f"{attack}/Stk-A"] == round(100 * (len(right) - len(fooled)) / len(of), 2)
        assert row[f"{attack}/Stk-FP"] == (round(float(np.mean(fooled)), 2) if fooled else None)


def test_rates_have_both_denominators(records: list[Record], tables: dict[str, Table]) -> None:
    rows = dicts(tables["rates"])
    assert sum(row["units"] for row in rows) == len(records)
    for row in rows:
        if row["level"] == "stack":
            of = stacks(records, row["attack"], row["judged"], row["epsilon"])
            right = [r for r in of if r.attacked]
            still = sum(r.correct for r in right)
            assert (row["units"], row["attacked"], row["fooled"]) == (len(of), len(right), len(right) - still)
            assert row["accuracy of all/"] == round(100 * still / len(of), 2)
            assert row["accuracy of right/"] == round(100 * still / len(right), 2)
            assert row["success/"] == pytest.approx(100 - row["accuracy of right/"], abs=0.011)
        for name in ("accuracy of all", "accuracy of right", "success", "8-bit accuracy", "frames"):
            if row[f"{name}/low"] is not None:
                assert row[f"{name}/low"] <= row[f"{name}/"] <= row[f"{name}/high"]
        assert row["accuracy of all/high"] - row["accuracy of all/low"] > 1


def test_intervals_of_rates_are_those_of_their_groups_counts(records: list[Record], tables: dict[str, Table]) -> None:
    """Of all stacks, and of those right when clean: one that was wrong when clean does not stand."""
    rows = {(r["level"], r["attack"], r["judged"], r["epsilon"]): r for r in dicts(tables["rates"])}
    for attack, epsilon in (("one_shot", 0.01), ("iterative_saliency_rg", 0.035), (CLEAN, 0.0)):
        row = rows["stack", attack, "flownet2", epsilon]
        units, right, still = by_group(stacks(records, attack, "flownet2", epsilon))
        assert right.sum() < units.sum()
        for name, of in (("accuracy of all", units), ("accuracy of right", right)):
            expected = clustered_rate(still, of, CLASS_OF_GROUP)
            assert (row[f"{name}/low"], row[f"{name}/high"]) == in_percent(expected)


def test_paired_counts(records: list[Record], tables: dict[str, Table]) -> None:
    rows = dicts(tables["paired"])
    assert {row["judged"] for row in rows} == set(made_up.SYSTEMS)
    assert {row["level"] for row in rows} == {"stack", "video"}
    for row in rows[:: 1 + len(rows) // 40]:
        if row["level"] == "video":
            continue
        fooled = [
            {
                (r.clip, r.stack): r.success
                for r in stacks(records, row[name], row["judged"], row["epsilon"])
                if r.attacked
            }
            for name in ("first", "second")
        ]
        assert row["units"] == len(fooled[0])
        assert row["first only"] == sum(fooled[0][unit] and not fooled[1][unit] for unit in fooled[0])
        assert row["second only"] == sum(fooled[1][unit] and not fooled[0][unit] for unit in fooled[0])
        expected = 100 * (sum(fooled[0].values()) - sum(fooled[1].values())) / len(fooled[0])
        assert row["difference"] == pytest.approx(expected, abs=0.006)
        assert row["low"] <= row["difference"] <= row["high"]


def test_survival_and_budgets(records: list[Record], results: Results, tables: dict[str, Table]) -> None:
    assert results.frames == 11
    survival, budgets = (
        {(r["attack"], r["judged"], r["epsilon"]): r for r in dicts(tables[t])} for t in ("survival", "budgets")
    )
    assert survival.keys() == budgets.keys() and {"one_shot", "noise"}.isdisjoint(name for name, _, _ in survival)
    for (attack, target, epsilon), row in survival.items():
        of = stacks(records, attack, target, epsilon)
        needed = [r.frames_perturbed if r.success else 99 for r in of if r.attacked]
        median = sorted(needed)[(len(needed) + 1) // 2 - 1]
        assert row["median"] == (median if median <= 11 else None)
        for frames in range(1, 12):
            standing = sum(n > frames for n in needed)
            assert row[f"still right after {frames}/"] == round(100 * standing / len(needed), 2)
            budget = f"{frames} frame{'s' if frames > 1 else ''}/"
            assert budgets[attack, target, epsilon][budget] == round(100 * standing / len(of), 2)


def test_classes_and_confusions(records: list[Record], results: Results, tables: dict[str, Table]) -> None:
    for row in dicts(tables["per-class"]):
        label = results.classes.index(row["class"])
        of = [r for r in stacks(records, row["attack"], "flownet2", row["epsilon"]) if r.label == label]
        right = [r for r in of if r.attacked]
        assert (row["stacks"], row["attacked"], row["groups"]) == (len(of), len(right), 4)
        assert row["accuracy/"] == round(100 * sum(r.correct for r in right) / len(of), 2)
    counts = confusion(results, "iterative_saliency_rg", 0.01)
    expected = np.zeros((CLASSES, CLASSES), int)
    for r in stacks(records, "iterative_saliency_rg", "flownet2", 0.01):
        if r.attacked:
            expected[r.clean_prediction, r.prediction] += 1
    assert (counts == expected).all()
    listed = [r for r in dicts(tables["confusion"]) if (r["attack"], r["epsilon"]) == ("iterative_saliency_rg", 0.01)]
    assert sum(r["stacks"] for r in listed) == expected.sum() - np.trace(expected)
    assert [r["stacks"] for r in listed] == sorted((r["stacks"] for r in listed), reverse=True)


def by_group(records: list[Record], within: int = 99) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(G,) stacks of each group, in order of name; those right when clean; those still right within so many frames."""
    groups = sorted({r.group for r in records})
    of = [[r for r in records if r.group == group] for group in groups]
    right = [[r for r in rows if r.attacked] for rows in of]
    still = [sum(not r.success or r.frames_perturbed > within for r in rows) for rows in right]
    return np.array([*map(len, of)]), np.array([*map(len, right)]), np.array(still)


def in_percent(interval: tuple[float, float]) -> object:
    """As the tables round it."""
    return pytest.approx(tuple(100 * end for end in interval), abs=0.006)


CLASS_OF_GROUP = np.repeat(np.arange(CLASSES), 4)


@pytest.mark.parametrize("attack", ["iterative_saliency_rg", "first_to_last"])
def test_every_share_has_its_interval(records: list[Record], tables: dict[str, Table], attack: str) -> None:
    """Of survival, budgets and orders, as the bootstrap gives it of the groups' plain counts."""
    survival, budgets = (
        {(r["attack"], r["judged"], r["epsilon"]): r for r in dicts(tables[t])} for t in ("survival", "budgets")
    )
    for epsilon in made_up.EPSILONS:
        of = stacks(records, attack, "flownet2", epsilon)
        key = (attack, "flownet2", epsilon)
        for frames in range(12):
            units, right, still = by_group(of, frames)
            row = budgets[key]
            name = "1 frame" if frames == 1 else f"{frames} frames"
            expected = clustered_rate(still, units, CLASS_OF_GROUP)
            assert (row[f"{name}/low"], row[f"{name}/high"]) == in_percent(expected)
            if frames:
                row = survival[key]
                name = f"still right after {frames}"
                assert (row[f"{name}/low"], row[f"{name}/high"]) == in_percent(
                    clustered_rate(still, right, CLASS_OF_GROUP)
                )
            if frames == 3:
                (sure,) = [r for r in dicts(tables["orders"])[1::2] if r["epsilon"] == epsilon]
                low, high = expected
                assert sure[f"{attack}/Stk-A≤3"] == f"{100 * low:.1f}–{100 * high:.1f}"


def test_confusions_have_intervals_of_their_classes_groups(records: list[Record], tables: dict[str, Table]) -> None:
    for row in dicts(tables["confusion"]):
        clean, attacked = (int(row[name].removeprefix("Class")) for name in ("clean", "adversarial"))
        of = [r for r in stacks(records, row["attack"], "flownet2", row["epsilon"]) if r.attacked and r.label == clean]
        groups = sorted({r.group for r in of})
        taken, units = (
            [sum(r.group == group and (not as_it or r.prediction == attacked) for r in of) for group in groups]
            for as_it in (True, False)
        )
        assert row["stacks"] == sum(taken) and row["% of class"] == round(100 * sum(taken) / len(of), 2)
        assert (row["low"], row["high"]) == in_percent(clustered_rate(np.array(taken), np.array(units)))
        assert row["low"] <= row["% of class"] <= row["high"]


@pytest.fixture(scope="module")
def by_person(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, list[Record]]:
    """The same sweep, its clips grouped by who is seen: four persons in several classes, a fifth in one alone."""
    persons = tmp_path_factory.mktemp("by_person")
    (persons / "settings.json").write_bytes((folder / "settings.json").read_bytes())
    with (persons / "records.jsonl").open("w") as file:
        for record in read_records(folder / "records.jsonl"):
            person = "g05" if (record.label, record.group[-3:]) == (2, "g04") else record.group[-3:]
            file.write(json.dumps(record._replace(group=person)._asdict()) + "\n")
    return load_results(persons), list(read_records(persons / "records.jsonl"))


def test_a_group_of_several_classes_counts_for_each(by_person: tuple[Results, list[Record]]) -> None:
    results, records = by_person
    rows = [row for row in dicts(per_class(results)) if row["attack"] == "iterative_saliency_rg"]
    assert {row["class"] for row in rows} == set(results.classes)
    for row in rows:
        label = results.classes.index(row["class"])
        of = [r for r in stacks(records, row["attack"], "flownet2", row["epsilon"]) if r.label == label]
        units, right, still = by_group(of)
        assert (row["stacks"], row["attacked"], row["groups"]) == (len(of), right.sum(), 4)
        assert row["accuracy/"] == round(100 * still.sum() / len(of), 2)
        assert (row["accuracy/low"], row["accuracy/high"]) == in_percent(clustered_rate(still, units))
        assert (row["success/low"], row["success/high"]) == in_percent(clustered_rate(right - still, right))


def test_groups_of_several_classes_are_one_stratum(by_person: tuple[Results, list[Record]], results: Results) -> None:
    """Whatever class is read first: four persons' groups are drawn together, and with them the fifth, alone in one."""
    persons, records = by_person
    assert persons.columns.group_labels.tolist() == [SEVERAL] * 4 + [2]
    assert sorted(results.columns.group_labels) == [0] * 4 + [1] * 4 + [2] * 4
    rows = {(r["level"], r["attack"], r["judged"], r["epsilon"]): r for r in dicts(rates(persons))}
    for attack in ("one_shot", "iterative_saliency_rg"):
        of = stacks(records, attack, "flownet2", 0.01)
        units, _, still = by_group(of)
        row = rows["stack", attack, "flownet2", 0.01]
        assert (row["accuracy of all/low"], row["accuracy of all/high"]) == in_percent(clustered_rate(still, units))
    assert SHARED in table1(persons).notes and SHARED not in table1(results).notes


def test_perceptibility_is_the_mean_of_what_was_measured(records: list[Record], tables: dict[str, Table]) -> None:
    for row in dicts(tables["perceptibility"]):
        values = [r.psnr for r in stacks(records, row["attack"], "flownet2", row["epsilon"]) if r.psnr is not None]
        assert row["stacks"] == len(values)
        assert row["PSNR, dB/mean"] == pytest.approx(np.mean(values), abs=1e-3)
        assert row["PSNR, dB/low"] < row["PSNR, dB/mean"] < row["PSNR, dB/high"]


def test_realisability_beside_the_clean_frames(
    records: list[Record], results: Results, tables: dict[str, Table]
) -> None:
    rows = {(r["attack"], r["medium"]): r for r in dicts(tables["realisability"])}
    assert set(rows) == {(name, medium) for name in (CLEAN, "one_shot") for medium in ("float", "h264 crf 23")}
    assert rows[CLEAN, "float"]["success/"] == 0
    counts = results.curve("one_shot", "flownet2")[0.01]
    kept = sum(r.success for r in stacks(records, "one_shot", "flownet2", 0.01) if r.stack)
    assert 0 < kept < counts.success
    assert rows["one_shot", "h264 crf 23"]["success/"] == round(100 * kept / counts.attacked, 2)
    assert rows["one_shot", "float"]["accuracy/"] == round(100 * counts.accuracy, 2)


def test_the_figure_of_stored_frames_says_how_many_stacks(results: Results) -> None:
    """At the largest ε, whichever has most rows; of more clips for one attack than for another, both numbers."""
    rows = [r for r in results.realisability if r["medium"] == "float"]
    stored = [{**r, "epsilon": 0.02 if r["attack"] != CLEAN else 0.0} for r in rows if r["stack"] == 0]
    count = sum(r["attack"] == CLEAN for r in rows)
    title = evidence_figures.media_bars(results).get_suptitle()
    assert title.endswith(f"ε = 0.01 ({count} stacks)")
    both = results._replace(realisability=[*rows, *stored])
    assert f"ε = 0.02 ({count // 2} to {3 * count // 2} stacks)" in evidence_figures.media_bars(both).get_suptitle()


def test_costs_are_listed(tables: dict[str, Table]) -> None:
    rows = dicts(tables["costs"])
    assert {"part": "one_shot", "judged": "flownet2", "seconds": 10.0} in rows and len(rows) == 7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_thousand_records() -> None:
    """The whole report in 2 GB and some 20 times what reading the rows takes, in the same process: whatever else keeps
    the machine busy slows both. Work that grew with the square of the rows would take thousands of times as long."""
    command = [sys.executable, str(BENCHMARKS / "report.py"), "--records=200000"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": str(BENCHMARKS.parents[1])}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    count, times, memory = re.search(r"(\d+) records: .* ([\d.]+) times .* peak ([\d.]+) GiB", printed).groups()
    assert int(count) > 190_000 and float(times) < 60 and float(memory) < 2, printed


TABLE = Table(
    "t",
    "A & B",
    [("", "epsilon"), ("", "source"), ("one_shot", "Stk-A"), ("one_shot", "Stk-FP")],
    [[0.005, "this run", 10.0, None], [0.005, "95 %", "3.1–28.9", None]],
    ["50 % of_all"],
)


def test_forms_of_a_table() -> None:
    assert TABLE.csv().splitlines()[:2] == ["epsilon,source,one_shot/Stk-A,one_shot/Stk-FP", "0.005,this run,10.0,"]
    assert TABLE.markdown().splitlines()[2:] == [
        "| epsilon | source | one-shot Stk-A | one-shot Stk-FP |",
        "| --: | :-- | --: | --: |",
        "| 0.005 | this run | 10.00 | – |",
        "| 0.005 | 95 % | 3.1–28.9 | – |",
        "",
        "50 % of_all  ",
    ]
    latex = TABLE.latex()
    assert r"\caption{A \& B. 50 \% of\_all}" in latex
    assert r"\multicolumn{2}{c}{one-shot} \\" in latex and r"\cmidrule(lr){3-4}" in latex
    assert r"0.005 & 95 \% & 3.1--28.9 & -- \\" in latex
    assert all(line.count("&") == 3 for line in latex.splitlines() if line.startswith("0.005"))
    assert len({len(line) for line, _ in [TABLE.lines()[i] for i in (3, 5, 6)]}) == 1


def test_latex_is_ascii_and_escaped(tables: dict[str, Table], by_person: tuple[Results, list[Record]]) -> None:
    """pdfLaTeX stops at a character that it has no font for; what LaTeX takes for its own is not left to it."""
    every = [*tables.values(), *all_tables(by_person[0]), TABLE]
    assert any("≤" in heading for table in every for heading in table.headings)
    for table in every:
        text = table.latex()
        assert text.isascii(), (table.name, sorted({c for c in text if not c.isascii()}))
        cells = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
        rows = [line for line in cells.splitlines() if line.endswith(r" \\") and r"\multicolumn" not in line]
        assert all(len(re.findall(r"(?<!\\)&", row)) == len(table.columns) - 1 for row in rows) and len(rows) > 1
    odd = Table("t", r"{a}\b^c~d", [("", "class"), ("", "x ≤ 3 | y ≥ 1")], [["100 % & #1_$", "<2 × 3>"]], ["…"])
    assert r"\caption{\{a\}\textbackslash{}b\textasciicircum{}c\textasciitilde{}d. \ldots{}}" in odd.latex()
    assert r"class & x $\leq$ 3 $|$ y $\geq$ 1 \\" in odd.latex()
    assert r"100 \% \& \#1\_\$ & $<$2 $\times$ 3$>$ \\" in odd.latex()


def test_a_file_that_is_something_else_is_refused(folder: Path, results: Results, tmp_path: Path) -> None:
    for name in ("settings.json", "records.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "realisability.json").write_text("{}")
    with pytest.raises(ValueError, match=r"realisability\.json holds a dict, not a list"):
        load_results(tmp_path)
    (tmp_path / "realisability.json").write_text("[{")
    with pytest.raises(ValueError, match=r"realisability\.json is not JSON"):
        load_results(tmp_path)


def test_a_stored_stack_without_records_is_named(folder: Path, results: Results, tmp_path: Path) -> None:
    for name in ("settings.json", "records.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    row = results.realisability[0]
    for wrong in ({"clip": "Class000/v_other"}, {"stack": 7}):
        (tmp_path / "realisability.json").write_text(json.dumps([row, row | wrong]))
        with pytest.raises(
            ValueError, match=r"realisability\.json: row 1 is of clip '.*', stack \d, of which .*remove"
        ):
            load_results(tmp_path)
    (tmp_path / "realisability.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "medium"}]))
    with pytest.raises(ValueError, match=r"realisability\.json: row 0, .*, has no medium; remove"):
        load_results(tmp_path)


@pytest.mark.parametrize("level, target", [("stack", "flownet2"), ("video", "flownet2"), ("stack", "tvl1")])
def test_records_without_the_clean_system_are_refused(folder: Path, tmp_path: Path, level: str, target: str) -> None:
    (tmp_path / "settings.json").write_bytes((folder / "settings.json").read_bytes())
    rows = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    kept = [row for row in rows if (row["level"], row["target"], row["attack"]) != (level, target, CLEAN)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    message = (
        rf"records\.jsonl: no {level} of {target} has a row of attack 'clean' .*of .*one_shot.*run the sweep again"
    )
    with pytest.raises(ValueError, match=message):
        load_results(tmp_path)
