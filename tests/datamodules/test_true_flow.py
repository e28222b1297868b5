from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules.true_flow import TrueFlow


def write_pair(folder: Path, name: str, *, images: int = 2, size: tuple[int, int] = (6, 8)) -> tuple[np.ndarray, ...]:
    """NAMEflow.flo with NAMEimg1.ppm, NAMEimg2.ppm ...; what was written."""
    rng = np.random.default_rng(len(name))
    flow = rng.normal(size=(6, 8, 2)).astype(np.float32)
    cv2.writeOpticalFlow(str(folder / f"{name}flow.flo"), flow)
    frames = rng.integers(0, 256, (images, *size, 3), dtype=np.uint8)
    for number, frame in enumerate(frames, 1):
        cv2.imwrite(str(folder / f"{name}img{number}.ppm"), frame[..., ::-1])
    return frames, flow


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_pairs_are_what_the_files_hold(tmp_path):
    written = [write_pair(tmp_path, name) for name in ("00001_", "00002_")]
    batches = list(TrueFlow(tmp_path).test_dataloader())
    assert len(batches) == 2
    for batch, (frames, flow) in zip(batches, written, strict=True):
        expected = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
        torch.testing.assert_close(batch.frames, expected)
        torch.testing.assert_close(batch.flow, torch.from_numpy(flow).permute(2, 0, 1)[None, None])


def test_a_translation_keeps_its_share_of_the_frame_at_another_size(tmp_path):
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), (0, 0), 4)
    cv2.writeOpticalFlow(str(tmp_path / "0flow.flo"), np.full((48, 64, 2), (8.0, -6.0), np.float32))
    for number, frame in enumerate((smooth, np.roll(smooth, (-6, 8), (0, 1))), 1):
        cv2.imwrite(str(tmp_path / f"0img{number}.ppm"), frame)
    (batch,) = TrueFlow(tmp_path, frame_size=(24, 16)).test_dataloader()
    assert batch.frames.shape == (1, 2, 3, 24, 16)
    expected = torch.tensor([2.0, -3.0]).view(2, 1, 1).expand(2, 24, 16)
    torch.testing.assert_close(batch.flow[0, 0], expected)
    # in the new pixels the frames move so, too
    moved = batch.frames[0, 0].roll((-3, 2), (1, 2))
    torch.testing.assert_close(moved, batch.frames[0, 1], atol=0.005, rtol=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "0img2.ppm").unlink(), r"0flow\.flo needs two images 0img\*.*\['0img1\.ppm'\]"),
        (lambda folder: (folder / "0img3.ppm").touch(), r"needs two images"),
        (lambda folder: (folder / "0img2.ppm").write_bytes(b"P6"), r"0img2\.ppm cannot be read as an image"),
        (lambda folder: (folder / "0flow.flo").write_bytes(b"PIEH"), r"0flow\.flo cannot be read"),
        (lambda folder: cut(folder / "0flow.flo"), r"0flow\.flo cannot be read"),
        (lambda folder: write_pair(folder, "0", size=(6, 9)), r"0flow\.flo .*6×8, 6×9, 6×9"),
    ],
)
def test_a_bad_file_is_named(tmp_path, spoil, message):
    write_pair(tmp_path, "0")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        list(TrueFlow(tmp_path).test_dataloader())


def test_unknown_flow_is_refused(tmp_path):
    _, flow = write_pair(tmp_path, "0")
    flow[0, 0], flow[1, 1] = 1e10, np.nan
    cv2.writeOpticalFlow(str(tmp_path / "0flow.flo"), flow)
    with pytest.raises(ValueError, match=r"0flow\.flo: the flow of 2 pixels is unknown"):
        list(TrueFlow(tmp_path).val_dataloader())


def test_a_folder_without_flow_is_named(tmp_path):
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(folder)):
            TrueFlow(folder)


def test_the_samples_of_flying_chairs(ucf101_root):
    folder = ucf101_root / "flow_samples" / "flying_chairs"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: two pairs of FlyingChairs")
    for batch in TrueFlow(folder).test_dataloader():
        assert batch.frames.shape == (1, 2, 3, 384, 512) and batch.flow.shape == (1, 1, 2, 384, 512)
        # the flow explains the second frame, and against its direction it does not
        frames, flow = batch.frames[0].permute(0, 2, 3, 1).numpy(), batch.flow[0, 0].permute(1, 2, 0).numpy()
        grid = np.stack(np.meshgrid(np.arange(512), np.arange(384)), -1).astype(np.float32)
        along, against = (cv2.remap(frames[1], grid + sign * flow, None, cv2.INTER_LINEAR) for sign in (1, -1))
        still = np.abs(frames[1] - frames[0]).mean()
        assert np.abs(along - frames[0]).mean() < 0.6 * still < still < np.abs(against - frames[0]).mean()
