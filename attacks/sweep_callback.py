"""The sweep as a Lightning callback: it attacks the module under test during `trainer.test` (paper, section 5).

Each process writes its own records as it goes; the first one merges them at the end, and reports.
"""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from pytorch_lightning.loggers import WandbLogger
from torch import nn

from attacks.attack import Attack, NoGradientWarning
from attacks.examples import example_clips, save_example
from attacks.iterative_saliency import IterativeSaliency
from attacks.loss import Loss
from attacks.noise import Noise
from attacks.one_shot import OneShot
from attacks.processes import Processes
from attacks.progress import Progress
from attacks.provenance import add_provenance, provenance
from attacks.realisability import has_rows, merge_rows, save_rows
from attacks.records import Cost, RecordStore, finished_clips
from attacks.report import report_on_console
from attacks.settings import attack_settings, check_settings, engine_settings, victim_settings, write_settings
from attacks.sweep import Sweep
from attacks.whole_file import write_whole

EPSILONS = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035)
"""Section 5.1."""
TRANSFERRED = ("one_shot", "iterative_saliency_rg", "noise")
"""Section 5.3, and the control."""


class SweepCallback(pl.Callback):
    """Attacks every test video with every attack under every ε, white box and transferred.

    The module under test is the white box. Its test batches are whole videos: frames (S, T, 3, H, W) in [0, 1],
    label () and clip (). The datamodule has `classes`, `clips("test")`, whose entry `clip` has name, label and group,
    and, where they decide what a clip looks like, `settings`; a test dataset of some of the clips lists their indices
    in `chosen`. Started again with the same output, a sweep goes on where it stopped, with any number of processes; all
    of them must see that folder. It keeps its settings, `batch_size`, `pairs_at_once` and `retained_pairs` too, since
    records count the pairs that a system saw.

    Where the module under test leaves its accuracies to the sweep (`accuracy_from_sweep`), the clean rows give
    test/stack_accuracy and test/video_accuracy, and a finished clip is not even decoded if the dataset can do so.

    Args:
        epsilons: sizes of the perturbation on the [0, 1] scale of the frames; the clean systems are always judged too.
        attacks: name -> attack; when None, one_shot, iterative_saliency, iterative_saliency_rg, and the controls noise,
            random_order, first_to_last and least_salient. Attacks of these names are reported as controls.
        targets: name -> system attacked with the white box's gradient (section 5.3); it need not be differentiable.
        transfer: names of the attacks made on the targets; when None, those of section 5.3, one_shot and
            iterative_saliency_rg, and noise.
        system: name of the white box in the report; the paper's is flownet2.
        batch_size: stacks in one attack call. It bounds the memory, together with the number of ε.
        pairs_at_once: most frame pairs whose graphs are in memory together for a gradient of the default attacks and of
            the clean pass; None keeps those of a whole pass. Of FlowNet2 at 256×320 a pair keeps 0.3 GB, the 80 of
            eight stacks 23 GB. With fewer, the clean pass estimates each pair twice that is not retained. Results are
            the same.
        retained_pairs: most frame pairs of which the default iterative_saliency_rg retains what the convolutions gave,
            in the white box's thread and in that of each black box, so that a gradient need not estimate them again;
            None retains as many as may have their graphs in memory, 0 none. Of FlowNet2 at 256×320 a pair takes
            0.16 GB. Results are the same.
        loss: what the default attacks climb (`attacks.loss`): log-odds, cross-entropy or margin.
        examples: how many clips keep their frames, for Fig. 3 and Fig. 7.
        realise: of how many clips the white box judges the attacked frames as 8-bit frames and video files, too
            (realisability.json); when None, of the examples. It needs 8-bit frames.
        output: folder of records and report; the Trainer's default_root_dir when None.
    """

    def __init__(
        self,
        *,
        epsilons: Sequence[float] = EPSILONS,
        attacks: dict[str, Attack] | None = None,
        targets: dict[str, nn.Module] | None = None,
        transfer: list[str] | None = None,
        system: str = "flownet2",
        batch_size: int = 8,
        pairs_at_once: int | None = None,
        retained_pairs: int | None = None,
        loss: Loss = "log-odds",
        examples: int = 4,
        realise: int | None = None,
        output: Path | None = None,
    ) -> None:
        attacks = default_attacks(batch_size, pairs_at_once, retained_pairs, loss) if attacks is None else attacks
        self.targets = targets or {}
        self.sweep = Sweep(
            system=system,
            targets=self.targets,
            attacks=attacks,
            transfer=[name for name in TRANSFERRED if name in attacks] if transfer is None else transfer,
            epsilons=sorted({float(epsilon) for epsilon in epsilons if epsilon != 0}),
            batch_size=batch_size,
            pairs_at_once=pairs_at_once,
        )
        self.examples = examples
        self.realise = examples if realise is None else realise
        self.output = output
        self.clips_not_needed: set[str] = set()
        self.gives_accuracy = False
        """The module under test leaves its accuracies to this sweep; known from `setup` on"""
        self.processes = Processes()
        self.quiet = ExitStack()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "test":
            return
        if trainer.test_loop.inference_mode:
            raise ValueError(
                "the attacks need gradients, and this Trainer tests in inference mode: "
                "set `trainer.inference_mode: false`, or Trainer(inference_mode=False)"
            )
        if not hasattr(trainer, "datamodule") or not hasattr(trainer.datamodule, "clips"):
            raise ValueError(
                f"{type(getattr(trainer, 'datamodule', None)).__name__} cannot name the clips of the records: "
                "test with a datamodule that has `classes` and `clips(subset)`, such as FrameStacks"
            )
        for target in self.targets.values():  # the module under test checks its own when the Trainer attaches it
            if hasattr(target, "check_classes"):
                target.check_classes(trainer.datamodule.classes)  # type: ignore[operator]
        self.folder = Path(self.output or trainer.default_root_dir)
        # The workers that decode start before the test does: the dataset looks here when it is made.
        self.gives_accuracy = _leaves_accuracy(pl_module)
        self.clips_not_needed = finished_clips(self.folder) if self.gives_accuracy else set()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for target in self.targets.values():
            target.to(pl_module.device).eval().requires_grad_(False)
        self.clips = trainer.datamodule.clips("test")  # type: ignore[attr-defined]
        self.settings = self._settings(trainer, pl_module)
        # The report says it once, for all attacks. One context a run: each that opens or ends makes Python forget which
        # warnings it has shown already.
        self.quiet.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", NoGradientWarning)
        self.processes.connect()
        self.processes.in_first(lambda: write_settings(self.folder, self.settings))
        check_settings(self.folder, self.settings)
        run = provenance(pl_module.device, processes=trainer.world_size, precision=str(trainer.precision))
        self.processes.in_first(lambda: add_provenance(self.folder, run))
        self.store = RecordStore(self.folder, rank=trainer.global_rank)
        self.processes.wait()  # nobody writes before everybody has read
        # From the order of the clips alone, so that every process, and every run that goes on, keeps the same ones.
        chosen = list(getattr(getattr(trainer.test_dataloaders, "dataset", None), "chosen", range(len(self.clips))))
        videos = int(trainer.num_test_batches[0])
        chosen = chosen[: videos * trainer.world_size]
        found = sum(self.clips[index].name in self.store.done for index in chosen)
        self.progress = Progress(videos, found // trainer.world_size)
        labels = [self.clips[index].label for index in chosen]
        self.kept, self.realised = (
            {chosen[place] for place in example_clips(labels, count)} for count in (self.examples, self.realise)
        )
        self.chosen = [self.clips[index].name for index in chosen]

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._attack(trainer, pl_module, batch)
        if batch_idx + 1 == int(trainer.num_test_batches[0]):
            # Lightning's own collectives come next, and give up after the default timeout.
            self.processes.wait()

    def _attack(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        index = int(batch.clip)
        clip = self.clips[index]
        done = clip.name in self.store.done
        realise = index in self.realised and not has_rows(self.folder, clip.name)
        if done and not realise:
            self.progress.add(self.store.stacks[clip.name], None)
            _describe(trainer, str(self.progress))
            return
        frames = batch.frames
        if not len(frames):  # it was finished, but is needed again
            frames = trainer.test_dataloaders.dataset.video(index).frames.to(pl_module.device)  # type: ignore[union-attr]
        start = time.perf_counter()
        video = self.sweep.video(
            pl_module,
            frames,
            int(batch.label),
            clip=clip.name,
            group=clip.group,
            keep_example=index in self.kept,
            realise=realise,
        )
        if realise:
            save_rows(self.folder, clip.name, video.realised)
        if not done:
            if video.example is not None:
                save_example(self.folder / "examples", video.example)
            self.store.append(clip.name, video.records, video.costs)
        self.progress.add(len(frames), time.perf_counter() - start)
        _describe(trainer, str(self.progress))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.gives_accuracy:
            return
        # From the same files in every process, each clip once.
        clips = self.store.right_when_clean(self.chosen, self.sweep.system).values()
        videos = [clip.video for clip in clips if clip.video is not None]
        counts = {
            "test/stack_accuracy": (sum(clip.right for clip in clips), sum(clip.stacks for clip in clips)),
            "test/video_accuracy": (sum(videos), len(videos)),
        }
        accuracies = {name: right / judged for name, (right, judged) in counts.items() if judged}
        # The greatest of equal values: their mean may be rounded.
        pl_module.log_dict(accuracies, sync_dist=True, reduce_fx="max")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.processes.wait()
        self.processes.in_first(lambda: self._report(trainer))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.quiet.close()
        self.processes.leave()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.quiet.close()
        self.processes.leave()

    def _report(self, trainer: pl.Trainer) -> None:
        self.store.merge()
        merge_rows(self.folder, {self.clips[index].name for index in self.realised})
        write_whole(self.folder / "costs.json", json.dumps(_costs(self.store.costs()), indent=1) + "\n")
        report = report_on_console(self.folder)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                from attacks.wandb_log import log_report  # needs wandb and av

                log_report(logger.experiment, report, self.settings)
        if report.failures:
            raise RuntimeError(
                f"the records are whole, but the report is not: {'; '.join(report.failures)}. "
                f"`python -m attacks report {self.folder}` makes it again"
            )

    def _settings(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        return {
            "system": self.sweep.system,
            "epsilons": list(self.sweep.epsilons),
            "attacks": {name: attack_settings(attack) for name, attack in self.sweep.attacks.items()},
            "transfer": list(self.sweep.transfer),
            "engine": engine_settings(
                self.sweep.attacks, batch_size=self.sweep.batch_size, pairs_at_once=self.sweep.pairs_at_once
            ),
            "systems": {
                name: victim_settings(victim) for name, victim in {self.sweep.system: pl_module, **self.targets}.items()
            },
            "dataset": getattr(datamodule, "settings", {}),
            "test_clips": len(self.clips),
            "classes": list(datamodule.classes),
        }


def _leaves_accuracy(pl_module: pl.LightningModule) -> bool:
    """Whether the class that has its test_step says so: one that overrides it may need every clip's frames."""
    owner = next(kind for kind in type(pl_module).__mro__ if "test_step" in vars(kind))
    return bool(vars(owner).get("accuracy_from_sweep", False))


def default_attacks(
    batch_size: int = 8,
    pairs_at_once: int | None = None,
    retained_pairs: int | None = None,
    loss: Loss = "log-odds",
) -> dict[str, Attack]:
    """The paper's three attacks and the controls: random signs, and the clean gradient's signs on the frames in other
    orders than that of saliency."""
    common: dict[str, Any] = {"batch_size": batch_size, "pairs_at_once": pairs_at_once, "loss": loss}
    return {
        "one_shot": OneShot(**common),
        "iterative_saliency": IterativeSaliency(**common),
        "iterative_saliency_rg": IterativeSaliency(refresh=True, retained_pairs=retained_pairs, **common),
        "noise": Noise(batch_size=batch_size),
        "random_order": IterativeSaliency(order="random", **common),
        "first_to_last": IterativeSaliency(order="first-to-last", **common),
        "least_salient": IterativeSaliency(order="least-salient", **common),
    }


def _costs(costs: Mapping[str, Cost]) -> dict[str, Any]:
    """costs.json: by the parts that `VideoSweep.costs` names."""
    rates = {
        what: round((cost.pair_forwards + cost.pair_backwards) / cost.seconds, 3)
        for what, cost in costs.items()
        if cost.seconds
    }
    return {
        "unit": "wall seconds, summed over processes; frame pairs estimated and differentiated, and both per second",
        "seconds": {what: round(cost.seconds, 3) for what, cost in costs.items()},
        "pair_forwards": {what: cost.pair_forwards for what, cost in costs.items()},
        "pair_backwards": {what: cost.pair_backwards for what, cost in costs.items()},
        "pairs_per_second": rates,
    }


def _describe(trainer: pl.Trainer, text: str) -> None:
    """Says it on the Trainer's own bar, which counts videos."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and not bar.is_disabled:
        bar.test_progress_bar.set_description(text)
    elif isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
        bar.progress.update(bar.test_progress_bar.id, description=text)
