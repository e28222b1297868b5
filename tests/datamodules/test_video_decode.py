from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.avi_chunks import refuse_damaged_avi
from datamodules.synthetic import _write_video
from datamodules.video_decode import count_frames, decode_video, display_times, nearest_in_time
from datamodules.video_integrity import probe


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


@pytest.mark.parametrize("options", [{}, {"frame_rate": None}, {"max_frames": 20}, {"frame_size": (30, 40)}])
@pytest.mark.parametrize("only", [[0], [3, 4, 11], [19], list(range(20))])
def test_some_frames_are_those_of_all(tmp_path, video_writer, texture, options, only):
    video_writer(tmp_path / "a.avi", texture(1, count=60))
    assert np.array_equal(
        decode_video(tmp_path / "a.avi", only=only, **options), decode_video(tmp_path / "a.avi", **options)[only]
    )


def test_frames_that_a_video_lacks_are_named(tmp_path, video_writer, texture):
    video_writer(tmp_path / "a.avi", texture(1, count=60))
    with pytest.raises(ValueError, match=r"a\.avi: frames \[28, 29\] are wanted, and it does not have them all"):
        decode_video(tmp_path / "a.avi", only=[28, 29])


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


@pytest.mark.parametrize(
    ("stamps", "rate", "times"),
    [
        ([1.0, 2.0, 4.0, 3.0, 5.0], 1.0, [0, 1, 2, 3, 4]),  # stored order
        ([None, 0.0, 0.04], 25.0, [0, 0.04, 0.08]),
        ([0.0, None, 0.08], 25.0, [0, 0.04, 0.08]),
        ([None] * 20, 10.0, [k / 10 for k in range(20)]),
        ([0.0, 0.0, 0.0], 10.0, [0, 0.1, 0.2]),
        ([0.0, 0.1, 0.1, 0.2, 0.4], 10.0, [0, 0.1, 0.15, 0.2, 0.4]),  # the others keep theirs
        ([0.0, 1.0, 1.0, 5.0], 10.0, [0, 1, 1.1, 5]),  # a pause after it
        ([7.0 + k / 30 for k in range(50)], 30.0, [k / 30 for k in range(50)]),
    ],
)
def test_stamps_in_stored_order_absent_or_equal_give_times_in_display_order(stamps, rate, times):
    assert list(display_times(stamps, rate)) == pytest.approx(times, abs=1e-9)


@given(st.permutations(range(7)), st.integers(0, 100))
def test_stamps_that_are_swapped_by_less_than_eight_places_come_out_sorted(order, start):
    stamps = [float(block * 7 + place + start) for block in range(5) for place in order]
    assert list(display_times(stamps, 1.0)) == [float(k) for k in range(35)]


def in_time(seconds, rate):
    return list(nearest_in_time(zip(seconds, range(len(seconds)), strict=True), rate))


def test_a_gap_in_time_repeats_the_frame_that_was_shown():
    assert in_time([0.0, 1.0, 4.0], 1.0) == [0, 1, 1, 2, 2]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.sampled_from([1.0, 5.0, 12.0, 29.97]))
def test_frames_are_the_nearest_by_definition(milliseconds, rate):
    """Against all distances; a tie, or a distance that rounding decides, may go to either side."""
    seconds = np.cumsum([0, *milliseconds]) / 1000
    chosen = in_time(seconds.tolist(), rate)
    assert len(chosen) == int((seconds[-1] + 5e-4) * rate) + 1
    for k, index in enumerate(chosen):
        assert abs(seconds[index] - k / rate) <= np.abs(seconds - k / rate).min() + 2e-9


def test_every_frame_is_taken_at_the_videos_own_rate(tmp_path, video_writer, texture):
    frames = texture(8, count=31)
    video_writer(tmp_path / "a.avi", frames, rate=Fraction(30000, 1001))
    assert np.array_equal(decode_video(tmp_path / "a.avi", frame_rate=None), frames)
    assert np.array_equal(decode_video(tmp_path / "a.avi", frame_rate=None, max_frames=9), frames[:9])


@pytest.mark.parametrize("options", [{"frame_rate": 12.0}, {"frame_rate": None}, {"frame_rate": 5.0, "max_frames": 4}])
def test_frames_are_counted_without_decoding_them(tmp_path, video_writer, texture, options):
    video_writer(tmp_path / "a.avi", texture(9, count=33), codec="mpeg4")
    options = {"max_frames": None, **options}
    assert count_frames(tmp_path / "a.avi", **options) == (len(decode_video(tmp_path / "a.avi", **options)), (48, 64))


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


def zeroed(data: bytes, start: int, length: int) -> bytes:
    return data[:start] + bytes(length) + data[start + length :]


def noisy(data: bytes, start: int, length: int) -> bytes:
    return data[:start] + np.random.default_rng(0).bytes(length) + data[start + length :]


DAMAGES = {
    "second half zeroed": lambda data: zeroed(data, len(data) // 2, len(data) - len(data) // 2),
    "a piece in the middle zeroed": lambda data: zeroed(data, len(data) // 2, min(65536, len(data) // 4)),
    "4 KB of noise": lambda data: noisy(data, len(data) // 2, 4096),
}


def write_as_embedded(path, frames):
    _write_video(path, frames, frames.shape[1:3])


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("coded", ["predicted", "each alone"])
def test_a_video_damaged_inside_is_not_a_shorter_one(tmp_path, video_writer, texture, coded, damage):
    path, frames = tmp_path / "a.avi", texture(6, count=28, size=(120, 160))
    write_as_embedded(path, frames) if coded == "each alone" else video_writer(path, frames, codec="mpeg4")
    assert len(decode_video(path)) == 13
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.avi: damaged, .*; download it again"):
        decode_video(path)


def video_chunks(data: bytes) -> list[int]:
    """Where the frames' chunks begin: an eight-byte header each, then the frame."""
    places, index = [], data.rindex(b"idx1")
    while (place := data.find(b"00dc", places[-1] + 8 if places else data.index(b"movi"), index)) >= 0:
        places.append(place)
    return places


def test_a_frame_that_is_garbled_is_found_by_the_decoder(tmp_path, texture):
    """Noise within one frame: the file's structure is whole."""
    path = tmp_path / "a.avi"
    write_as_embedded(path, texture(6, size=(120, 160)))
    data = path.read_bytes()
    path.write_bytes(noisy(data, video_chunks(data)[9] + 1000, 500))
    refuse_damaged_avi(path)
    with pytest.raises(ValueError, match=r"a\.avi: damaged, (frame 10 cannot be decoded|FFmpeg says)"):
        decode_video(path)


def test_whole_frames_that_are_gone_are_found_by_the_structure(tmp_path, texture):
    """The decoder sees sound frames only, and fewer of them."""
    path = tmp_path / "a.avi"
    write_as_embedded(path, texture(6, size=(120, 160)))
    data = path.read_bytes()
    places = video_chunks(data)
    assert len(places) == 26
    path.write_bytes(zeroed(data, places[9], places[14] - places[9]))
    with pytest.raises(ValueError, match=rf"a\.avi: damaged, no chunk .* at byte {places[9]}"):
        decode_video(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_real_clips_damaged_inside_are_found(tmp_path, ucf101_root, damage):
    clips = sorted((ucf101_root / "UCF-101").glob("*/*.avi"))[::80]
    assert clips
    for clip in clips:
        path = tmp_path / clip.name
        path.write_bytes(DAMAGES[damage](clip.read_bytes()))
        with pytest.raises(ValueError, match=rf"{clip.name}: damaged"):
            decode_video(path)


def test_no_real_clip_is_taken_for_a_damaged_one(ucf101_root):
    clips = sorted(ucf101_root.glob("UCF-101*/*/*.avi"))
    assert clips
    for clip in clips:
        probe(clip)
    for clip in clips[::20]:
        decode_video(clip)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"frame_rate": 0}, "frame_rate 0: "),
        ({"frame_rate": float("nan")}, "frame_rate nan: "),
        ({"frame_size": (0, 64)}, r"frame_size \(0, 64\): "),
        ({"max_frames": 0}, "max_frames 0: "),
    ],
)
def test_an_option_out_of_range_is_not_the_videos_fault(tmp_path, video_writer, texture, option, message):
    video_writer(tmp_path / "a.avi", texture(7))
    with pytest.raises(ValueError, match=f"^{message}"):
        decode_video(tmp_path / "a.avi", **option)
