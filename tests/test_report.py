"""The HTML pages: whole, self-contained, safe against the names in a model; and their geometry."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx_ir as ir
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsecc.report.charts import CURVE_HEIGHT, WIDTH, distributions, quantile, round_values
from sparsecc.report.html import compile_page, inspect_page, profile_page
from sparsecc.report.inspect_page import LARGEST_GRAPH, topology
from sparsecc.report.layout import NODE_HEIGHT, NODE_WIDTH, layered

GOLDEN = Path(__file__).parent / "golden" / "cli"
VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = "<script>alert(1)</script>\"'&\x1b[31m\u202e"


def result(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def compiled(report: Any = None) -> str:
    recipe = "schema: sparsecc.recipe/1\nratio: 0.5\n"
    plan = {"schema": "sparsecc.plan/1", "model": {"sha256": "ab" * 32}}
    return compile_page(report or result("compile"), plan, recipe=recipe, command="sparsecc compile m.onnx")


PAGES = {
    "compile": lambda found: compiled(found),
    "inspect": inspect_page,
    "profile": profile_page,
}


class Page(HTMLParser):
    """Reads a page; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_refers_to_nothing_outside(name: str) -> None:
    text = PAGES[name](result(name))
    page = Page(text)
    assert page.tags.count("h1") == 1
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for key, value in page.attributes if key in {"src", "href", "srcset", "xlink:href"}]
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert ("http-equiv", "Content-Security-Policy") in page.attributes


@pytest.mark.parametrize("name", PAGES)
def test_drawings_are_well_formed(name: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", PAGES[name](result(name)), re.DOTALL)
    assert drawings
    for drawing in drawings:
        ElementTree.fromstring(drawing.replace("&#39;", "'"))


def poison(value: Any) -> Any:
    if isinstance(value, str):
        return value + EVIL if not value.startswith("sparsecc.") else value
    if isinstance(value, list):
        return [poison(one) for one in value]
    return {key: poison(one) for key, one in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", PAGES)
def test_names_cannot_break_out(name: str) -> None:
    text = PAGES[name](poison(result(name)))
    clean = PAGES[name](result(name))
    assert Page(text).tags.count("script") == Page(clean).tags.count("script")
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "alert(1)" in Page(text).text
    assert {key for key, _ in Page(text).attributes} <= {key for key, _ in Page(clean).attributes}


def test_compile_page_says_it_all() -> None:
    text = Page(compiled()).text
    for words in (
        "2.24x faster (95 % interval 2.20 to 2.28), 51 % fewer MACs, 54 % fewer parameters",
        "MACs −51.3 % 4.09 G → 1.99 G",
        "layer1.0.conv1 Conv 64 → 16 −91.8 %",
        "p50 61.5 ms 27.4 ms −55.5 %",
        "wall clock p50 73.5 ms 33.1 ms",
        "process CPU time",
        "top-1 0.976 0.981 → 0.976",
        "max relative error 3.1e-07",
        "com.microsoft.nchwc:ReorderOutput 0 1",
        "stem.conv stays in float: input is not quantized",
        "2 graph output 'logits' fc.weight:0",
        "prune 0.48 s groups: 36, slots: 7412",
        "align layer1.0.conv1 group of 12 is narrower",
        "sparsecc compile m.onnx recipe.yaml schema: sparsecc.recipe/1 ratio: 0.5",
        "onnxruntime 1.31.1",
        "input sha256 " + "ab" * 32,
    ):
        assert words in text, words


def test_what_is_not_proved_is_said_at_the_head() -> None:
    report = result("compile")
    assert "Not proved" not in compiled(report)
    report["verification"] |= {"status": "not proved", "reason": "no probe tells"}
    assert "Not proved: no probe tells." in compiled(report).partition('class="card"')[0]


def test_sections_without_data_are_not_drawn() -> None:
    report = {key: result("compile")[key] for key in ("schema", "before", "after")}
    page = Page(compile_page(report, {}))
    for word in ("Latency", "Channels kept", "still right", "Kernels", "skipped", "reproduce", "versions"):
        assert word not in page.text
    assert "Nothing was pinned." in page.text
    assert "svg" not in page.tags


def test_many_layers_fold_away() -> None:
    report = result("compile")
    report["layers"] = [{**report["layers"][0], "name": f"layer{n}"} for n in range(200)]
    page = Page(compiled(report))
    assert "140 more layers" in page.text
    assert "layer199" in page.text


def test_sizes_that_a_pass_foresees_are_not_taken_for_those_of_the_file() -> None:
    report = result("compile")
    report["passes"] = [
        {"name": "quantize", "facts": {"bytes": 147_123, "float_bytes": 832_000, "error": 0.01}}
    ]
    page = Page(compiled(report)).text
    assert "quantize the graph before it is built: 147 kB, the same in float: 832 kB, error: 0.01" in page


def test_bars_keep_the_order_of_channels() -> None:
    text = compiled()
    widths = [float(w) for w in re.findall(r'<rect width="([\d.]+)"', text)]
    before, after = widths[::2], widths[1::2]
    layers = [layer for layer in result("compile")["layers"] if layer["before"] is not None]
    assert all(a <= b for a, b in zip(after, before, strict=True))
    ordered = sorted(range(len(layers)), key=lambda n: layers[n]["before"])
    assert [before[n] for n in ordered] == sorted(before)
    assert max(before) == 100


def test_a_large_graph_becomes_a_table() -> None:
    found = result("inspect")
    nodes = [{"name": f"n{n}", "op": "Relu"} for n in range(LARGEST_GRAPH + 1)]
    found["graph"] = {"nodes": nodes, "edges": []}
    page = Page(inspect_page(found))
    assert f"The graph has {LARGEST_GRAPH + 1} nodes" in page.text
    assert ("id", "graph") not in page.attributes
    assert "5.b.weight:0" in page.text


def test_nodes_know_their_groups() -> None:
    found = result("inspect")
    text = inspect_page(found)
    drawn = dict(re.findall(r'data-groups="([^"]*)"[^>]*><title>\S+ (\S+)', text))
    for group in found["groups"]:
        if group["prunable"]:
            assert any(str(group["id"]) in ids.split() for ids in drawn), group["id"]


def test_inspect_without_a_graph_has_no_drawing() -> None:
    found = result("inspect")
    del found["graph"]
    page = Page(inspect_page(found))
    assert ("id", "graph") not in page.attributes
    assert "Groups that can be cut" in page.text


# Geometry --------------------------------------------------------------------------------------------


def test_topology_of_a_residual_model() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 4] x) => (float[1, 4] y) {
            a = Relu(x)
            b = Sigmoid(a)
            c = Add(a, b)
            y = Mul(c, c)
        }"""
    )
    found = topology(model)
    assert [node["op"] for node in found["nodes"]] == ["Relu", "Sigmoid", "Add", "Mul"]
    assert found["edges"] == [[0, 1], [0, 2], [1, 2], [2, 3]]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    number = draw(st.integers(0, 40))
    places = st.integers(0, max(number - 1, 0))
    pairs = draw(st.lists(st.tuples(places, places), max_size=80)) if number else []
    return number, sorted({(a, b) for a, b in pairs if a < b})


@given(graphs())
def test_layout_overlaps_nothing_and_flows_down(graph: tuple[int, list[tuple[int, int]]]) -> None:
    number, edges = graph
    laid = layered(number, edges)
    corners = laid.corners
    for source, sink in edges:
        assert corners[source][1] + NODE_HEIGHT < corners[sink][1]
    for one in range(number):
        x, y = corners[one]
        assert 0 <= x <= laid.width - NODE_WIDTH + 1e-6
        assert 0 <= y <= laid.height - NODE_HEIGHT
        for other in range(one):
            apart = abs(x - corners[other][0]) >= NODE_WIDTH or abs(y - corners[other][1]) >= NODE_HEIGHT
            assert apart
    assert len(laid.paths) == len(edges)


def test_layout_untangles_two_crossed_chains() -> None:
    corners = layered(6, [(0, 3), (1, 2), (2, 5), (3, 4)]).corners
    assert [corners[0][0] == corners[3][0] == corners[4][0], corners[1][0] == corners[2][0]] == [True, True]


samples = st.lists(st.floats(1e-3, 1e5), min_size=2, max_size=60)


@given(samples, samples)
def test_curves_stay_in_their_box(before: list[float], after: list[float]) -> None:
    drawn = distributions([("before", "before", before), ("after", "after", after)])
    assert drawn is not None
    for curve in drawn.curves:
        numbers = [float(n) for n in re.findall(r"-?[\d.]+(?:e-?\d+)?", curve.path)]
        assert all(-0.1 <= x <= WIDTH + 0.1 for x in numbers[::2])
        assert all(-0.1 <= y <= CURVE_HEIGHT + 0.1 for y in numbers[1::2])
        assert 0 <= curve.median_x <= WIDTH
    assert len(drawn.ticks) >= 2
    assert all(0 <= tick.x <= WIDTH for tick in drawn.ticks)


def test_curve_peaks_where_the_samples_are() -> None:
    draw = random.Random(0)
    values = [draw.gauss(20, 1) for _ in range(400)] + [draw.gauss(60, 1) for _ in range(100)]
    drawn = distributions([("a", "after", values)])
    assert drawn is not None
    points = re.findall(r"([\d.]+),([\d.]+)", drawn.curves[0].path)
    peak = min(points, key=lambda point: float(point[1]))
    x20 = next(tick.x for tick in drawn.ticks if tick.label == "20")
    assert math.isclose(float(peak[0]), x20, abs_tol=WIDTH / 40)


def test_one_slow_run_does_not_squeeze_the_rest() -> None:
    drawn = distributions([("a", "after", [10.0 + n / 100 for n in range(300)] + [5000.0])])
    assert drawn is not None
    assert max(float(tick.label) for tick in drawn.ticks) < 20


def test_too_few_samples_draw_nothing() -> None:
    assert distributions([("a", "after", [1.0]), ("b", "before", [])]) is None


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_inside(low: float, width: float) -> None:
    high = low + width
    assume((high - low) / high > 1e-6)
    ticks = round_values(low, high)
    assert 2 <= len(ticks) <= 13
    assert all(low - 1e-6 * width <= tick <= high + 1e-6 * width for tick in ticks)


def test_quantile_interpolates() -> None:
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0, 0.25, 0.5, 1)] == [1.0, 1.5, 2.0, 4.0]
