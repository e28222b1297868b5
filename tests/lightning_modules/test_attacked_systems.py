"""The systems of a sweep's YAML on the embedded dataset: three ways from a clip to its class, and exported videos."""

import contextlib
import html
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from attacks.eight_bit import amplified_difference, gain_of
from attacks.records import read_records
from attacks.report import write_report
from attacks.report.results import CONTROLS
from attacks.video_files import read_video, write_h264, write_lossless
from datamodules.flow_precompute import precompute
from datamodules.flow_store import FlowStore, store_manifest
from datamodules.frame_stacks import FrameStacks, spread
from datamodules.synthetic import EmbeddedDataset
from datamodules.ucf101 import UCF101
from datamodules.video_dataset import Clip
from lightning_modules import prediction_paths
from lightning_modules.agreements import Agreement
from lightning_modules.classifiers.resnet import ResNet
from lightning_modules.cli import main
from lightning_modules.exported_clips import EvaluateClips, ExportClips
from lightning_modules.flow.farneback import Farneback
from lightning_modules.flow.flownet2 import FlowNet2Estimator
from lightning_modules.flow.tvl1 import TVL1
from lightning_modules.model_under_attack import ModelUnderAttack
from lightning_modules.prediction_paths import PredictionPaths, check_paths, report

DATASET = {"groups": 3, "test_groups": 1, "clips_per_group": 1, "size": [32, 32], "contrast": 0.8}


class Corners(nn.Module):
    """A linear classifier of the mean flow in four quarters, steep enough that single levels count."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        weight = torch.randn(num_classes, 80, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(10 * weight)

    def forward(self, flow: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(flow, 2).flatten(1) @ self.weight.T


@pytest.fixture(scope="module", autouse=True)
def as_a_command() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning_modules"])
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the embedded dataset, two flow stores, two classifiers as they fell out, and a sweep's YAML."""
    run = tmp_path_factory.mktemp("experiment")
    dataset = EmbeddedDataset(run / "data", **{**DATASET, "size": (32, 32)})
    dataset.prepare()
    torch.manual_seed(0)
    estimators = {"flownet2": FlowNet2Estimator(variant="FlowNet2S", width=0.06), "farneback": Farneback()}
    torch.save({"state_dict": estimators["flownet2"].network.state_dict()}, run / "flownet2.ckpt")
    network = {"variant": "FlowNet2S", "width": 0.06, "checkpoint": str(run / "flownet2.ckpt")}
    estimators["flownet2"] = FlowNet2Estimator(**network)
    described = {
        "flownet2": {"class_path": "lightning_modules.flow.flownet2.FlowNet2Estimator", "init_args": network},
        "farneback": {"class_path": "lightning_modules.flow.farneback.Farneback"},
    }
    systems = {}
    for name, estimator in estimators.items():
        precompute(dataset, dataset.clips("test"), estimator, store_of(run, dataset, name, estimator), workers=1)
        checkpoint = run / f"{name}-classifier.ckpt"
        torch.save({"state_dict": ResNet(num_classes=8, depth=18).state_dict(), "classes": dataset.classes}, checkpoint)
        systems[name] = {
            "class_path": "lightning_modules.model_under_attack.ModelUnderAttack",
            "init_args": {
                "estimator": described[name],
                "classifier": {"class_path": "lightning_modules.classifiers.resnet.ResNet", "init_args": {"depth": 18}},
                "classifier_checkpoint": str(checkpoint),
                "crop": 32,
            },
        }
    sweep = {"epsilons": [0.03], "targets": {"farneback": systems["farneback"]}, "examples": 2, "batch_size": 2}
    trainer = {"accelerator": "cpu", "devices": 1, "inference_mode": False, "logger": False}
    trainer |= {"enable_progress_bar": False, "enable_model_summary": False}
    data = {"class_path": "datamodules.synthetic.EmbeddedDataset", "init_args": {"root": str(run / "data"), **DATASET}}
    stacks = {"dataset": data, "max_clips": 3, "num_workers": 0}
    config = {
        "model": systems["flownet2"],
        "data": {"class_path": "datamodules.frame_stacks.FrameStacks", "init_args": stacks},
        "trainer": {
            **trainer,
            "callbacks": [{"class_path": "attacks.sweep_callback.SweepCallback", "init_args": sweep}],
        },
    }
    (run / "attack-sweep.yaml").write_text(yaml.safe_dump(config))
    return run


def store_of(run: Path, dataset: UCF101, name: str, estimator: nn.Module) -> FlowStore:
    return FlowStore(run / "flow" / name, store_manifest(estimator.settings, dataset.frame_settings))


def test_the_command_finds_no_difference(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--config={experiment}/attack-sweep.yaml", f"--stores={experiment}/flow"]
    main([*arguments, "--data.init_args.max_clips=null"], PredictionPaths)
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(lines) == ["flownet2", "farneback"]
    for counts in lines.values():
        assert counts[:4] == ["16"] * 4, "8 clips of two stacks, all logits equal"
        assert counts[4] == "0"


def test_a_missing_store_is_named(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nothing/flownet2/manifest\.json: no flow store here"):
        main([f"--config={experiment}/attack-sweep.yaml", f"--stores={tmp_path}/nothing"], PredictionPaths)


def test_a_config_without_a_sweep_is_named(experiment: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((experiment / "attack-sweep.yaml").read_text())
    del config["trainer"]["callbacks"]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=r"no attacks\.sweep_callback\.SweepCallback"):
        main([f"--config={tmp_path}/other.yaml", f"--stores={tmp_path}"], PredictionPaths)


def test_one_level_in_the_store_is_found(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The steep classifier: verdicts of a stored flow that is one level off differ, and so does the count of levels."""
    dataset = EmbeddedDataset(experiment / "data", **{**DATASET, "size": (32, 32)})
    estimator = Farneback()
    system = ModelUnderAttack(estimator=estimator, classifier=Corners(8), crop=32)
    clips, sound = dataset.clips("test"), store_of(experiment, dataset, "farneback", estimator)
    data = FrameStacks(dataset, num_workers=0)
    found = check_paths("farneback", system, sound, data)
    assert (found.stacks, found.memory, found.video, found.equal_logits, found.levels) == (16, 16, 16, 16, 0)
    assert not found.differing
    assert not system.eight_bit, "as it was before"

    damaged = store_of(tmp_path, dataset, "farneback", estimator)
    damaged.open_for_writing()
    for clip in clips:
        planes = sound.read(clip, 0, sound.n_flow(clip))
        damaged.write(clip, planes + 40 / 255)
    capsys.readouterr()
    found = check_paths("farneback", system, damaged, data)
    bar = capsys.readouterr().err
    assert "0/8" in bar and "8/8 [" in bar and f"differences={len(found.differing)}]" in bar.splitlines()[-1]
    assert found.memory < 16 and len(found.differing) == 16 - found.memory and found.video == 16
    assert found.equal_logits == 0
    assert 0.9 < found.levels / (16 * 10 * 2 * 32 * 32) <= 1
    assert f"  differs: {found.differing[0]}" in report({"farneback": found}).splitlines()


def test_float_flow_is_counted_and_is_no_difference(experiment: Path) -> None:
    """A classifier of what rounding takes away: the flow between two levels."""

    class Fraction(nn.Module):
        def forward(self, flow: Tensor) -> Tensor:
            off = ((flow + 20) * 6.375 - ((flow + 20) * 6.375).round()).abs().mean((1, 2, 3))
            return torch.stack([0.01 - off, off], 1)

    dataset = EmbeddedDataset(experiment / "data", **{**DATASET, "size": (32, 32)})
    estimator = Farneback()
    system = ModelUnderAttack(estimator=estimator, classifier=Fraction(), crop=32)
    store = store_of(experiment, dataset, "farneback", estimator)
    found = check_paths("farneback", system, store, FrameStacks(dataset, num_workers=0))
    assert (found.memory, found.video, found.float_differs, found.differing) == (16, 16, 16, [])


@pytest.mark.slow
def test_paths_agree_on_real_clips(ucf101_root: Path, tmp_path: Path) -> None:
    dataset = UCF101(ucf101_root, allow_missing=True, frame_size=(60, 80), max_frames=11)
    count = len(dataset.clips("test")[::40])
    data = FrameStacks(dataset, max_clips=count, num_workers=0)
    clips = [dataset.clips("test")[index] for index in spread(len(dataset.clips("test")), count)]
    torch.manual_seed(0)
    for estimator in (FlowNet2Estimator(variant="FlowNet2S", width=0.06), TVL1()):
        store = store_of(tmp_path, dataset, type(estimator).__name__, estimator)
        precompute(dataset, clips, estimator, store, workers=1)
        system = ModelUnderAttack(estimator=estimator, classifier=Corners(10), crop=56)
        found = check_paths(type(estimator).__name__, system, store, data)
        assert found == Agreement(found.stacks, *[found.stacks] * 3, float_differs=found.float_differs)
        assert found.stacks >= 2


@pytest.fixture(scope="module")
def swept(experiment: Path) -> Path:
    """The sweep of that YAML."""
    main(["test", f"--config={experiment}/attack-sweep.yaml", f"--trainer.default_root_dir={experiment}/sweep"])
    return experiment / "sweep"


@pytest.fixture(scope="module")
def exported(experiment: Path, swept: Path) -> Path:
    folder = experiment / "clips"
    main([f"--config={experiment}/attack-sweep.yaml", f"--sweep={swept}", f"--output={folder}"], ExportClips)
    return folder


def evaluate(experiment: Path, folder: Path) -> None:
    main([f"--config={experiment}/attack-sweep.yaml", f"--exported={folder}"], EvaluateClips)


def test_exported_files_hold_the_examples_and_their_verdicts(exported: Path, swept: Path) -> None:
    rows = json.loads((exported / "clips.json").read_text())["clips"]
    attacks = ["clean", "one_shot", "iterative_saliency", "iterative_saliency_rg", *CONTROLS]
    assert [row["attack"] for row in rows] == attacks * 2
    records = {
        (r.clip, r.stack, r.attack): r
        for r in read_records(swept / "records.jsonl")
        if r.target == "flownet2" and r.level == "stack"
    }
    for row in rows:
        with np.load(swept / "examples" / f"{row['clip'].replace('/', '--')}.npz") as arrays:
            clean = arrays["frames"]
            images = clean if row["attack"] == "clean" else arrays[f"adversarial/{row['attack']}"]
        assert np.array_equal(read_video(exported / row["file"]), images)
        record = records[row["clip"], row["stack"], row["attack"]]
        said = row["predictions"]["flownet2"]["prediction"]
        assert (said == row["label"]) == record.correct_8bit and row["label"] == record.label
        assert set(row["predictions"]) == {"flownet2", "farneback"}
        if row["attack"] != "clean":
            difference = read_video(exported / row["difference"])
            assert np.array_equal(difference, amplified_difference(clean, images, gain_of(0.03)))
            assert read_video(exported / row["looking"]).shape == (11, 32, 96, 3)
            assert "lpips" not in row["quality"]


@pytest.mark.slow
def test_the_paths_of_a_sweeps_systems_are_in_its_report(experiment: Path, swept: Path) -> None:
    arguments = [f"--config={experiment}/attack-sweep.yaml", f"--stores={experiment}/flow", f"--sweep={swept}"]
    with pytest.raises(SystemExit, match="attacked other systems than these"):
        main([*arguments, "--model.init_args.crop=24"], PredictionPaths)
    assert not any(table.name == "paths" for table in write_report(swept).tables)
    main([*arguments, "--data.init_args.max_clips=null"], PredictionPaths)
    made = write_report(swept)
    (table,) = [table for table in made.tables if table.name == "paths"]
    assert [row[:5] for row in table.rows] == [["flownet2", 16, 16, 16, 16], ["farneback", 16, 16, 16, 16]]
    assert table.title in html.unescape(made.page.read_text())
    (swept / "paths.json").write_text('{"flownet2": {"stacks": 16}}')
    with pytest.raises(ValueError, match=r"paths\.json is not what `make check-paths` writes"):
        write_report(swept)
    (swept / "paths.json").unlink()


@pytest.fixture
def sweep(swept: Path, tmp_path: Path) -> Path:
    """The folder of that sweep with no path checked yet."""
    (tmp_path / "sweep").mkdir()
    return Path(shutil.copy(swept / "settings.json", tmp_path / "sweep")).parent


def asked_paths(experiment: Path, sweep: Path, *more: str, stop_at: int | None = None) -> list[tuple[str, str]]:
    """System and clip of all that one call decodes and asks; it is stopped at the n-th."""
    decoded: list[str] = []
    asked: list[tuple[str, str]] = []
    decode, check = EmbeddedDataset.decode, prediction_paths.check_clip

    def decode_counted(dataset: EmbeddedDataset, clip: Clip) -> np.ndarray:
        decoded.append(clip.name)
        return decode(dataset, clip)

    def check_counted(system: ModelUnderAttack, store: FlowStore, clip: Clip, frames: Tensor) -> Agreement:
        if len(asked) == stop_at:
            raise KeyboardInterrupt
        asked.append((store.folder.name, clip.name))
        return check(system, store, clip, frames)

    stores = [] if any(one.startswith("--stores") for one in more) else [f"--stores={experiment}/flow"]
    arguments = [f"--config={experiment}/attack-sweep.yaml", f"--sweep={sweep}", "--data.init_args.max_clips=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedDataset, "decode", decode_counted)
        patch.setattr(prediction_paths, "check_clip", check_counted)
        try:
            main([*arguments, *stores, *more], PredictionPaths)
        except KeyboardInterrupt:
            decoded.pop()
    assert decoded == [clip for _, clip in asked]
    return asked


@pytest.mark.slow
def test_a_killed_check_of_paths_goes_on(
    experiment: Path, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in its second system while it wrote a line: that clip and the rest are asked, and no other."""
    every = asked_paths(experiment, sweep)
    assert len(set(every)) == 16
    table, written = capsys.readouterr().out, (sweep / "paths.json").read_text()
    lines = {name: (sweep / "paths" / f"{name}.jsonl").read_text() for name in ("flownet2", "farneback")}
    assert asked_paths(experiment, sweep) == []
    assert capsys.readouterr().out == table

    shutil.rmtree(sweep / "paths")
    (sweep / "paths.json").unlink()
    assert asked_paths(experiment, sweep, stop_at=11) == every[:11]
    assert not (sweep / "paths.json").exists()
    kept = sweep / "paths" / "farneback.jsonl"
    assert kept.read_text().splitlines() == lines["farneback"].splitlines()[:3]
    kept.write_text(kept.read_text()[:-30])
    capsys.readouterr()
    assert asked_paths(experiment, sweep) == every[10:]
    shown = capsys.readouterr()
    assert "2/8 [" in shown.err.partition("paths of farneback")[2].partition("\r")[0]
    assert shown.out == table and (sweep / "paths.json").read_text() == written
    assert {path.stem: path.read_text() for path in (sweep / "paths").glob("*.jsonl")} == lines


@pytest.mark.slow
def test_kept_differences_count(experiment: Path, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table, the file and the exit code come from all lines, and a few clips are a beginning of all."""
    assert len(asked_paths(experiment, sweep, "--data.init_args.max_clips=3")) == 6
    path = sweep / "paths" / "farneback.jsonl"
    first, *others = path.read_text().splitlines()
    changed = json.loads(first) | {"memory": 1, "differing": ["Here/it_is, stack 2"]}
    path.write_text("\n".join([json.dumps(changed), *others]) + "\n")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        asked_paths(experiment, sweep)
    assert stop.value.code == 1
    shown = capsys.readouterr()
    assert "  differs: Here/it_is, stack 2" in shown.out.splitlines()
    assert "3/8" in shown.err and "differences=1]" in shown.err and f"remove its line in {sweep}/paths" in shown.err
    assert json.loads((sweep / "paths.json").read_text())["farneback"]["memory"] == 15

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"differing": [line["clip"]]}) + "\n" for line in lines))
    names = sorted(line["clip"] for line in lines)
    assert names != [line["clip"] for line in lines]
    for few, some in ((None, names), (3, [names[0], names[2], names[5]])):
        with pytest.raises(SystemExit):
            asked_paths(experiment, sweep, f"--data.init_args.max_clips={'null' if few is None else few}")
        told = [line for line in capsys.readouterr().out.splitlines() if "differs: " in line]
        assert told == [f"  differs: {name}" for name in some], "in the order of the clips, whoever came first"


def test_paths_kept_with_other_settings_are_refused(experiment: Path, sweep: Path) -> None:
    asked_paths(experiment, sweep, stop_at=2)
    before = (sweep / "paths" / "flownet2.jsonl").read_text()
    refusal = rf"{sweep}/paths holds .*: dataset\.max_stacks is null there and 1 now\. .*PATHS_ARGS.*remove that folder"
    with pytest.raises(SystemExit, match=refusal):
        asked_paths(experiment, sweep, "--data.init_args.max_stacks=1")
    assert (sweep / "paths" / "flownet2.jsonl").read_text() == before
    settings = json.loads((sweep / "paths" / "settings.json").read_text())
    settings["systems"]["farneback"]["weights_sha256"] = "another"
    (sweep / "paths" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match=r'systems\.farneback\.weights_sha256 is "another" there'):
        asked_paths(experiment, sweep)


@pytest.mark.slow
def test_a_kept_line_that_is_none_is_named(experiment: Path, sweep: Path) -> None:
    asked_paths(experiment, sweep, stop_at=2)
    path = sweep / "paths" / "flownet2.jsonl"
    first, second = path.read_text().splitlines()
    for damaged in ("\0" * 20, json.dumps({"clip": "a"}), "[]", second.replace('"levels": 0, ', "")):
        path.write_text(f"{first}\n{damaged}\n")
        with pytest.raises(SystemExit, match=r"flownet2\.jsonl, line 2: .* remove the line"):
            asked_paths(experiment, sweep)


@pytest.mark.slow
def test_a_clip_whose_stored_flow_is_another_is_asked_again(experiment: Path, sweep: Path, tmp_path: Path) -> None:
    every = asked_paths(experiment, sweep)
    shutil.copytree(experiment / "flow", tmp_path / "flow")
    dataset = EmbeddedDataset(experiment / "data", **{**DATASET, "size": (32, 32)})
    store, clip = store_of(tmp_path, dataset, "farneback", Farneback()), dataset.clips("test")[5]
    flow = store.read(clip, 0, store.n_flow(clip))
    other = f"--stores={tmp_path}/flow"
    assert asked_paths(experiment, sweep, other) == [], "the same flow elsewhere"
    store.write(clip, flow + 40 / 255)
    with contextlib.suppress(SystemExit):  # its class may be another
        assert asked_paths(experiment, sweep, other) == [("farneback", clip.name)] == every[13:14]
    assert json.loads((sweep / "paths.json").read_text())["farneback"]["levels"] > 0
    store.layout.path(clip.name).unlink()
    with pytest.raises(SystemExit, match=f"holds no flow of {clip.name}"):
        asked_paths(experiment, sweep, other)


def test_evaluating_gives_the_same_verdicts(
    experiment: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(experiment, exported)
    assert "32 of 32 verdicts are those of the export" in capsys.readouterr().out


def test_another_file_and_another_verdict_are_found(
    experiment: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads((exported / "clips.json").read_text())["clips"]
    video = exported / rows[1]["file"]
    before, frames = video.read_bytes(), read_video(video)
    try:
        write_h264(video, frames, crf=30)
        with pytest.raises(SystemExit) as stop:
            evaluate(experiment, exported)
        assert stop.value.code == 1
        assert f"{rows[1]['file']}: flownet2 says" in capsys.readouterr().out
    finally:
        video.write_bytes(before)
    text = (exported / "clips.json").read_text()
    try:
        rows[0]["predictions"]["farneback"]["prediction"] += 1
        content = json.loads(text)
        (exported / "clips.json").write_text(json.dumps({**content, "clips": rows}))
        with pytest.raises(SystemExit) as stop:
            evaluate(experiment, exported)
        assert stop.value.code == 1
        assert "31 of 32 verdicts" in capsys.readouterr().out
    finally:
        (exported / "clips.json").write_text(text)


def test_another_system_is_refused(experiment: Path, exported: Path) -> None:
    with pytest.raises(SystemExit, match="verdicts of another 'flownet2'"):
        arguments = [f"--config={experiment}/attack-sweep.yaml", f"--exported={exported}"]
        main([*arguments, "--model.init_args.crop=24"], EvaluateClips)


def test_other_systems_than_the_sweeps_are_not_asked(experiment: Path, swept: Path, tmp_path: Path) -> None:
    arguments = [f"--config={experiment}/attack-sweep.yaml", f"--sweep={swept}", f"--output={tmp_path}/out"]
    with pytest.raises(SystemExit, match=r"flownet2\.settings\.eight_bit is false there and true now.*SWEEP_ARGS"):
        main([*arguments, "--model.init_args.eight_bit=true"], ExportClips)
    assert not (tmp_path / "out").exists()


def test_only_kept_clips_can_be_exported(experiment: Path, swept: Path, tmp_path: Path) -> None:
    arguments = [f"--config={experiment}/attack-sweep.yaml", f"--sweep={swept}", f"--output={tmp_path}/out"]
    with pytest.raises(SystemExit, match=r"kept no example of \['a/b'\]"):
        main([*arguments, "--clips=[a/b]"], ExportClips)
    (example, _) = sorted(path.stem.replace("--", "/") for path in (swept / "examples").glob("*.npz"))
    main([*arguments, f"--clips=[{example}]"], ExportClips)
    assert {row["clip"] for row in json.loads((tmp_path / "out" / "clips.json").read_text())["clips"]} == {example}


def test_lossless_writing_is_what_the_check_rests_on(tmp_path: Path) -> None:
    """The lossless path would show a lossy video: with H.264 in its place the logits differ."""
    frames = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    write_lossless(tmp_path / "a.mkv", frames)
    write_h264(tmp_path / "b.mkv", frames, crf=0)
    assert np.array_equal(read_video(tmp_path / "a.mkv"), frames)
    assert not np.array_equal(read_video(tmp_path / "b.mkv"), frames)
