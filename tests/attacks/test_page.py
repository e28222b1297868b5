"""The page of a toy sweep: whole in one file, readable by a browser that may load nothing, and true to the rows."""

import base64
import html
import io
import json
import re
import runpy
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from attacks.processor import processor_name
from attacks.provenance import add_provenance, provenance, read_provenance
from attacks.records import CLEAN, Record, read_records
from attacks.report import Report, gallery, write_report
from attacks.report.compare import compare, sweep_names
from attacks.report.page import write_page

toy = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy_sweep.py")), run_name="toy_sweep"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# A browser is no Python package: `make test` cannot install one. Continuous integration does (.ci/run).
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: the page was not opened in a browser"
)


@pytest.fixture(scope="module")
def report(swept: Callable[[], Path]) -> Report:
    folder = swept()
    add_provenance(folder, provenance("cpu", processes=1) | {"command": "python <sweep> & more"})
    return write_report(folder)


@pytest.fixture(scope="module")
def records(report: Report) -> list[Record]:
    return list(read_records(report.folder / "records.jsonl"))


VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: set[str] = set()
        self.alts: list[str | None] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "srcset", "poster", "data") and v is not None]
        self.ids |= {found["id"]} if found.get("id") else set()
        if tag == "img":
            self.alts.append(found.get("alt"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def console_of(page: Path, scratch: Path, *options: str, width: int = 1280) -> str:
    """What Chromium writes to its console, and that it drew the page."""
    picture = scratch / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={scratch / 'profile'}"]
    command += [
        "--enable-logging=stderr",
        f"--window-size={width},4000",
        f"--screenshot={picture}",
        *options,
        page.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert len(np.unique(np.asarray(Image.open(picture).convert("L")))) > 50, "nothing was drawn"
    return "\n".join(line for line in result.stderr.splitlines() if "CONSOLE" in line)


@in_a_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_browser_has_nothing_to_complain_about(report: Report, tmp_path: Path, width: int) -> None:
    """The page forbids all loading (Content-Security-Policy), so that a request would be an error on the console."""
    assert console_of(report.page, tmp_path, width=width) == ""


@in_a_browser
def test_the_browser_would_complain(report: Report, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(report.page.read_text().replace("</body>", '<img src="https://example.com/a.png" alt=""></body>'))
    assert "Content Security Policy" in console_of(broken, tmp_path)


def test_nothing_outside_the_file(report: Report) -> None:
    text = report.page.read_text()
    page = Page(text)
    assert page.open == []
    for reference in page.references:
        assert reference.startswith("data:") or reference.removeprefix("#") in page.ids, reference[:80]
    assert "script" not in page.tags and not re.search(r"url\(|@import", text)
    assert page.alts and all(page.alts)
    assert len(text) < 8_000_000


def test_every_picture_can_be_read(report: Report) -> None:
    pictures = [r for r in Page(report.page.read_text()).references if r.startswith("data:image")]
    # 4, 5, 6, budgets, survival, controls, classes, confusion, realisability
    assert sum(r.startswith("data:image/svg") for r in pictures) == 9
    assert sum(r.startswith("data:image/png") for r in pictures) == 2  # 3, 7
    for picture in pictures:
        kind, data = picture.removeprefix("data:image/").split(";base64,")
        raw = base64.b64decode(data)
        if kind == "svg+xml":
            assert ET.fromstring(raw).tag.endswith("svg")
        else:
            Image.open(io.BytesIO(raw)).verify()


def test_headline_counts_plainly(report: Report, records: list[Record]) -> None:
    text = html.unescape(report.page.read_text()).replace("\u00a0", " ")
    stacks = [r for r in records if r.level == "stack" and r.target == "flownet2"]
    least = [r for r in stacks if r.epsilon == 0.005]
    fooled = {name: sum(r.success for r in least if r.attack == name) for name in report.results.gradient_attacks}
    strongest = max(reversed(fooled), key=fooled.__getitem__)
    attacked = [r for r in least if r.attack == strongest and r.attacked]
    assert f"fooled it on {fooled[strongest]} of the {len(attacked)} it had right" in text
    clean = [r for r in stacks if r.attack == CLEAN]
    assert f"got {100 * sum(r.correct for r in clean) / len(clean):.1f} % of the stacks right" in text
    noise = sum(r.success for r in least if r.attack == "noise")
    assert f"Random signs of the same size fooled it on {noise}:" in text


def test_tables_of_the_page_are_those_of_the_files(report: Report) -> None:
    """Every cell of Tables 1 and 2, in order."""
    text = html.unescape(re.sub(r"\s+", " ", report.page.read_text()))
    for table in report.tables[:2]:
        body = text[text.index(table.title) :]
        body = body[: body.index("</table>")]
        assert re.findall(r"<td[^>]*>(.*?)</td>", body) == [cell for row in table.shown() for cell in row]


def test_provenance_stands_on_the_page_escaped(report: Report) -> None:
    text = report.page.read_text()
    assert "python &lt;sweep&gt; &amp; more" in text and "<sweep>" not in text
    of_sweep, run = read_provenance(report.folder)
    assert of_sweep["processes"] == 1 and of_sweep["command"]
    assert run["versions"]["torch"] and f"torch {run['versions']['torch']}" in text


def test_provenance_names_cpu_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    run = provenance(torch.device("cuda", 1), processes=1)
    assert (run["device"], run["processor"]) == ("cuda:1", f"{processor_name()}, GPU 1")
    assert provenance("cpu")["processor"] == processor_name()


def test_provenance_adds_runs_and_never_blocks(tmp_path: Path, report: Report) -> None:
    add_provenance(tmp_path, {"command": "first"})
    add_provenance(tmp_path, {"command": "second"})
    assert [run["command"] for run in read_provenance(tmp_path)] == ["first", "second"]
    (tmp_path / "provenance.json").write_text('{"runs": [')
    with pytest.raises(ValueError, match=r"provenance\.json: not a list of runs"):
        read_provenance(tmp_path)
    add_provenance(tmp_path, {"command": "third"})
    assert [run["command"] for run in read_provenance(tmp_path)] == ["third"]
    assert (tmp_path / "provenance.json.unreadable").exists()
    # A sweep whose folder tells nothing of its runs is reported, too.
    for name in ("settings.json", "records.jsonl"):
        shutil.copy(report.folder / name, tmp_path)
    (tmp_path / "provenance.json").unlink()
    assert "left no provenance.json" in write_report(tmp_path).page.read_text()


def test_gallery_shows_frames_difference_and_flow(report: Report) -> None:
    shown, moves = gallery.gallery(report.results)
    assert moves and len(shown) == len(report.results.examples) == 4
    example = next(e for e in report.results.examples if e.clip.endswith(shown[0].title.split(",")[0]))
    assert [panel.name for panel in shown[0].panels][:2] == ["clean", "one-shot"]
    for panel in shown[0].panels:
        assert frames_of(panel.flow.moving).shape[0] == toy.FRAMES - 1
        assert (panel.perturbation is None) == (panel.name == "clean")
    assert (frames_of(shown[0].panels[0].frames.moving) == example.frames).all()
    assert (frames_of(shown[0].panels[1].frames.moving) == example.adversarial["one_shot"]).all()
    difference = frames_of(shown[0].panels[1].perturbation.moving).astype(float) - 127.5
    grown = shown[0].gain * (example.adversarial["one_shot"].astype(float) - example.frames)
    assert np.abs(difference - grown.clip(-127.5, 127.5)).max() <= 1


def test_flows_share_one_scale(report: Report) -> None:
    """An attacked flow of half the clean one's length is drawn paler, where a scale of its own would draw it equal."""
    example = report.results.examples[0]
    flow = np.zeros_like(example.flow)
    flow[:, 0] = 2
    example = example._replace(flow=flow, adversarial_flow={"one_shot": flow / 2})
    ((shown,), _) = gallery.gallery(report.results._replace(examples=[example]))
    clean, attacked = (frames_of(panel.flow.moving)[0, 0, 0].astype(int) for panel in shown.panels[:2])
    assert shown.longest == 2
    assert attacked.min() > clean.min() + 50
    assert shown.panels[2].flow is None


def test_too_large_a_gallery_stands_still(report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "One frame of each" not in report.page.read_text()
    monkeypatch.setattr(gallery, "MOST_BYTES", 1000)
    shown, moves = gallery.gallery(report.results)
    assert not moves
    for example in shown:
        assert all(len(frames_of(panel.frames.moving)) == 1 for panel in example.panels)
    page = write_page(tmp_path, report.results, report.tables, report.figures)
    assert "One frame of each stands for the clip" in page.read_text()


@pytest.mark.slow
def test_frames_of_full_size_move_in_the_gallery(report: Report) -> None:
    """Four examples of UCF-101's size under eight attacks, two of them on all frames: shrunk until they fit."""
    generator = np.random.default_rng(0)
    smooth = cv2.resize(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8), (320, 240))
    frames = np.stack([np.roll(smooth, n, 1) for n in range(11)])
    signs = generator.choice(np.array([-6, 6], np.int16), frames.shape)
    noisy = (frames + signs).clip(0, 255).astype(np.uint8)
    examples = [
        example._replace(
            frames=frames,
            adversarial={
                name: noisy if name in report.results.dense else np.concatenate([noisy[:3], frames[3:]])
                for name in example.adversarial
            },
            flow=None,
            adversarial_flow={},
        )
        for example in report.results.examples
    ]
    shown, moves = gallery.gallery(report.results._replace(examples=examples))
    assert moves and len(shown) == 4
    for panel in shown[0].panels:
        assert len(frames_of(panel.frames.moving)) == 11
        assert max(frames_of(panel.frames.moving).shape[1:3]) >= 160


def frames_of(uri: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    frames = []
    for n in range(getattr(image, "n_frames", 1)):
        image.seek(n)
        frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


@pytest.fixture(scope="module")
def less(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep with one attack only."""
    folder = tmp_path_factory.mktemp("other") / "attack-sweep"
    toy.run(folder, videos=8, attacks={"one_shot": toy.SweepCallback().sweep.attacks["one_shot"]})
    return folder


@in_a_browser
def test_browser_has_nothing_to_complain_about_in_a_comparison(report: Report, less: Path, tmp_path: Path) -> None:
    assert console_of(compare([report.folder, less], tmp_path / "comparison").page, tmp_path) == ""


def test_a_comparison_of_the_same_stacks_is_pairwise(report: Report, less: Path, tmp_path: Path) -> None:
    made = compare([report.folder, less], tmp_path / "comparison")
    page = Page(made.page.read_text())
    assert page.open == [] and all(reference.startswith("data:") for reference in page.references)
    rows = {(row[1], row[0]): row for row in made.tables[0].rows}
    names = sweep_names([report.folder, less])
    for epsilon in (0.0, *toy.EPSILONS):
        assert rows[names[0], epsilon][2:4] == rows[names[1], epsilon][2:4]
    for row in made.tables[1].rows:  # the same stacks and the same attack: they differ by nothing
        assert row[4] == sum(2 + i % 3 for i in range(8)) and row[5] == 0


def test_a_comparison_of_other_stacks_is_of_independent_samples(report: Report, tmp_path: Path) -> None:
    other = tmp_path / "attack-sweep"
    other.mkdir()
    shutil.copy(report.folder / "settings.json", other)
    lines = (report.folder / "records.jsonl").read_text().splitlines()
    moved = [json.loads(line) for line in lines]
    (other / "records.jsonl").write_text("".join(json.dumps(r | {"clip": r["clip"] + "b"}) + "\n" for r in moved))
    for row in compare([report.folder, other], tmp_path / "out").tables[1].rows:
        assert row[4] is None and row[5] == 0 and row[6] == pytest.approx(-row[7], abs=0.02) and row[7] > 5


@pytest.mark.parametrize("change", [{"dataset": {"seed": 1}}, {"classes": ["Right", "Down", "Left", "Away"]}])
def test_stacks_of_another_dataset_are_not_the_same_stacks(report: Report, tmp_path: Path, change: dict) -> None:
    other = tmp_path / "attack-sweep"
    other.mkdir()
    shutil.copy(report.folder / "records.jsonl", other)
    settings = json.loads((report.folder / "settings.json").read_text())
    (other / "settings.json").write_text(json.dumps(settings | change))
    assert all(row[4] is None for row in compare([report.folder, other], tmp_path / "out").tables[1].rows)
    fewer = settings["dataset"] | {"max_clips": 3, "frame_size": [9, 9]}
    (other / "settings.json").write_text(json.dumps(settings | {"dataset": fewer}))
    assert all(row[4] is not None for row in compare([report.folder, other], tmp_path / "again").tables[1].rows)


def test_a_comparison_does_not_write_over_a_sweep(report: Report, less: Path) -> None:
    before = (report.folder / "summary.txt").read_bytes()
    with pytest.raises(ValueError, match="is the folder of a sweep"):
        compare([report.folder, less], report.folder)
    assert (report.folder / "summary.txt").read_bytes() == before


def test_sweeps_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert sweep_names([tmp_path / "small" / "attack-sweep", tmp_path / "paper" / "attack-sweep"]) == ["small", "paper"]
    assert sweep_names([tmp_path / "a" / "x", tmp_path / "b" / "y"]) == ["x", "y"]
    with pytest.raises(ValueError, match="b is given twice"):
        sweep_names([tmp_path / "a", tmp_path / "b", tmp_path / "b"])
    with pytest.raises(ValueError, match="1 sweep to compare"):
        compare([tmp_path], tmp_path / "out")
