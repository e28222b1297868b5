"""The tables of a toy sweep: the paper's layout and figures, and numbers that the records give when counted plainly."""

import csv
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from attacks.records import CLEAN, Record, RecordStore, read_records
from attacks.report import Report, paper, write_report
from attacks.report.results import CONTROLS, load_results
from attacks.settings import write_settings

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy_sweep.py")), run_name="toy_sweep"))
ATTACKS = ["one_shot", "iterative_saliency", "iterative_saliency_rg"]


@pytest.fixture(scope="module")
def folder(swept: Callable[[], Path]) -> Path:
    return swept()


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return write_report(folder)


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return list(read_records(folder / "records.jsonl"))


def rows_of(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def counted(records: list[Record], level: str, attack: str, target: str, epsilon: float) -> list[Record]:
    attack = CLEAN if epsilon == 0 else attack
    wanted = (level, attack, target, epsilon)
    return [r for r in records if (r.level, r.attack, r.target, r.epsilon) == wanted]


def percent_right(rows: list[Record]) -> str:
    return str(round(100 * sum(r.attacked and r.correct for r in rows) / len(rows), 2))


def test_paper_tables_agree_with_each_other() -> None:
    """Their common entries, and the fractions that Table 2 prints for RG on FlowNet2."""
    for (attack, target, epsilon), printed in paper.table2().items():
        if target != "flownet2":
            continue
        percent = paper.table1()[attack, epsilon].stack_accuracy
        if attack == "one_shot" or epsilon == 0:
            assert printed == percent
        else:
            fraction = int(float(percent)) / 100
            assert printed == (f"{fraction:.2f}†" if fraction else "<0.01†")
    assert len(paper.table1()) == 3 * 8 and len(paper.table2()) == 2 * 3 * 8
    assert {printed.frames_perturbed for (a, e), printed in paper.table1().items() if a == "one_shot" and e} == {"11"}


def test_table1_has_the_papers_columns_and_both_sources(folder: Path, report: Report, records: list[Record]) -> None:
    rows = rows_of(folder, "table1")
    assert list(rows[0]) == ["epsilon", "source"] + [f"{a}/{q}" for a in ATTACKS for q in ("Stk-A", "Stk-FP", "Vid-A")]
    assert [(float(r["epsilon"]), r["source"]) for r in rows] == [
        (epsilon, source) for epsilon in (0, *toy.EPSILONS) for source in ("this run", "95 %", "paper")
    ]
    for row in rows:
        epsilon = float(row["epsilon"])
        for attack in ATTACKS:
            shown = [row[f"{attack}/{quantity}"] for quantity in ("Stk-A", "Stk-FP", "Vid-A")]
            if row["source"] == "paper":
                assert shown == list(paper.table1()[attack, epsilon])
                continue
            if row["source"] == "95 %":
                continue
            stacks = counted(records, "stack", attack, "flownet2", epsilon)
            fooled = [r.frames_perturbed for r in stacks if r.success]
            videos = counted(records, "video", attack, "flownet2", epsilon)
            frames = str(round(sum(fooled) / len(fooled), 2)) if fooled else ""
            assert shown == [percent_right(stacks), frames, percent_right(videos)]
    paper_row = next(r for r in rows if r["source"] == "paper" and float(r["epsilon"]) == 0.005)
    assert list(paper_row.values())[2:] == ["25.74", "11", "29.44", "25.25", "2.44", "28.88", "3.80", "2.94", "3.91"]


def test_table2_quotes_the_paper_with_its_faults(folder: Path, report: Report, records: list[Record]) -> None:
    rows = rows_of(folder, "table2")
    columns = [(a, s) for a in ("one_shot", "iterative_saliency_rg") for s in ("flownet2", "tvl1", "farneback")]
    assert list(rows[0])[2:] == [f"{attack}/{system}" for attack, system in columns]
    assert list(rows[2].values())[2:] == ["74.01", "69.61‡", "68.94", "74.01", "69.61‡", "68.94"]
    assert list(rows[5].values())[2:] == ["25.74", "65.34", "68.26", "0.03†", "62.49", "65.48"]
    for row in rows[::3]:
        for attack, system in columns:
            stacks = counted(records, "stack", attack, system, float(row["epsilon"]))
            assert row[f"{attack}/{system}"] == percent_right(stacks)
    text = (folder / "tables.txt").read_text()
    assert "† as printed: a fraction" in text and "‡ as printed in Table 2; section 4 says 70.72" in text


def test_denominators_and_control_count_plainly(folder: Path, report: Report, records: list[Record]) -> None:
    for system, attacks in (
        ("flownet2", [*ATTACKS, *CONTROLS]),
        ("tvl1", ["one_shot", "iterative_saliency_rg", "noise"]),
    ):
        rows = rows_of(folder, f"denominators-{system}")
        assert list(rows[0])[2:] == [f"{a}/{q}" for a in attacks for q in ("all", "right", "8-bit")]
        for row in rows[::2]:
            for attack in attacks:
                stacks = counted(records, "stack", attack, system, float(row["epsilon"]))
                right = [r for r in stacks if r.attacked]
                assert row[f"{attack}/all"] == percent_right(stacks)
                assert row[f"{attack}/right"] == percent_right(right)
                eight_bit = sum(bool(r.correct_8bit) for r in right)
                assert row[f"{attack}/8-bit"] == str(round(100 * eight_bit / len(stacks), 2))
    for row in rows_of(folder, "control")[::2]:
        for system in ("flownet2", "tvl1", "farneback"):
            stacks = counted(records, "stack", "noise", system, float(row["epsilon"]))
            assert row[f"{system}/Stk-A"] == percent_right(stacks)
            assert row[f"{system}/recovered"] == str(sum(r.correct and not r.attacked for r in stacks))
            assert row[f"{system}/Vid-A"] == percent_right(
                counted(records, "video", "noise", system, float(row["epsilon"]))
            )


def test_json_holds_the_tables_and_every_cell(folder: Path, report: Report, records: list[Record]) -> None:
    results = json.loads((folder / "results.json").read_text())
    for name, table in results["tables"].items():
        cells = [["" if value is None else str(value) for value in row] for row in table["rows"]]
        assert cells == [list(row.values()) for row in rows_of(folder, name)]
    assert sum(cell["examples"] for cell in results["results"]) == len(records)
    assert {cell["attack"] for cell in results["results"]} == {CLEAN, *ATTACKS, *CONTROLS}


def test_a_wrong_stack_stays_wrong_in_the_tables(tmp_path: Path, records: list[Record]) -> None:
    """Corrected by noise, a stack that was wrong when clean is `recovered`; accuracy leaves it out (section 5.1)."""
    settings = {"system": "flownet2", "systems": {"flownet2": {}}, "attacks": {"noise": {"dense": True}}}
    settings |= {"epsilons": [0.01], "classes": toy.CLASSES, "test_clips": 1}
    write_settings(tmp_path, settings)
    clean = next(r for r in records if r.attack == CLEAN and r.level == "stack")._replace(clip="a", target="flownet2")
    rows = [
        clean._replace(stack=0, attacked=True, correct=True),
        clean._replace(stack=1, attacked=False, correct=False),
        clean._replace(stack=0, attack="noise", epsilon=0.01, attacked=True, correct=True),
        clean._replace(stack=1, attack="noise", epsilon=0.01, attacked=False, correct=True),
    ]
    rows += [row._replace(level="video", stack=None, correct_8bit=None) for row in rows[::2]]
    store = RecordStore(tmp_path)
    store.append("a", rows)
    store.merge()
    write_report(tmp_path)
    rows_written = rows_of(tmp_path, "control")[::2]
    assert [(r["flownet2/Stk-A"], r["flownet2/recovered"]) for r in rows_written] == [("50.0", "0"), ("50.0", "1")]
    assert not (tmp_path / "tables" / "table2.csv").exists()


def test_other_attacks_and_epsilons_stand_alone(tmp_path: Path, records: list[Record]) -> None:
    """Where the paper has no figure there is no row of the paper."""
    settings = {"system": "raft", "systems": {"raft": {}}, "attacks": {"mine": {"dense": False}}}
    write_settings(tmp_path, {**settings, "epsilons": [0.1], "classes": toy.CLASSES, "test_clips": 1})
    clean = next(r for r in records if r.attack == CLEAN)._replace(clip="a", system="raft", target="raft")
    rows = [clean, clean._replace(attack="mine", epsilon=0.1, success=True, correct=False, frames_perturbed=2)]
    rows += [row._replace(level="video", stack=None, correct_8bit=None, stacks_perturbed=1) for row in rows]
    store = RecordStore(tmp_path)
    store.append("a", rows)
    store.merge()
    write_report(tmp_path)
    rows_written = [list(row.values()) for row in rows_of(tmp_path, "table1")]
    assert rows_written[::2] == [["0.0", "this run", "100.0", "", "100.0"], ["0.1", "this run", "0.0", "2.0", "0.0"]]
    assert [row[1] for row in rows_written] == ["this run", "95 %"] * 2


@pytest.mark.slow
def test_report_is_rebuilt_from_records_alone(folder: Path, report: Report) -> None:
    page = folder / "report" / "index.html"
    before = {path: path.read_bytes() for path in [folder / "tables.txt", folder / "results.json", page]}
    for path in before:
        path.unlink()
    command = [sys.executable, "-m", "attacks", "report", str(folder)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert before == {path: path.read_bytes() for path in before}
    for line in (folder / "summary.txt").read_text().splitlines():
        assert line.rstrip() in printed
    assert "Table 1." in printed and "Control." in printed and "Every rate" not in printed


def test_a_folder_without_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no settings\.json"):
        write_report(tmp_path)


def test_rows_of_another_white_box_are_left_out_and_named(folder: Path, tmp_path: Path, records: list[Record]) -> None:
    """Two sweeps' rows in one file, the second's white box always fooled: the numbers stay those of the first."""
    shutil.copy(folder / "settings.json", tmp_path)
    shutil.copytree(folder / "examples", tmp_path / "examples")
    others = [r._replace(system="raft", success=r.attacked, correct=False) for r in records]
    both = "".join(json.dumps(r._asdict()) + "\n" for pair in zip(records, others, strict=True) for r in pair)
    (tmp_path / "records.jsonl").write_text(both)
    said = f"also holds {len(others)} rows that used the gradient of raft: this report is of flownet2 alone"
    with pytest.warns(UserWarning, match=said):
        mixed = write_report(tmp_path)
    alone = load_results(folder)
    assert mixed.results.tallies == alone.tallies and mixed.results.intervals == alone.intervals
    assert {cell.system for cell in mixed.results.tallies} == {"flownet2"}
    assert mixed.page.read_text().count(said) == 1
    written = json.loads((tmp_path / "results.json").read_text())
    assert said in written["reservations"][0] and {cell["system"] for cell in written["results"]} == {"flownet2"}
    assert "reservations" not in json.loads((folder / "results.json").read_text())
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(r._asdict()) + "\n" for r in others))
    with pytest.raises(
        ValueError, match=r"records\.jsonl: its \d+ rows are of the white box raft, and .* names flownet2"
    ):
        load_results(tmp_path)
