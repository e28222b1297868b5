"""`python -m datamodules --dataset FILE.yaml`: make or check a dataset, and say what is used of it."""

import sys

from jsonargparse import ArgumentParser

from datamodules.video_dataset import VideoDataset


def main() -> None:
    """Prepare the dataset that the command line names."""
    parser = ArgumentParser(prog="python -m datamodules", description=main.__doc__)
    parser.add_argument("--dataset", type=VideoDataset, required=True)
    dataset = parser.instantiate_classes(parser.parse_args()).dataset
    try:
        dataset.prepare()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
