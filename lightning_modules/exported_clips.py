"""`python -m lightning_modules.exported_clips export|evaluate`: a sweep's kept examples as video files, judged; and the
files judged again."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.cli import LightningArgumentParser

from attacks.clip_export import export_clips, reevaluate
from attacks.examples import load_examples
from attacks.lpips import Lpips
from attacks.settings import check_systems
from lightning_modules.attacked_systems import AttackedSystems
from lightning_modules.cli import main


class ExportClips(AttackedSystems):
    """Writes the video files and clips.json.

    Raises:
        ValueError: the systems are not those that the sweep attacked; a clip of which it kept no example.
    """

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(args)
        sweep, folder = Path(self.config["sweep"]), Path(self.config["output"])
        check_systems(sweep, self.systems)
        examples = load_examples(sweep / "examples")
        if self.config["clips"]:
            kept = [example.clip for example in examples]
            if unknown := [name for name in self.config["clips"] if name not in kept]:
                raise ValueError(
                    f"{sweep} kept no example of {unknown}; it has {kept}; its option `examples` keeps more"
                )
            examples = [example for example in examples if example.clip in self.config["clips"]]
        labels = {clip.name: clip.label for clip in self.data.clips("test")}
        lpips = None if self.config["lpips"] is None else Lpips(Path(self.config["lpips"]))
        path = export_clips(folder, examples, self.systems, labels=labels, classes=self.data.classes, lpips=lpips)
        print(f"{len(examples)} clips: {path}")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--sweep", type=Path, required=True, help="Folder of a sweep.")
        parser.add_argument("--output", type=Path, required=True, help="Folder of the videos.")
        parser.add_argument("--clips", type=list[str] | None, default=None, help="Names of some of the kept clips.")
        parser.add_argument("--lpips", type=Path | None, default=None, help=(
            "torchvision's AlexNet weights, a file: measures LPIPS, too."
        ))  # fmt: skip


class EvaluateClips(AttackedSystems):
    """Reads the files, asks every system again, and exits with 1 where a verdict or a file is another."""

    def __init__(self, args: Sequence[str] | None = None) -> None:
        super().__init__(args)
        found = reevaluate(Path(self.config["exported"]), self.systems)
        for one in found:
            if not one.same:
                changed = "" if one.same_bytes else "; the file has changed"
                print(f"{one.file}: {one.system} says {one.now}, {one.exported} when exported{changed}")
        print(f"{sum(one.same for one in found)} of {len(found)} verdicts are those of the export")
        if not all(one.same for one in found):
            sys.exit(1)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--exported", type=Path, required=True, help="Folder of the videos and clips.json.")


COMMANDS = {"export": ExportClips, "evaluate": EvaluateClips}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m lightning_modules.exported_clips {'|'.join(COMMANDS)} --config …")
    main(sys.argv[2:], COMMANDS[sys.argv[1]])
