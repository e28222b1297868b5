from fractions import Fraction

import numpy as np
import pytest

from datamodules.video_decode import decode_video, display_times, nearest_in_time


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(12), Fraction(60)])
def test_frames_are_those_nearest_in_time(tmp_path, video_writer, texture, rate):
    frames = texture(0, count=50)
    video_writer(tmp_path / "a.avi", frames, rate=rate)
    instants = np.arange(0, 49 / float(rate) + 1e-6, 1 / 12)
    decoded = decode_video(tmp_path / "a.avi", frame_rate=12)
    assert len(decoded) == len(instants)
    for k, image in enumerate(decoded):
        distance = np.abs(np.arange(50) / float(rate) - instants[k])
        matches = [i for i in np.flatnonzero(distance < distance.min() + 1e-6) if np.array_equal(frames[i], image)]
        assert matches, f"frame {k} is not a nearest one"


def test_first_frames_are_the_first_of_all(tmp_path, video_writer, texture):
    video_writer(tmp_path / "a.avi", texture(1, count=60))
    everything = decode_video(tmp_path / "a.avi")
    assert np.array_equal(decode_video(tmp_path / "a.avi", max_frames=7), everything[:7])
    assert len(everything) == 29


def test_first_frames_of_real_clips_are_the_first_of_all(ucf101_root):
    clips = sorted((ucf101_root / "UCF-101").glob("*/*.avi"))[::40]
    assert clips
    for clip in clips:
        assert np.array_equal(decode_video(clip, max_frames=11), decode_video(clip)[:11]), clip


def test_frames_are_resized_by_area(tmp_path, video_writer, texture):
    frames = texture(2, size=(48, 64))
    video_writer(tmp_path / "a.avi", frames)
    small = decode_video(tmp_path / "a.avi", frame_size=(24, 32))
    mean = frames[0].reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(small[0] - mean).max() <= 0.5


def test_stamps_in_stored_order_are_dealt_out_in_display_order():
    assert display_times([1.0, 2.0, 4.0, 3.0, 5.0], 1.0) == [0, 1, 2, 3, 4]
    assert display_times([None, 0.0, 0.04], 25.0) == [0, 0.04, 0.08]
    assert display_times([0.0, 0.0, 0.0], 10.0) == [0, 0.1, 0.2]


def test_a_gap_in_time_repeats_the_frame_that_was_shown():
    assert nearest_in_time([0.0, 1.0, 4.0], 1.0) == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100, "truncated"])
def test_a_clip_that_cannot_be_decoded_is_named(tmp_path, video_writer, texture, content):
    path = tmp_path / "broken.avi"
    if content == "truncated":
        video_writer(path, texture(3))
        content = path.read_bytes()[:600]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.avi"):
        decode_video(path)


def test_a_clip_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.avi: no such video"):
        decode_video(tmp_path / "absent.avi")


def test_a_source_slower_than_asked_is_an_error(tmp_path, video_writer, texture):
    video_writer(tmp_path / "slow.avi", texture(4), rate=8)
    with pytest.raises(ValueError, match=r"slow\.avi: has 8 frames per second, fewer than the 12"):
        decode_video(tmp_path / "slow.avi")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_download_that_broke_off_is_not_a_shorter_clip(tmp_path, video_writer, texture, share):
    path = tmp_path / "half.avi"
    video_writer(path, texture(5))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"half\.avi: cut off, {int(share * len(whole))} of {len(whole)} bytes"):
        decode_video(path)


def test_no_real_clip_is_taken_for_one(ucf101_root):
    clips = sorted(ucf101_root.glob("UCF-101*/*/*.avi"))
    assert clips
    for clip in clips:
        head = clip.read_bytes()[:8]
        assert head[:4] == b"RIFF" and int.from_bytes(head[4:], "little") + 8 <= clip.stat().st_size, clip
