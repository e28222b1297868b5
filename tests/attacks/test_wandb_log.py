"""A sweep's offline W&B run, read back: every curve with its interval, chart, table, picture and clip."""

import json
import runpy
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from attacks.examples import load_examples
from attacks.records import CLEAN
from attacks.video_files import read_video
from attacks.wandb_log import write_clip

HERE = Path(__file__).parent
toy = SimpleNamespace(**runpy.run_path(str(HERE / "toy_sweep.py"), run_name="toy_sweep"))
OfflineRun = runpy.run_path(str(HERE / "wandb_offline.py"))["OfflineRun"]
ATTACKS = ["one_shot", "iterative_saliency", "iterative_saliency_rg", "noise"]


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


def wilson_by_hand(successes: int, total: int) -> tuple[float, float]:
    """Brown, Cai and DasGupta 2001, eq. 4."""
    z, share = 1.959963984540054, successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + z**2 / (4 * total**2)) ** 0.5
    return centre - half, centre + half


def test_every_rate_has_its_band(sweep: tuple[Path, Any]) -> None:
    """In order around the rate for whatever interval; for independent units it is Wilson's."""
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
    assert bands == 2 * 2 * 4 * 3
    cells = json.loads((folder / "results.json").read_text())["results"]
    (cell,) = [
        c for c in cells if c["level"] == "stack" and c["attack"] == "one_shot" and c["target"] == "flownet2"
        and c["epsilon"] == 0.025
    ]  # fmt: skip
    low, high = wilson_by_hand(cell["attacked"] - cell["success"], cell["examples"])
    for bound, value in (("lower", low), ("upper", high)):
        points = run.points(f"attack/stack_accuracy_{bound}/one_shot/flownet2", "attack/epsilon")
        assert points[0.025] == pytest.approx(value)


def test_charts_have_a_line_for_each_attack_and_target(sweep: tuple[Path, Any]) -> None:
    _, run = sweep
    for level in ("stack", "video"):
        columns, rows = run.table(f"attack_charts/{level}_accuracy_table")
        assert columns == ["step", "lineKey", "lineVal"]
        made = [(a, "flownet2") for a in ATTACKS]
        made += [(a, t) for a in ATTACKS for t in ("tvl1", "farneback") if a != "iterative_saliency"]
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
    expected = json.loads((folder / "realisability.json").read_text())
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        {k: str(v) for k, v in e.items()} for e in expected
    ]


def test_the_report_is_an_artifact_and_the_run_has_its_group_and_settings(sweep: tuple[Path, Any]) -> None:
    folder, run = sweep
    (artifact,) = [artifact for artifact in run.artifacts if artifact.type == "attack-sweep"]
    paths = {entry.path for entry in artifact.manifest.contents}
    assert paths >= {"settings.json", "results.json", "tables.txt", "tables/table1.csv"}
    assert {path for path in paths if path.endswith(".png")} == {
        f"figures/{f.name}" for f in folder.glob("figures/*.png")
    }
    assert run.group == "quickstart"
    assert json.loads(run.config["attack_sweep"])["epsilons"] == list(toy.EPSILONS)


def test_a_clip_shows_each_attack_above_its_difference(sweep: tuple[Path, Any], tmp_path: Path) -> None:
    """20 × 20 frames, five columns, two rows, each pixel eleven times; lossy, so about."""
    example = load_examples(sweep[0] / "examples")[0]
    shown = read_video(write_clip(tmp_path, example)).astype(int)
    assert shown.shape == (5, 2 * 20 * 11, 5 * 20 * 11, 3)
    above, below = shown[:, 5:220:11, 5::11], shown[:, 225::11, 5::11]
    for column, frames in enumerate([example.frames, *example.adversarial.values()]):
        part = slice(20 * column, 20 * column + 20)
        assert np.abs(above[:, :, part] - frames).mean() < 6
        difference = 127.5 + (frames.astype(int) - example.frames) * 127 / (255 * example.epsilon)
        assert np.abs(below[:, :, part] - difference.clip(0, 255)).mean() < 6
