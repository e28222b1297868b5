"""`python -m datamodules --dataset FILE.yaml`: make or check a dataset, and say what is used of it."""

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from datamodules import yaml_environment
from datamodules.video_dataset import VideoDataset


def main(args: Sequence[str] | None = None) -> None:
    """Prepare the dataset that a YAML names, and say what is used of it."""
    yaml_environment.install()
    parser = ArgumentParser(prog="python -m datamodules", description=main.__doc__, parser_mode=yaml_environment.MODE)
    parser.add_subclass_arguments(VideoDataset, "dataset", required=True)
    try:
        parser.instantiate_classes(parser.parse_args(args)).dataset.prepare()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
