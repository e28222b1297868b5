"""`python -m lightning_modules.wandb_workspace SWEEP`: a saved W&B workspace of a sweep and the trainings before it, so
that nobody has to arrange panels by hand. It needs the package wandb-workspaces, and W&B online."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from attacks.report.results import Results, load_results
from lightning_modules.cli import main
from lightning_modules.wandb_server import OFFLINE_MODES, set_wandb_mode, unreachable, wandb_mode

FLOW_TRAINING = {
    "loss": ["train/loss", "val/loss"],
    "end-point error, pixels": ["val/epe", "val/epe_zero", "val/epe_start"],
}
CLASSIFIER_TRAINING = {
    "loss": ["train/loss", "val/loss"],
    "accuracy": ["train/accuracy", "val/stack_accuracy", "val/video_accuracy"],
}
"""Panel -> metrics that the LightningModules log against the Trainer's step."""


def workspace(sweep: Path, *, entity: str, project: str, group: str | None = None) -> Any:
    """The workspace (`wandb_workspaces.workspaces.Workspace`) for the sweep in this folder; needs no network.

    Its panels show what `attacks.wandb_log` and the trainings' callbacks log, under the names that they use.

    Args:
        sweep: folder of a finished sweep; decides which attacks, systems, tables, figures and clips have panels.
        entity: W&B user or team.
        project: W&B project.
        group: shows the runs of this group alone; the Makefile groups by preset.

    Raises:
        FileNotFoundError: the folder holds no finished sweep.
    """
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import MediaBrowser

    results = load_results(sweep)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"FlowFool{'' if group is None else f' {group}'}: attacks on {results.system}",
        sections=[
            *_curve_sections(results),
            *_media_sections(sweep, results),
            ws.Section(name="Flow training", panels=[*_lines(FLOW_TRAINING), MediaBrowser(media_keys=["val/flow"])]),
            ws.Section(
                name="Classifier training",
                panels=[*_lines(CLASSIFIER_TRAINING), MediaBrowser(media_keys=["val/confusion"])],
            ),
        ],
        runset_settings=ws.RunsetSettings(filters=[] if group is None else [expr.Metric("Group") == group]),
    )


def _curve_sections(results: Results) -> list[Any]:
    """For each level: every quantity of every system with a line per attack, then each rate within its interval."""
    import wandb_workspaces.workspaces as ws

    from attacks.wandb_log import BOUNDS, EPSILON, LEVELS, QUANTITIES, curve_name, curves_of

    logged = set(dict(curves_of(results)))
    sections = []
    for level in LEVELS:
        together, banded = {}, {}
        for (quantity, about), system in product(QUANTITIES.items(), results.systems):
            names = [curve_name(quantity, level, attack, system) for attack in results.attacks]
            together[f"{about.title} of {system}"] = [name for name in names if name in logged]
            for attack in results.attacks:
                names = [curve_name(quantity, level, attack, system, bound) for bound in (None, *BOUNDS)]
                if logged.issuperset(names):
                    banded[f"{about.title} of {system} under {attack}, 95 % interval"] = names
        together = {title: names for title, names in together.items() if names}
        sections.append(ws.Section(name=f"Attacks, {level} level", panels=_lines(together, x=EPSILON), is_open=True))
        sections.append(ws.Section(name=f"Intervals, {level} level", panels=_lines(banded, x=EPSILON)))
    return sections


def _media_sections(sweep: Path, results: Results) -> list[Any]:
    """Clips, tables and figures, as far as the sweep has them."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2 import MediaBrowser, WeavePanelSummaryTable

    from attacks.wandb_log import GALLERY, clip_name

    tables = [f"attack_tables/{path.stem}" for path in sorted((sweep / "tables").glob("*.csv"))]
    figures = [f"attack_figures/{path.stem}" for path in sorted((sweep / "figures").glob("*.png"))]
    sections = []
    if results.examples:
        clips = MediaBrowser(title="clips", media_keys=[clip_name(example) for example in results.examples])
        gallery = WeavePanelSummaryTable(table_name=GALLERY)
        sections.append(ws.Section(name="Clips", panels=[clips, gallery], is_open=True))
    sections.append(
        ws.Section(name="Tables", panels=[WeavePanelSummaryTable(table_name=name) for name in tables], is_open=True)
    )
    sections.append(ws.Section(name="Figures", panels=[MediaBrowser(title="figures", media_keys=figures)]))
    return sections


def _lines(panels: Mapping[str, Sequence[str]], *, x: str = "Step") -> list[Any]:
    from wandb_workspaces.reports.v2 import LinePlot

    return [LinePlot(title=title, x=x, y=list(names)) for title, names in panels.items()]


def save(sweep: Path, *, entity: str | None = None, project: str = "flowfool", group: str | None = None) -> None:
    """Make the workspace in W&B, and print its address.

    Args:
        sweep: folder of a finished sweep whose run is in W&B.
        entity: user or team; default that of the API key.
        project: as in configs/logger/wandb.yaml.
        group: show the runs of this group alone.

    Raises:
        ValueError: W&B is offline here, or not reached, or the package is not installed; says what is needed.
    """
    try:
        made = workspace(sweep, entity=entity or "", project=project, group=group)
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}: `make install`, or pip install wandb-workspaces, brings it") from error
    set_wandb_mode()
    if wandb_mode() in OFFLINE_MODES:
        panels = sum(len(section.panels) for section in made.sections)
        raise ValueError(
            f"W&B is offline here. The workspace, {panels} panels in {len(made.sections)} sections of project "
            f"{project!r}, needs an API key (`wandb login`, or WANDB_API_KEY) with WANDB_MODE unset or online, and the "
            "runs: `wandb sync` brings up what was recorded offline"
        )
    if (reason := unreachable()) is not None:
        raise ValueError(
            f"Weights & Biases cannot be reached: {reason}. The workspace is made there: try it again online"
        )
    if not entity:
        import wandb

        made.entity = wandb.Api().default_entity
    made.save()


def _command(args: Sequence[str] | None) -> None:
    from jsonargparse import auto_cli

    auto_cli(save, args=None if args is None else list(args), prog="python -m lightning_modules.wandb_workspace")


if __name__ == "__main__":
    main(command=_command)
