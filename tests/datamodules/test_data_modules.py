"""The three DataModules on a small tree of real videos."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.flow_pairs import FlowPairs, spread_blocks
from datamodules.flow_precompute import estimate_clip, to_frames
from datamodules.flow_stacks import FlowStacks
from datamodules.frame_stacks import FrameStacks, spread
from datamodules.transforms import centre_crop
from datamodules.ucf101 import UCF101


@pytest.fixture
def flow_options(small_tree, tmp_path, difference):
    return {
        "dataset": UCF101(small_tree, frame_rate=25),
        "estimator": difference(),
        "store": tmp_path / "store",
        "num_workers": 0,
        "extraction_workers": 1,
    }


def test_flow_stacks(flow_options):
    data = FlowStacks(**flow_options, crop=32, batch_size=4, stacks_per_clip=3)
    data.prepare_data()
    data.setup("fit")
    train = list(data.train_dataloader())
    assert sum(len(batch.label) for batch in train) == 16  # 18 random stacks in batches of 4, the odd ones dropped
    assert all(batch.flow.shape == (4, 20, 32, 32) for batch in train)
    test = list(data.val_dataloader())
    labels, clips = torch.cat([b.label for b in test]), torch.cat([b.clip for b in test])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2] and clips.tolist() == [0, 0, 1, 1, 2, 2]  # 26 frames: two stacks of 11
    clip = data.clips("test")[1]
    flow = torch.from_numpy(estimate_clip(data.dataset.decode(clip), data.estimator))
    second = torch.cat([b.flow for b in test])[3]
    assert (second - centre_crop(flow[11:21], 32).flatten(0, 1)).abs().max() <= 40 / 255 / 2 + 1e-6


def test_a_second_run_computes_nothing(flow_options, monkeypatch):
    data = FlowStacks(**flow_options, crop=32)
    data.prepare_data()
    monkeypatch.setattr(UCF101, "decode", lambda *_: pytest.fail("decoded again"))
    FlowStacks(**flow_options, crop=32).prepare_data()


def test_stacks_of_memory_and_of_the_store_are_the_same_frames(flow_options):
    """What the sweep estimates in memory is what the classifier saw on disk."""
    stored = FlowStacks(**flow_options, crop=32)
    stored.prepare_data()
    stored.setup("test")
    from_disk = torch.cat([batch.flow for batch in stored.test_dataloader()])
    frames = FrameStacks(flow_options["dataset"], num_workers=0)
    videos = list(frames.test_dataloader())
    assert [video.clip.item() for video in videos] == [0, 1, 2]
    flow = torch.cat([stored.estimator(video.frames) for video in videos])
    assert (centre_crop(flow, 32).flatten(1, 2) - from_disk).abs().max() <= 40 / 255 / 2 + 1e-6


def test_flow_pairs_cover_each_pair_once(flow_options):
    data = FlowPairs(**flow_options, flip=False, photometry=0.0, pairs_at_once=4, clips_per_batch=2)
    data.prepare_data()
    data.setup("fit")
    pairs = torch.cat([batch.frames for batch in data.train_dataloader()])
    assert len(pairs) == 6 * 25
    assert len({pair.numpy().tobytes() for pair in pairs}) == 6 * 25
    batch = next(iter(data.val_dataloader()))
    assert batch.frames.shape == (25, 2, 3, 48, 64) and batch.flow.shape == (25, 1, 2, 48, 64)
    target = data.estimator(batch.frames)
    assert (batch.flow - target).abs().max() <= 40 / 255 / 2 + 1e-6


def test_blocks_partition_the_pairs():
    blocks = spread_blocks([10, 3], 4)
    assert sorted(pair for clip, pairs in blocks for pair in pairs if clip == 0) == list(range(10))
    assert [pairs for clip, pairs in blocks if clip == 1] == [[0, 1, 2]]
    assert max(len(pairs) for _, pairs in blocks) == 4


def test_some_videos_and_some_stacks(flow_options):
    data = FrameStacks(flow_options["dataset"], max_stacks=1, max_clips=2, num_workers=0)
    videos = list(data.test_dataloader())
    assert [video.clip.item() for video in videos] == [0, 1]
    clip = data.clips("test")[1]
    frames = to_frames(data.dataset.decode(clip))
    assert torch.equal(videos[1].frames, frames[None, :11])
    assert data.settings["max_clips"] == 2
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, None) == [0, 1, 2]


def unfit(module, message):
    """Refused before any flow is computed."""
    with pytest.raises(ValueError, match=message):
        module.prepare_data()
    assert not hasattr(module, "store") or not module.store.made


@pytest.mark.parametrize("subset", ["train", "test"])
def test_clips_shorter_than_a_stack_are_named_before_the_work(flow_options, video_writer, texture, subset):
    clips = flow_options["dataset"].clips(subset)[1:]
    for clip in clips:
        video_writer(clip.path, texture(0, count=10))
    named = rf"{len(clips)} of \d clips are shorter.* 11 frames(?s:.)*" + r"(?s:.)*".join(
        rf"{clip.path.name}: 10 frames" for clip in clips
    )
    unfit(FlowStacks(**flow_options, crop=32), named)
    if subset == "test":
        unfit(FrameStacks(flow_options["dataset"], num_workers=0), named)
        FrameStacks(flow_options["dataset"], num_workers=0, max_clips=1).prepare_data()  # attacks the first alone
    FlowPairs(**flow_options).prepare_data()  # two frames are enough


def test_clips_of_several_sizes_are_named_before_the_work(flow_options, video_writer, texture):
    clip = flow_options["dataset"].clips("train")[3]
    video_writer(clip.path, texture(0, size=(40, 64)))
    unfit(FlowPairs(**flow_options), r"of 2 sizes(?s:.)*40×64: 1 clips, .*v_HandstandPushups_g03_c01\.avi(?s:.)*crop")
    unfit(FlowPairs(**flow_options, crop=(44, 44)), r"crop 44×44: .* 1 clips are smaller(?s:.)*g03_c01\.avi: 40×64")
    FlowPairs(**{**flow_options, "dataset": UCF101(flow_options["dataset"].root, frame_size=(48, 64))}).prepare_data()


def test_a_test_clip_smaller_than_the_crop_is_named_before_the_work(flow_options, video_writer, texture):
    clip = flow_options["dataset"].clips("test")[2]
    video_writer(clip.path, texture(0, size=(40, 64)))
    unfit(FlowStacks(**flow_options, crop=48), r"crop 48: .* 1 clips are smaller(?s:.)*v_Rowing_g01_c01\.avi: 40×64")
    FlowStacks(**flow_options, crop=40).prepare_data()


def test_a_clip_that_cannot_be_read_is_named_before_a_sweep(flow_options):
    clip = flow_options["dataset"].clips("test")[2]
    clip.path.write_bytes(clip.path.read_bytes()[:2000])
    unfit(
        FrameStacks(flow_options["dataset"], num_workers=0), r"1 of 3 clips cannot be read:\n  .*v_Rowing_g01_c01\.avi"
    )


def test_scales_are_fractions(flow_options):
    with pytest.raises(ValueError, match=r"scales \(1\.5,\)"):
        FlowStacks(**flow_options, scales=(1.5,))


def test_an_erased_share_is_below_the_whole(flow_options):
    with pytest.raises(ValueError, match=r"erase 1\.0"):
        FlowStacks(**flow_options, erase=1.0)


def test_training_stacks_are_augmented_and_test_stacks_are_not(flow_options):
    plain = FlowStacks(**flow_options, crop=32, scales=(1.0,))
    plain.prepare_data()
    for option in ({"reverse": True}, {"erase": 0.25}, {"flip": True}):
        data = FlowStacks(**flow_options, crop=32, scales=(1.0,), **option)
        stacks, changed = plain.train_dataloader().dataset, data.train_dataloader().dataset
        differing = 0
        for seed in range(20):
            drawn = []
            for dataset in (stacks, changed):
                torch.manual_seed(seed)
                drawn.append(dataset[0].flow)
            differing += not torch.equal(*drawn)
        assert 3 < differing < 17, option  # half of 20, give or take three deviations
        for before, after in zip(plain.val_dataloader().dataset, data.val_dataloader().dataset, strict=True):
            assert torch.equal(before.flow, after.flow)


def test_frames_are_scaled_exactly():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    assert torch.equal(torch.round(to_frames(levels) * 255).byte(), torch.from_numpy(levels).movedim(-1, -3))


def test_limits_that_select_nothing_are_named(flow_options):
    for name in ("max_stacks", "max_clips"):
        with pytest.raises(ValueError, match=f"{name} 0: at least 1"):
            FrameStacks(flow_options["dataset"], **{name: 0})
    with pytest.raises(ValueError, match="pairs_at_once 0"):
        FlowPairs(**flow_options, pairs_at_once=0)
    with pytest.raises(ValueError, match="batch_size 0"):
        FlowStacks(**flow_options, batch_size=0)


def of(processes: int, fn: str = "fit") -> SimpleNamespace:
    """A Trainer of so many processes."""
    return SimpleNamespace(world_size=processes, state=SimpleNamespace(fn=fn))


def test_a_training_step_is_as_large_whatever_the_number_of_processes(flow_options):
    for data in (FlowStacks(**flow_options, crop=32, batch_size=4), FlowPairs(**flow_options, clips_per_batch=4)):
        data.prepare_data()
        for processes in (1, 2, 4):
            data.trainer = of(processes)
            assert data.train_dataloader().batch_size * processes == 4


@pytest.mark.parametrize(
    ("kind", "option", "step", "processes", "fitting"),
    [
        (FlowStacks, "batch_size", 125, 8, "120 or 128"),
        (FlowStacks, "batch_size", 5, 2, "4 or 6"),
        (FlowPairs, "clips_per_batch", 2, 8, "8"),
        (FlowPairs, "clips_per_batch", 5, 2, "4 or 6"),
    ],
)
def test_a_step_that_the_processes_do_not_divide_is_refused_before_flow_is_computed(
    flow_options, kind, option, step, processes, fitting
):
    data = kind(**flow_options, crop=32 if kind is FlowStacks else None, **{option: step})
    data.trainer = of(processes)
    with pytest.raises(
        ValueError, match=rf"{option} {step} .* {processes} processes .*--data\.init_args\.{option}={fitting},"
    ):
        data.prepare_data()
    assert not data.store.made
    data.trainer = of(processes, "test")  # has no training step
    data.prepare_data()
    with pytest.raises(ValueError, match=f"{option} {step}"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("stack_length", 0, 2),
        ("stack_length", 1, 2),
        ("num_workers", -1, 0),
        ("extraction_workers", 0, 1),
        ("extraction_workers", -2, 1),
    ],
)
def test_what_is_too_small_is_named(flow_options, option, value, least):
    with pytest.raises(ValueError, match=f"{option} {value}: at least {least}"):
        FlowStacks(**{**flow_options, option: value})
    if option != "extraction_workers":
        with pytest.raises(ValueError, match=f"{option} {value}: at least {least}"):
            FrameStacks(flow_options["dataset"], **{option: value})
