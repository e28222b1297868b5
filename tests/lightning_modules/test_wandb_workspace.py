"""The workspace's definition, built without a network, shows nothing that the runs do not hold; offline it says so."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger

from lightning_modules import wandb_workspace
from lightning_modules.cli import main

pytest.importorskip("wandb_workspaces", reason="the optional package wandb-workspaces is not installed")
ATTACKS_TESTS = Path(__file__).parents[1] / "attacks"
toy = SimpleNamespace(**runpy.run_path(str(ATTACKS_TESTS / "toy_sweep.py"), run_name="toy_sweep"))
OfflineRun = runpy.run_path(str(ATTACKS_TESTS / "wandb_offline.py"))["OfflineRun"]
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
        logger = WandbLogger(project="toy", save_dir=folder)
        toy.run(folder / "sweep", logger=logger, videos=4, examples=1, realise=1)
        wandb.finish()
    return folder / "sweep", OfflineRun(folder)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def shown(made: Any) -> dict[str, set[str]]:
    """Section -> everything that its panels ask the runs for, from the definition that goes over the wire."""
    found: dict[str, set[str]] = {}
    for section in made._to_model().spec.section.panel_bank_config.sections:
        names = found.setdefault(section.name, set())
        for panel in section.panels:
            config = panel.model_dump(by_alias=True)["config"]
            names |= set(config.get("metrics") or []) | set(config.get("mediaKeys") or [])
            if "panel2Config" in config:
                names.add(config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"])
    return found


def test_every_panel_of_the_sweep_finds_its_data(sweep: tuple[Path, Any]) -> None:
    folder, run = sweep
    panels = shown(wandb_workspace.workspace(folder, entity="me", project="flowfool", group="quickstart"))
    assert list(panels) == [
        "Attacks, stack level", "Intervals, stack level", "Attacks, video level", "Intervals, video level",
        "Clips", "Tables", "Figures", "Flow training", "Classifier training",
    ]  # fmt: skip
    of_sweep = set().union(*(names for section, names in panels.items() if "training" not in section))
    assert of_sweep <= run.names()
    assert {
        name for name in run.names() if name.startswith(("attack_clips/", "attack_tables/", "attack_figures/"))
    } <= of_sweep
    made = [(a, "flownet2") for a in ATTACKS]
    made += [(a, t) for a in ATTACKS for t in ("tvl1", "farneback") if a != "iterative_saliency"]
    for level in ("stack", "video"):
        expected = {f"attack/{level}_accuracy/{attack}/{target}" for attack, target in made}
        assert panels[f"Attacks, {level} level"] >= expected
        bounds = {name.replace("_accuracy", f"_accuracy_{bound}") for name in expected for bound in ("lower", "upper")}
        assert panels[f"Intervals, {level} level"] >= expected | bounds


def test_the_panels_of_trainings_name_what_the_modules_log(sweep: tuple[Path, Any]) -> None:
    """The names that test_confusion finds in the trainings' offline runs."""
    panels = shown(wandb_workspace.workspace(sweep[0], entity="me", project="flowfool"))
    assert panels["Flow training"] == {
        "train/loss", "val/loss", "val/epe", "val/epe_zero", "val/epe_start", "val/flow",
    }  # fmt: skip
    assert panels["Classifier training"] == {
        "train/loss", "val/loss", "train/accuracy", "val/stack_accuracy", "val/video_accuracy", "val/confusion",
    }  # fmt: skip


def test_curves_are_drawn_over_epsilon_and_runs_are_those_of_the_group(sweep: tuple[Path, Any]) -> None:
    made = wandb_workspace.workspace(sweep[0], entity="me", project="flowfool", group="quickstart")
    model = made._to_model()
    for section in model.spec.section.panel_bank_config.sections:
        for panel in section.panels:
            config = panel.model_dump(by_alias=True)["config"]
            if config.get("metrics"):
                over = "attack/epsilon" if section.name.startswith(("Attacks", "Intervals")) else "_step"
                assert config["xAxis"] == over
    (runs,) = model.spec.section.run_sets
    assert "quickstart" in runs.model_dump_json() and "group" in runs.model_dump_json()
    assert (model.entity, model.project) == ("me", "flowfool")


def test_offline_it_says_what_it_needs(sweep: tuple[Path, Any], offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"W&B is offline here\. .* panels in 9 sections .*wandb login.*wandb sync"):
        main([str(sweep[0])], wandb_workspace._command)


def test_as_make_runs_it_offline_is_one_message(
    sweep: tuple[Path, Any], offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error's own module is called `__main__` there."""
    monkeypatch.setattr(sys, "argv", ["wandb_workspace", str(sweep[0])])
    monkeypatch.delitem(sys.modules, "lightning_modules.wandb_workspace")
    with pytest.raises(SystemExit, match=r"^\nError: W&B is offline here\."):
        runpy.run_module("lightning_modules.wandb_workspace", run_name="__main__")


def test_without_a_sweep_it_says_so(tmp_path: Path, offline: None) -> None:
    with pytest.raises(SystemExit, match=r"no settings\.json"):
        main([str(tmp_path)], wandb_workspace._command)


def test_online_it_saves_under_the_keys_entity(sweep: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network: what would be sent is kept."""
    import wandb_workspaces.workspaces as ws

    saved = []
    monkeypatch.setattr(wandb_workspace, "unreachable", lambda: None)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(default_entity="somebody"))
    monkeypatch.setattr(ws.Workspace, "save", lambda self: saved.append(self._to_model()))
    main([str(sweep[0]), "--project=mine"], wandb_workspace._command)
    assert [(view.entity, view.project) for view in saved] == [("somebody", "mine")]
