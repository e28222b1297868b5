"""Names are the user's own: whatever a class, clip, system or attack is called, the report of its sweep is written."""

import csv
import json
import re
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from attacks.examples import Example, save_example
from attacks.records import read_records
from attacks.report import Report, evidence_figures, figures, lettering, write_report
from attacks.report.cells import literal
from attacks.report.compare import compare
from attacks.report.lettering import drawn, drawn_class, families
from attacks.report.page import write_page
from attacks.report.results import Results, load_results
from attacks.report.style import settings_for
from attacks.report.table import Table, slug
from attacks.wandb_log import curve_name
from lightning_modules.confusion import draw

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
made_up = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "report.py"), run_name="report_benchmark"))
LONG = "Putting [something] onto [something else that cannot support it] so it falls down " * 4
CLASSES = [
    r"\frac{$x_",
    "50 % of_all ^ {",
    "two\nlines | <b>*bold*</b>",
    LONG,
    "_hidden",
    "拍手",
    "\udcff $",
    "# &amp; `x`",
]
SYSTEMS = {"flownet2": r"my/flow $\frac{1}", "tvl1": "_tv|l1\n", "farneback": "流 *" + 90 * "x"}
ATTACKS = {"one_shot": r"one $\sqrt{ shot*", "iterative_saliency": "_steps\n|", "noise": "noise"}


def renamed(folder: Path, source: Path) -> None:
    """The sweep in `source` under hostile names, with an example."""
    folder.mkdir(exist_ok=True)
    settings = json.loads((source / "settings.json").read_text())
    settings["classes"] = CLASSES
    settings["system"] = SYSTEMS[settings["system"]]
    settings["systems"] = {SYSTEMS[name]: value for name, value in settings["systems"].items()}
    settings["attacks"] = {ATTACKS.get(name, name): value for name, value in settings["attacks"].items()}
    (folder / "settings.json").write_text(json.dumps(settings))
    rows = []
    for r in read_records(source / "records.jsonl"):
        names = {"system": SYSTEMS[r.system], "target": SYSTEMS[r.target], "attack": ATTACKS.get(r.attack, r.attack)}
        rows.append(r._replace(clip=f"{CLASSES[r.label]}/{r.clip}"[-150:], **names))
    (folder / "records.jsonl").write_text("".join(json.dumps(row._asdict()) + "\n" for row in rows))
    row = next(r for r in rows if r.level == "stack" and r.attack == ATTACKS["one_shot"] and r.success and not r.label)
    frames = np.random.default_rng(0).integers(0, 255, (made_up.FRAMES, 8, 8, 3), dtype=np.uint8)
    attacks, epsilons = list(settings["attacks"]), list(made_up.EPSILONS)
    adversarial = dict.fromkeys(attacks, frames // 2)
    at = dict.fromkeys(attacks, np.stack([frames[0]] * len(epsilons)))
    example = Example(row.clip, row.stack, frames, row.epsilon, adversarial, epsilons, dict.fromkeys(attacks, 0), at)
    save_example(folder / "examples", example)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    made_up.make_sweep(folder, 1500, classes=len(CLASSES), groups=2)
    return folder


@pytest.fixture(scope="module")
def hostile(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    renamed(folder, plain)
    return folder


@pytest.fixture(scope="module")
def report(hostile: Path) -> Report:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*(missing from|constrained_layout not applied).*")
        warnings.filterwarnings("ignore", message=".*No installed font has")
        return write_report(hostile)


def test_every_output_is_written(report: Report, plain: Path) -> None:
    assert report.failures == []
    assert {"fig3_stack", "fig4_accuracy", "fig6_transfer", "per_class", "confusion"} <= report.figures.keys()
    assert all((report.folder / path).stat().st_size for path in report.files)
    assert json.loads((report.folder / "results.json").read_text())["system"] == SYSTEMS["flownet2"]
    of = next(table for table in report.tables if table.name.startswith("denominators-"))
    assert of.name == f"denominators-{slug(SYSTEMS['flownet2'])}" and "/" not in of.name


def texts(figure: Figure) -> set[str]:
    """All that is written on a figure."""
    figure.draw_without_rendering()
    return {text.get_text() for text in figure.findobj(matplotlib.text.Text)}


def test_names_are_drawn_as_they_are(report: Report) -> None:
    results = report.results
    with matplotlib.rc_context(settings_for(results.names)):
        shown = texts(figures.accuracy(results))
        assert rf"Accuracy of {SYSTEMS['flownet2']} under attack ({results.extent})" in shown
        assert {r"one $\sqrt{ shot*", r"-steps\n|"} <= shown
        shown = texts(figures.transfer(results))
        assert r" _tv|l1\n" in shown  # a legend leaves out what begins with an underscore
        shown = texts(evidence_figures.class_bars(results))
        assert {CLASSES[0], CLASSES[1], r"two\nlines | <b>*bold*</b>", r"\udcff $", " _hidden"} <= shown
        assert max(map(len, shown)) < 200
        shown = texts(evidence_figures.confusion_maps(results))
        assert CLASSES[0] in shown
        for figure in (figures.accuracy(results), evidence_figures.class_bars(results)):
            assert not any(text.get_parse_math() for text in figure.findobj(matplotlib.text.Text))


def test_a_comparison_has_the_names_of_folders_and_attacks(hostile: Path, report: Report, tmp_path: Path) -> None:
    other = tmp_path / r"_$\frac{" / "attack-sweep"
    other.mkdir(parents=True)
    for name in ("settings.json", "records.jsonl"):
        (other / name).write_bytes((hostile / name).read_bytes())
    made = compare([hostile, other], tmp_path / "out")
    assert (tmp_path / "out" / "comparison.svg").exists() and made.page.exists()


def cells_of(line: str) -> list[str]:
    """The cells of a row of a GitHub table, as it is rendered."""
    return [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell.strip()) for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def test_markdown_shows_every_cell(report: Report) -> None:
    for table in report.tables:
        lines = table.markdown().splitlines()
        rows = [line for line in lines if line.startswith("|")]
        assert len(rows) == 2 + len(table.rows), table.name
        for row, cells in zip(rows[2:], table.shown(), strict=True):
            assert len(cells_of(row)) == len(table.columns)
            assert cells_of(row) == [cell.strip() for cell in cells]
    odd = Table("t", "a*b\n_c_ <d>", [("", "class")], [["\\|`x`"], ["a_b _c_ &amp; <0.01 [l](u)"]], ["`code` of x|y"])
    assert odd.markdown().splitlines() == [
        r"**a\*b\\n_c\_ \<d>**",
        "",
        "| class |",
        "| :-- |",
        r"| \\\|\`x\` |",
        r"| a_b \_c\_ \&amp; <0.01 \[l\](u) |",
        "",
        r"`code` of x\|y  ",
    ]


def test_csv_and_text_hold_every_row(report: Report) -> None:
    with (report.folder / "tables" / "per-class.csv").open(newline="") as file:
        names = {row["class"] for row in csv.DictReader(file)}
    assert names == {literal(name) for name in CLASSES}
    (table,) = (table for table in report.tables if table.name == "per-class")
    lines = [line for line, _ in table.lines()]
    assert len(lines) == 2 + 2 + 1 + len(table.rows) + 1 + len(table.notes) + 2


def test_latex_takes_every_name(report: Report) -> None:
    """Rows end where they should, none begins with what LaTeX takes for an option of the line's end before it."""
    for table in report.tables:
        text = table.latex()
        foreign = not text.isascii()
        assert text.startswith("% names in other scripts") == foreign
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
        assert len(body) == len(table.rows)
        for row in body:
            assert row.endswith(r" \\") and not row.startswith(("[", "*"))
            assert len(re.findall(r"(?<!\\)&", row)) == len(table.columns) - 1
        assert re.search(r"\\label\{tab:[A-Za-z0-9_.-]+\}", text)
        assert text.count("\n\n") == 0


def test_slugs_differ_where_names_do() -> None:
    assert slug("flownet2") == "flownet2" and slug("a.b_c-1") == "a.b_c-1"
    names = ["a/b", "a b", "a-b", "流", "光", "x" * 300, "x" * 301, "\udcff"]
    assert len(set(map(slug, names))) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", slug(name)) for name in names)


@pytest.mark.slow
def test_a_figure_that_fails_costs_no_other(
    plain: Path, report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def broken(results: Results) -> Figure:
        raise RuntimeError("no ink")

    for name in ("settings.json", "records.jsonl"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    monkeypatch.setitem(figures.DRAWN, "survival", broken)
    monkeypatch.setattr("attacks.report.moving_pictures", broken)
    with pytest.warns(UserWarning, match="survival could not be drawn"):
        made = write_report(tmp_path)
    assert "survival" not in made.figures and {"budgets", "controls"} <= made.figures.keys()
    assert len(made.failures) == 2 and (tmp_path / "results.json").exists()
    text = made.page.read_text()
    assert text.count("Figure survival could not be drawn: RuntimeError: no ink") == 1 and "Table 1." in text
    command = runpy.run_path(str(Path(figures.__file__).parents[1] / "__main__.py"), run_name="main")
    with pytest.raises(SystemExit, match="Error: Figure survival could not be drawn"):
        command["report"](tmp_path)
    printed = capsys.readouterr().out
    assert "Table 1." in printed and printed.count("Warning: Figure survival could not be drawn") == 1


@pytest.fixture
def fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The families besides DejaVu Sans, none; a test may add some."""
    names: list[str] = []
    lettering.font_of.cache_clear()
    monkeypatch.setattr(lettering, "_others", lambda: names)
    yield names
    lettering.font_of.cache_clear()


CLAP = "拍手"


@pytest.mark.parametrize("name", [CLAP, "क्रिकेट", "🏏 bat", "\U000f0000"])
def test_without_a_font_a_class_is_its_number(name: str, fonts: list[str]) -> None:
    classes = ["Archery", name]
    assert [drawn_class(classes, index) for index in (0, 1)] == ["Archery", "class 1"]
    assert drawn(f"v_{name}").isascii() and drawn(f"v_{name}").startswith("v_")
    assert families(classes) == ["DejaVu Sans"]


@pytest.mark.slow
def test_what_is_missing_is_said_once(plain: Path, fonts: list[str], tmp_path: Path) -> None:
    settings = json.loads((plain / "settings.json").read_text())
    settings["classes"][1] = CLAP
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "records.jsonl").write_bytes((plain / "records.jsonl").read_bytes())
    said = "No installed font has 手拍: figures show the numbers of such classes"
    with pytest.warns(UserWarning, match="No installed font has") as caught:
        made = write_report(tmp_path)
    assert sum(said in str(warning.message) for warning in caught) == 1
    assert not any("missing from" in str(warning.message) for warning in caught)
    assert made.page.read_text().count(said) == 1 and "Here class 1 is 拍手." in made.page.read_text()
    assert CLAP in (tmp_path / "tables" / "per-class.csv").read_text()
    assert "class 1" in texts(evidence_figures.class_bars(made.results))


@pytest.fixture
def clapping(tmp_path: Path, fonts: list[str]) -> Iterator[str]:
    """The family of an installed font that has two signs."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(point)
    pen.closePath()
    glyph = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "one", "two"])
    font.setupCharacterMap({ord(CLAP[0]): "one", ord(CLAP[1]): "two"})
    font.setupGlyf({".notdef": glyph, "one": glyph, "two": glyph})
    font.setupHorizontalMetrics(dict.fromkeys([".notdef", "one", "two"], (900, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": "Clapping Sans", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "clapping.ttf")
    listed = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "clapping.ttf")
    fonts.append("Clapping Sans")
    yield "Clapping Sans"
    font_manager.fontManager.ttflist[:] = listed


def test_with_a_font_the_name_itself_is_drawn(clapping: str, tmp_path: Path) -> None:
    assert drawn_class(["Archery", CLAP], 1) == CLAP and families([CLAP, "Archery"]) == ["DejaVu Sans", clapping]
    assert drawn_class(["Archery", CLAP + "击"], 1) == "class 1"
    figure = Figure()
    with matplotlib.rc_context(settings_for([CLAP])), warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = figure.subplots()
        ax.set_title(CLAP)
        ax.set_yticks([0], [CLAP])
        figure.savefig(tmp_path / "clap.png")
        figure.savefig(tmp_path / "clap.svg")


def test_installed_fonts_are_looked_through() -> None:
    """What this machine has: whichever family is named has the sign in both weights, and boxes are no font."""
    assert drawn("Archery ✓ ε") == "Archery ✓ ε"
    for family in lettering._others():
        assert not any(part in family for part in lettering.NO_LETTERS)
    for sign in "拍क🏏":
        family = lettering.font_of(sign)
        assert family is None or ord(sign) in lettering._signs(family)


def test_the_page_escapes_names(report: Report, tmp_path: Path) -> None:
    page = write_page(tmp_path, load_results(report.folder), report.tables, {}).read_text()
    assert "<b>" not in page.split("<main>")[1].split('class="numbers"')[0].replace("<b>95", "")
    assert "&lt;b&gt;*bold*" in page


def test_the_confusion_of_a_training_takes_every_name(fonts: list[str], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="No installed font has") as caught:
        draw(torch.ones(len(CLASSES), len(CLASSES), dtype=torch.long), CLASSES, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 10_000
    assert not any("missing from" in str(warning.message) for warning in caught)


def test_a_star_in_a_name_is_no_pattern_of_wandb() -> None:
    assert "*" not in curve_name("accuracy", "stack", "rg*\n", "tvl1") and "\n" not in curve_name("a", "b", "c\n", "d")
