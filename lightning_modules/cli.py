"""The command line: `python -m lightning_modules fit|validate|test --config …`.

LightningCLI with run folders that resume by themselves, offline W&B without a key, and errors of one message.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar, TQDMProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from datamodules import yaml_environment
from datamodules.errors import ended_by_one_message
from lightning_modules.callbacks import EpochSeed, FinalWeights, OnePrecision, RunConfig
from lightning_modules.divergence import FiniteTraining
from lightning_modules.run_folder import RunFolder, WholeCheckpoints
from lightning_modules.trainer_precision import choose_precision
from lightning_modules.wandb_server import OFFLINE_MODES, WANDB_WAY_OUT, check_wandb, set_wandb_mode


class FlowFoolCLI(LightningCLI):
    """LightningCLI for the modules of this project and of plug-ins.

    `fit` works in the run folder `trainer.default_root_dir`: it goes on from checkpoints/last.ckpt where there is one,
    does nothing when the training is finished, and refuses a folder that was started with another config.

    Args:
        args: the command line.
        run: False for no subcommand: what the config names is made, and waits (`AttackedSystems`).
    """

    def __init__(self, args: Sequence[str] | None = None, *, run: bool = True) -> None:
        yaml_environment.install()
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            trainer_defaults={"callbacks": [EpochSeed(), FiniteTraining(), FinalWeights(), OnePrecision()]},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"parser_mode": yaml_environment.MODE},
            args=None if args is None else list(args),
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--allow_tf32", type=bool, default=False, help=(
            "Let GPUs multiply float32 with 10 bits of mantissa: faster, but 1.5 %% of the gradient's signs differ."
        ))  # fmt: skip
        parser.add_argument("--mixed_precision", type=Literal["auto"] | None, default=None, help=(
            "auto: bf16-mixed where the processor has bfloat16 units, else 32-true; --trainer.precision overrides it, "
            "and a training that goes on keeps its own."
        ))  # fmt: skip
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                # The end of the last epoch counts: one file, written over after each epoch, is enough.
                "checkpoint.filename": "last",
                "checkpoint.save_on_train_epoch_end": True,
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=_checkpoints)
        # A module without num_classes, such as FlowFinetuning, is left alone by jsonargparse.
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        _silence_lightning()
        _set_float32(allow_tf32=self._get(self.config, "allow_tf32"))
        trainer = self._get(self.config, "trainer")
        loggers = _wandb_loggers(trainer.logger)
        if loggers:
            set_wandb_mode()
        precision = self._choose_precision()
        if self.subcommand == "fit":
            self._prepare_run_folder()
        if any(map(_records_online, loggers)) and not trainer.fast_dev_run:
            check_wandb()
        if precision is not None:
            rank_zero_info(precision)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        plugins, callbacks = _as_list(given.plugins), _as_list(given.callbacks)
        if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(TQDMProgressBar())
        return super().instantiate_trainer(plugins=[*plugins, WholeCheckpoints()], callbacks=callbacks, **kwargs)

    def _choose_precision(self) -> str | None:
        """Set trainer.precision by `mixed_precision`, before the config is checked and recorded; why, in a line."""
        if self._get(self.config, "mixed_precision") is None:
            return None
        trainer = self._get(self.config, "trainer")
        trainer.precision, line = choose_precision(
            trainer.precision,
            accelerator=trainer.accelerator,
            devices=trainer.devices,
            folder=trainer.default_root_dir,
        )
        return line

    def _prepare_run_folder(self) -> None:
        folder = self.config.fit.trainer.default_root_dir
        if self.config.fit.trainer.fast_dev_run:
            return
        if folder is None:
            raise ValueError("fit needs a folder for its checkpoints: give --trainer.default_root_dir")
        run = RunFolder(folder)
        run.check(yaml.safe_load(self._parser("fit").dump(self.config.fit)))
        if run.final.is_file():
            rank_zero_info(f"{run.final} is there: this training is finished")
            raise SystemExit(0)

    def before_fit(self) -> None:
        """Go on where an interrupted training stopped."""
        arguments = self.config_init["fit"]
        if arguments["ckpt_path"] is None and not self.config.fit.trainer.fast_dev_run:
            last = RunFolder(self.trainer.default_root_dir).last_checkpoint
            arguments["ckpt_path"] = None if last is None else str(last)

    def before_test(self) -> None:
        self._find_trained_weights("test")

    def before_validate(self) -> None:
        self._find_trained_weights("validate")

    def _find_trained_weights(self, subcommand: str) -> None:
        """What is trained here is tested with the weights of its run folder; a system under attack brings its own."""
        arguments = self.config_init[subcommand]
        if arguments["ckpt_path"] is not None or not hasattr(self.model, "trained"):
            return
        folder = self.trainer.default_root_dir
        last = RunFolder(folder).last_checkpoint
        if last is None:
            raise ValueError(
                f"{folder} holds no checkpoint to {subcommand}: give --trainer.default_root_dir the folder of a "
                f"training, "
                "or --ckpt_path a file"
            )
        arguments["ckpt_path"] = str(last)

    def _run_subcommand(self, subcommand: str) -> None:
        """W&B's errors leave with the way out: a run can do without it."""
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "wandb":
                raise ConnectionError(f"Weights & Biases: {error}. {WANDB_WAY_OUT}") from error
            raise

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}


def main(args: Sequence[str] | None = None, command: Callable[[Sequence[str] | None], object] = FlowFoolCLI) -> None:
    """Run a command line; what a user can mend ends as one message, unless FLOWFOOL_TRACEBACK=1."""
    with ended_by_one_message():
        command(args)


def _checkpoints(default_root_dir: str | None) -> str | None:
    return None if default_root_dir is None else str(RunFolder(default_root_dir).checkpoints)


def _wandb_loggers(logger: Any) -> list[Any]:
    return [one for one in _as_list(logger) if "Wandb" in str(getattr(one, "class_path", ""))]


def _records_online(logger: Any) -> bool:
    """Whether a W&B logger's own options leave it to the environment."""
    options = {**(logger.get("dict_kwargs") or {}), **vars(logger.get("init_args") or Namespace())}
    return not options.get("offline") and options.get("mode") not in OFFLINE_MODES


def _as_list(value: Any) -> list[Any]:
    """What the Trainer takes as one, several or none."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _silence_lightning() -> None:
    """Advertising, a deprecation inside Lightning, and its surprise at a run folder that is resumed."""
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")


def _set_float32(*, allow_tf32: bool) -> None:
    """Attacks live on the signs of gradients: true float32 unless asked otherwise (cuDNN's default is TF32)."""
    torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = allow_tf32
