"""`make data`, through its entry point and the shipped YAMLs."""

from pathlib import Path

import pytest

from datamodules.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_embedded_dataset_is_rendered_where_the_run_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    main([f"--dataset={CONFIGS / 'quickstart' / 'dataset.yaml'}", "--dataset.groups=3", "--dataset.test_groups=1"])
    assert len(list((tmp_path / "run" / "data" / "UCF-101").glob("*/*.avi"))) == 8 * 3 * 2


def test_a_partial_tree_is_described(small_tree, monkeypatch, caplog):
    monkeypatch.setenv("UCF101", str(small_tree))
    with caplog.at_level("INFO"):
        main([f"--dataset={CONFIGS / 'small' / 'dataset.yaml'}"])
    assert "3 of 3 classes (Archery, HandstandPushups, Rowing), 6 of 6 train clips, 3 of 3 test clips" in caplog.text


def test_a_missing_clip_ends_as_one_message(small_tree, monkeypatch):
    next((small_tree / "UCF-101" / "Rowing").glob("*.avi")).unlink()
    monkeypatch.setenv("UCF101", str(small_tree))
    with pytest.raises(SystemExit, match=r"1 of 9 clips that split 1 lists for its classes are missing"):
        main([f"--dataset={CONFIGS / 'paper' / 'dataset.yaml'}"])
