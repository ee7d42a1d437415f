"""Pictures of what verbs wrote down: numbers as they were written, themes that can be read, files whole or not."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner

from glm_export.artifacts.program import OnnxProgram
from glm_export.calibration.ranges import load_ranges
from glm_export.cli import cli
from glm_export.errors import InputError
from glm_export.reports.pictures.plot import ENDINGS, plot
from glm_export.reports.pictures.themes import THEMES, colours

BENCH = {"prefill_tokens_s": 410.0, "decode_tokens_s": 13.5, "first_token_s": 1.2, "peak_anonymous_bytes": 2_000_000}
QUALITY = {"kl": 0.0125, "perplexity_ratio": 1.01, "top1": 0.97, "costs": None}
COSTS = [{"weight": "head", "kl": 1e-5, "estimated": False}, {"weight": "layers.0.mlp.down.weight", "kl": 2e-3}]
RANGES = Path(__file__).parents[2] / "golden" / "written_before" / "ranges"


def write(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def sources(tmp_path: Path, demo_program: OnnxProgram) -> list[Path]:
    """An exported folder, and what was measured of it and of a program that is not here."""
    folder = demo_program.folder
    # A report says of what it is; what quality prints is told by its file's name.
    report = {"verb": "quality", "subject": "gone/int8", "measured": QUALITY | {"kl": "Infinity"}}
    return [
        folder,
        write(tmp_path / "bench.json", BENCH | {"model": str(folder)}),
        write(tmp_path / f"{folder.name}.quality.json", QUALITY),
        write(tmp_path / "elsewhere.json", report),
    ]


def test_programs_beside_each_other(sources: list[Path], tmp_path: Path, demo_program: OnnxProgram) -> None:
    head, own, other = rows(plot(sources, tmp_path / "all.csv"))
    told = dict(zip(head, own, strict=True))
    assert float(told["size, MB"]) == pytest.approx(sum(demo_program.manifest["sizes"].values()) / 1e6)
    assert (told["program"], float(told["KL, nats a token"])) == (demo_program.folder.name, 0.0125)
    assert (float(told["decoding, tokens/s"]), float(told["memory, MB"])) == (13.5, 2.0)
    assert (other[0], other[head.index("KL, nats a token")], other[head.index("size, MB")]) == ("int8", "inf", "")
    drawn = "".join(ET.parse(plot(sources, tmp_path / "all.svg")).getroot().itertext())
    for shown in (demo_program.folder.name, "int8", "size, MB", "0.0125", "13.5", "infinite"):
        assert shown in drawn


def test_layers_that_cost_most_come_first(tmp_path: Path) -> None:
    source = write(tmp_path / "quality.json", QUALITY | {"costs": COSTS})
    assert rows(plot([source], tmp_path / "costs.csv")) == [
        ["layer", "KL, nats a token"], ["layers.0.mlp.down", "0.002"], ["head", "1e-05"],
    ]  # fmt: skip
    estimated = write(tmp_path / "estimated.json", QUALITY | {"costs": [cost | {"estimated": True} for cost in COSTS]})
    drawn = plot([estimated], tmp_path / "costs.svg").read_text()
    assert "estimated" in drawn
    assert drawn.index("layers.0.mlp.down") < drawn.rindex("head")


def test_ranges_are_those_of_the_folder(tmp_path: Path) -> None:
    ranges = load_ranges(RANGES)
    found = {row[0]: [float(cell) for cell in row[1:]] for row in rows(plot([ranges.folder], tmp_path / "r.csv"))[1:]}
    for name in ranges.inputs:
        maxima = ranges.tensors[f"{name}/channel_maxima"]
        wanted = [ranges.threshold(name, "min_max"), ranges.threshold(name, "percentile"), float(np.median(maxima))]
        assert found[name.removesuffix(".weight")] == wanted
    # A report says the same of them.
    largest = {name: float(ranges.tensors[f"{name}/channel_maxima"].max()) for name in ranges.inputs}
    outliers = {name: largest[name] / found[name.removesuffix(".weight")][2] for name in ranges.inputs}
    observers = ("min_max", "percentile")
    thresholds = {name: {one: ranges.threshold(name, one) for one in observers} for name in outliers}
    measured = {"outliers": outliers, "thresholds": thresholds}
    told = write(tmp_path / "report.json", {"verb": "calibrate", "measured": measured})
    again = rows(plot([told], tmp_path / "again.csv"))[1:]
    assert [row[0] for row in again] == list(found)
    assert np.allclose([[float(cell) for cell in row[1:]] for row in again], list(found.values()), rtol=1e-5)
    assert "99.99 % stay below" in plot([ranges.folder], tmp_path / "r.svg").read_text()


@pytest.mark.parametrize("theme", THEMES)
def test_a_picture_stands_alone(theme: str, sources: list[Path], tmp_path: Path) -> None:
    text = plot(sources, tmp_path / "p.svg", theme=theme).read_text()
    assert ET.fromstring(text).get("width")
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "#0a0b" not in text
    light, dark = (colours(one)["ink"] in text for one in ("light", "dark"))
    assert (light, dark) == {"auto": (True, True), "light": (True, False), "dark": (False, True)}[theme]
    assert ("var(--" in text) == (theme == "auto")
    assert text == plot(sources, tmp_path / "again.svg", theme=theme).read_text()
    png = plot(sources, tmp_path / "p.png", theme=theme).read_bytes()
    assert png.startswith(b"\x89PNG")


def test_the_pairs_of_colours_are_the_pages() -> None:
    assert colours("light")["ground"] == "#ffffff"
    assert colours("light").keys() == colours("dark").keys()
    assert not set(colours("light").values()) & set(re.findall("#0a0b..", "".join(colours("dark").values())))


@pytest.mark.parametrize("ending", ENDINGS)
def test_only_a_plot_of_ours_is_replaced(ending: str, sources: list[Path], tmp_path: Path) -> None:
    out = plot(sources, tmp_path / f"deep/plot{ending}")
    before = out.read_bytes()
    with pytest.raises(InputError, match="exists"):
        plot(sources, out)
    assert plot(sources, out, force=True).read_bytes()[:64] == before[:64]
    out.write_bytes(b"somebody's own")
    with pytest.raises(InputError, match="no plot of glm-export"):
        plot(sources, out, force=True)
    assert out.read_bytes() == b"somebody's own"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_what_cannot_be_drawn_is_said_in_a_line(sources: list[Path], tmp_path: Path) -> None:
    folder = sources[0]
    other = tmp_path / "there" / folder.name
    other.mkdir(parents=True)
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    empty = tmp_path / "empty"
    empty.mkdir()
    for given, out, said in (
        ([folder], "p.pdf", r"NAME\.svg"),
        ([tmp_path / "gone"], "p.csv", "is not there"),
        ([empty], "p.csv", "plot takes exported folders"),
        ([write(tmp_path / "x.json", {"verb": "check"})], "p.csv", "a report of check"),
        ([folder, other], "p.csv", "have one name"),
        ([folder], f"{folder}/p.csv", "lies in"),
        ([write(tmp_path / "y.json", BENCH | {"model": "a", "decode_tokens_s": "much"})], "p.csv", "expected a number"),
    ):
        with pytest.raises(InputError, match=said):
            plot(given, tmp_path / out)
    with pytest.raises(InputError, match="theme 'blue' is unknown"):
        plot(sources, tmp_path / "p.svg", theme="blue")


def test_the_verb(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "p.svg"
    result = CliRunner().invoke(cli, ["plot", *map(str, sources), "--out", str(out), "--theme", "dark"])
    assert (result.exit_code, out.is_file()) == (0, True)
    assert "wrote" in result.output
    assert CliRunner().invoke(cli, ["plot", str(sources[0]), "--out", str(out)]).exit_code == 2
