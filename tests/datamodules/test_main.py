"""`make data`, through its entry point and the shipped YAMLs."""

from pathlib import Path

import pytest

from datamodules.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_embedded_dataset_is_rendered_where_the_run_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    dataset = f"--dataset={CONFIGS / 'quickstart' / 'dataset.yaml'}"
    main(["data", dataset, "--dataset.groups=3", "--dataset.test_groups=1"])
    assert len(list((tmp_path / "run" / "data" / "UCF-101").glob("*/*.avi"))) == 8 * 3 * 2


def test_a_partial_tree_is_described(small_tree, monkeypatch, caplog):
    monkeypatch.setenv("UCF101", str(small_tree))
    with caplog.at_level("INFO"):
        main(["data", f"--dataset={CONFIGS / 'small' / 'dataset.yaml'}"])
    assert "3 of 3 classes (Archery, HandstandPushups, Rowing), 6 of 6 train clips, 3 of 3 test clips" in caplog.text


def test_a_missing_clip_ends_as_one_message(small_tree, monkeypatch):
    next((small_tree / "UCF-101" / "Rowing").glob("*.avi")).unlink()
    monkeypatch.setenv("UCF101", str(small_tree))
    for command in (["data"], ["data", "--decode=false"]):
        with pytest.raises(SystemExit, match=r"1 faults:\n  .*/v_Rowing_g0\d_c01\.avi: missing"):
            main([*command, f"--dataset={CONFIGS / 'paper' / 'dataset.yaml'}"])


def test_what_cannot_be_decoded_is_listed(small_tree, monkeypatch):
    clip = small_tree / "UCF-101" / "Rowing" / "v_Rowing_g02_c01.avi"
    clip.write_bytes(clip.read_bytes()[:2000])
    monkeypatch.setenv("UCF101", str(small_tree))
    with pytest.raises(SystemExit, match=rf"1 faults:\n  {clip}: cut off"):
        main(["data", f"--dataset={CONFIGS / 'paper' / 'dataset.yaml'}"])


def test_extraction_inspection_and_repair(small_tree, tmp_path, monkeypatch, capsys):
    """As make calls them; the exit code tells of a fault."""
    monkeypatch.setenv("UCF101", str(small_tree))
    common = [
        f"--dataset={CONFIGS / 'paper' / 'dataset.yaml'}",
        f"--estimator={CONFIGS / 'flow' / 'farneback.yaml'}",
        f"--store={tmp_path / 'store'}",
    ]
    main(["extract", *common, "--layout=loose", "--workers=1"])
    main(["verify", *common])
    assert "store: complete and sound" in capsys.readouterr().out
    plane = tmp_path / "store" / "Rowing" / "v_Rowing_g02_c01" / "flow_x_00002.png"
    kept = plane.read_bytes()
    plane.write_bytes(kept[:-1])
    with pytest.raises(SystemExit, match=r"1 faults:\n  .*v_Rowing_g02_c01"):
        main(["verify", *common])
    main(["repair", *common])
    assert "1 clips computed again" in capsys.readouterr().out and plane.read_bytes() == kept
    with pytest.raises(SystemExit, match="shard 2/2"):
        main(["extract", *common, "--shard=2/2"])
