"""The whole report of a made-up sweep of `--records` rows: seconds and peak memory. `make_sweep` is a test's, too.

A busy machine stretches seconds, the processor's too: what shares its cores and caches slows it. So they are also
given as a multiple of what reading the same number of rows takes, and nothing else, before and after.

Stacks fall to a frame with a hazard that grows with ε and with the attack, and that a group's stacks share.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from attacks.processor import processor_name
from attacks.records import CLEAN
from attacks.report import write_report
from attacks.settings import write_settings

SYSTEMS = ("flownet2", "tvl1", "farneback")
EPSILONS = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035)
STRENGTH = {
    "one_shot": 0.1,
    "iterative_saliency": 0.1,
    "iterative_saliency_rg": 0.3,
    "noise": 0.004,
    "random_order": 0.07,
    "first_to_last": 0.06,
    "least_salient": 0.04,
}
DENSE = ("one_shot", "noise")
TRANSFERRED = ("one_shot", "iterative_saliency_rg", "noise")
FRAMES = 11


def make_sweep(folder: Path, records: int, *, classes: int = 101, groups: int = 7, stacks: int = 2) -> int:
    """Write settings, records.jsonl and costs.json of about so many rows; returns their exact number."""
    random = np.random.default_rng(0)
    names = [f"Class{i:03}" for i in range(classes)]
    a_clip = (stacks + 1) * (1 + len(EPSILONS) * len(STRENGTH) + 2 * (1 + len(EPSILONS) * len(TRANSFERRED)))
    clips = max(1, round(records / a_clip / (classes * groups)))
    attacks = {name: {"class": f"attacks.{name}", "dense": name in DENSE} for name in STRENGTH}
    systems = {name: {"class": "made.up"} for name in SYSTEMS}
    settings = {"system": "flownet2", "systems": systems, "attacks": attacks, "epsilons": EPSILONS, "classes": names}
    write_settings(folder, {**settings, "test_clips": classes * groups * clips, "dataset": {"name": "made up"}})
    written = 0
    with (folder / "records.jsonl").open("w") as file:
        for label, name in enumerate(names):
            hardness = random.normal(0, 0.5)
            for group in range(1, groups + 1):
                ease = np.exp(hardness + random.normal(0, 0.7))
                for clip in range(1, clips + 1):
                    about = {"group": f"{name}_g{group:02}", "label": label, "system": "flownet2"}
                    about["clip"] = f"{name}/v_{name}_g{group:02}_c{clip:02}"
                    for row in _rows(random, ease, classes, stacks, about):
                        file.write(json.dumps(row) + "\n")
                        written += 1
    seconds = {f"{attack}/flownet2": 100.0 * strength for attack, strength in STRENGTH.items()}
    (folder / "costs.json").write_text(json.dumps({"unit": "made up", "seconds": seconds}))
    return written


def _rows(random: np.random.Generator, ease: float, classes: int, stacks: int, about: dict):
    for target, weight in zip(SYSTEMS, (1, 0.15, 0.08), strict=True):
        for stack in [*range(stacks), None]:
            other = int((about["label"] + random.integers(1, classes)) % classes)
            attacked = bool(random.random() < 0.85 / (0.8 + 0.2 * ease))
            clean = about["label"] if attacked else other
            level = {"level": "video" if stack is None else "stack", "stack": stack, "target": target}
            base = {**about, **level, "clean_prediction": clean, "clean_confidence": 0.9, "confidence": 0.8}
            base |= {"attacked": attacked, "stacks_perturbed": None if stack is not None else 0}
            verdict = {"prediction": clean, "success": False, "correct": attacked}
            verdict |= {"correct_8bit": attacked if stack is not None else None}
            nothing = {"frames_perturbed": 0, "frame_order": []}
            yield {**base, **verdict, **nothing, "attack": CLEAN, "epsilon": 0.0}
            for attack in STRENGTH if target == "flownet2" else TRANSFERRED:
                for epsilon in EPSILONS:
                    hazard = 1 - np.exp(-STRENGTH[attack] * weight * ease * np.sqrt(epsilon / 0.005))
                    needed = int(random.geometric(max(hazard, 1e-9)))
                    fooled = attacked and needed <= FRAMES
                    used = FRAMES if attack in DENSE else min(needed, FRAMES) if attacked else 0
                    order = random.permutation(FRAMES)[:used].tolist()
                    prediction = other if fooled else clean
                    row = {**base, "attack": attack, "epsilon": epsilon, "prediction": prediction, "success": fooled}
                    row |= {"correct": prediction == about["label"], "frames_perturbed": used, "frame_order": order}
                    row["correct_8bit"] = None if stack is None else row["correct"] or bool(random.random() < 0.02)
                    if attack not in DENSE and stack is not None:
                        steps = [[frame, clean, 0.9, 1.0] for frame in order]
                        if fooled:
                            steps[-1][1] = other
                        row |= {"steps": steps, "margin": -1.0 if fooled else 1.0}
                    if used and stack is not None:
                        row |= {"psnr": -20 * np.log10(epsilon) + random.normal(0, 0.1), "ssim": 1 - 6 * epsilon}
                        row |= {"flicker": 255 * epsilon * random.uniform(0.9, 1.1), "flow_epe": 20 * epsilon}
                    yield row


def reading(path: Path) -> float:
    """Processor seconds of parsing every row of a file."""
    start = time.process_time()
    with path.open() as file:
        for line in file:
            json.loads(line)
    return time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        count = make_sweep(Path(name), arguments.records)
        path = Path(name) / "records.jsonl"
        before = reading(path)
        wall, processor = time.perf_counter(), time.process_time()
        write_report(Path(name))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        unit = (before + reading(path)) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"{count} records: {wall:.1f} s, of the processor {processor:.1f} s, {processor / unit:.1f} times what reading "
        f"them takes; peak {peak:.2f} GiB, {processor_name()}"
    )
