"""A sweep's offline W&B run, read back: every curve with its interval, chart, table, picture and clip."""

import json
import runpy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from attacks.records import CLEAN
from attacks.report.results import load_results

HERE = Path(__file__).parent
toy = SimpleNamespace(**runpy.run_path(str(HERE / "toy_sweep.py"), run_name="toy_sweep"))
OfflineRun = runpy.run_path(str(HERE / "wandb_offline.py"))["OfflineRun"]
TRANSFERRED = ["one_shot", "iterative_saliency_rg", "noise"]
ATTACKS = [*TRANSFERRED[:1], "iterative_saliency", *TRANSFERRED[1:], "random_order", "first_to_last", "least_salient"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Folder of a sweep and its run."""
    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODE": "offline", "SILENT": "true", "RUN_GROUP": "quickstart"}.items():
            patch.setenv(f"WANDB_{name}", value)
        for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder))
        toy.run(folder / "sweep", logger=WandbLogger(project="toy", save_dir=folder), examples=2, realise=1)
        wandb.finish()
    return folder / "sweep", OfflineRun(folder)


def test_every_curve_is_there_against_epsilon(sweep: tuple[Path, Any]) -> None:
    folder, run = sweep
    results = json.loads((folder / "results.json").read_text())["results"]
    assert {cell["attack"] for cell in results} == {CLEAN, *ATTACKS}
    for cell in results:
        if cell["attack"] == CLEAN:
            continue
        name = f"attack/{cell['level']}_accuracy/{cell['attack']}/{cell['target']}"
        assert run.steps[name] == "attack/epsilon"
        points = run.points(name, "attack/epsilon")
        assert list(points) == [0, *toy.EPSILONS]
        assert points[cell["epsilon"]] == pytest.approx(cell["accuracy"])


def test_every_rate_has_its_band(sweep: tuple[Path, Any]) -> None:
    """Around the rate, and the one that the report gives."""
    folder, run = sweep
    bands = 0
    for level, quantity, attack in product(("stack", "video"), ("accuracy", "success_rate"), ATTACKS):
        name = f"attack/{level}_{quantity}/{attack}/flownet2"
        lower, upper = (name.replace(quantity, f"{quantity}_{bound}") for bound in ("lower", "upper"))
        assert run.steps[lower] == run.steps[upper] == "attack/epsilon"
        for epsilon, value in run.points(name, "attack/epsilon").items():
            low, high = (run.points(end, "attack/epsilon")[epsilon] for end in (lower, upper))
            assert 0 <= low <= value + 1e-9 and value - 1e-9 <= high <= 1 and low < high
            bands += 1
    assert bands == 2 * 2 * len(ATTACKS) * 3
    bounds = load_results(folder).bounds("one_shot", "flownet2")
    for bound, end in (("lower", 0), ("upper", 1)):
        points = run.points(f"attack/stack_accuracy_{bound}/one_shot/flownet2", "attack/epsilon")
        assert points == {epsilon: interval.accuracy[end] for epsilon, interval in bounds.items()}


def test_charts_have_a_line_for_each_attack_and_target(sweep: tuple[Path, Any]) -> None:
    _, run = sweep
    for level in ("stack", "video"):
        columns, rows = run.table(f"attack_charts/{level}_accuracy_table")
        assert columns == ["step", "lineKey", "lineVal"]
        made = [(a, "flownet2") for a in ATTACKS]
        made += [(a, t) for a in ATTACKS for t in ("tvl1", "farneback") if a in TRANSFERRED]
        assert {row[1] for row in rows} == {f"{attack} on {target}" for attack, target in made}
        for attack, target in made:
            points = {row[0]: row[2] for row in rows if row[1] == f"{attack} on {target}"}
            assert points == run.points(f"attack/{level}_accuracy/{attack}/{target}", "attack/epsilon")


def test_tables_figures_and_clips_are_files_of_the_run(sweep: tuple[Path, Any]) -> None:
    folder, run = sweep
    kinds = {name: value.get("_type") for name, value in run.media.items()}
    assert kinds["attack_tables/table1"] == "table-file"
    assert {name for name, kind in kinds.items() if kind == "image-file"} == {
        f"attack_figures/{figure.stem}" for figure in (folder / "figures").glob("*.png")
    }
    assert sum(kind == "video-file" for kind in kinds.values()) == 2
    for value in run.media.values():
        if "path" in value:
            assert (run.files / value["path"]).stat().st_size == value["size"] > 0


def test_the_gallery_says_what_the_records_say(sweep: tuple[Path, Any]) -> None:
    folder, run = sweep
    columns, rows = run.table("attack_gallery/examples")
    assert [row[columns.index("attack")] for row in rows] == [CLEAN, *ATTACKS] * 2
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    for row in (dict(zip(columns, row, strict=True)) for row in rows):
        (record,) = [
            r for r in records
            if (r["clip"], r["attack"], r["epsilon"]) == (row["clip"], row["attack"], row["epsilon"])
            and r["stack"] == row["stack"] - 1 and r["target"] == "flownet2"
        ]  # fmt: skip
        assert row["prediction"] == toy.CLASSES[record["prediction"]]
        assert row["confidence"] == record["confidence"]
    # The table's media lie in its own artifact, beside it.
    (contents,) = [
        {entry.path: Path(entry.local_path).stat().st_size for entry in artifact.manifest.contents if entry.local_path}
        for artifact in run.artifacts
        if artifact.type == "run_table" and "gallery" in artifact.name
    ]
    assert sum(path.endswith(".mp4") and size > 0 for path, size in contents.items()) == 2


def test_realisability_is_a_table(sweep: tuple[Path, Any]) -> None:
    folder, run = sweep
    columns, rows = run.table("attack_tables/realisability")
    reported = json.loads((folder / "results.json").read_text())["tables"]["realisability"]
    assert columns == reported["columns"] and len(rows) == len(reported["rows"]) > 0
