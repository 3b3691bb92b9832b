"""The pages in a real browser: colour schemes, widths, clicks, and what is found in the graph."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sparsecc.report.html import inspect_page
from tests.test_report import PAGES, result


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("needs a headless browser: install chromium")
    return found


def browse(folder: Path, page: str, *options: str) -> str:
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *options]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder / 'profile'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_screenshot_follows_the_colour_scheme(name: str, dark: bool, tmp_path: Path) -> None:
    from PIL import Image

    shot = tmp_path / "page.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(tmp_path, PAGES[name](result(name)), "--window-size=1100,1600", scheme, f"--screenshot={shot}")
    with Image.open(shot) as image:
        grey = image.convert("L")
        assert grey.size == (1100, 1600)
        paper = grey.getpixel((4, 4))
        assert isinstance(paper, int)
        assert paper < 60 if dark else paper > 230
        shades = grey.getcolors(256) or []
        drawn = sum(number for number, shade in shades if shade != paper) / (1100 * 1600)
        assert 0.02 < drawn < 0.9


MEASURE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".stage") &&
  e.getBoundingClientRect().right > innerWidth + 1);
const scroll = document.documentElement.scrollWidth - innerWidth;
document.title = JSON.stringify({wide: wide.length, scroll});
</script></body>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1100])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_sticks_out(name: str, width: int, tmp_path: Path) -> None:
    page = PAGES[name](result(name)).replace("</body>", MEASURE)
    dom = browse(tmp_path, page, f"--window-size={width},900", "--dump-dom")
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    assert json.loads(found[1]) == {"wide": 0, "scroll": 0}


CLICK = """<script>
const node = [...document.querySelectorAll(".node")].find(n => n.dataset.groups);
node.dispatchEvent(new MouseEvent("click", {bubbles: true}));
const on = document.querySelectorAll(".node.on").length, rows = document.querySelectorAll("tr.on").length;
document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
document.title = JSON.stringify([on, rows, document.querySelectorAll(".on").length]);
</script></body>"""


@pytest.mark.slow
def test_a_click_shows_a_group_and_escape_lets_go(tmp_path: Path) -> None:
    dom = browse(tmp_path, inspect_page(result("inspect")).replace("</body>", CLICK), "--dump-dom")
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    on, rows, left = json.loads(found[1])
    assert on >= 2
    assert rows >= 1
    assert left == 0


FIND = """<script>
const find = document.getElementById("find"), graph = document.getElementById("graph");
const type = text => { find.value = text; find.dispatchEvent(new Event("input")); };
const rows = () => [...document.querySelectorAll("tr[data-group]")].filter(r => !r.hidden).length;
const hit = () => document.querySelectorAll(".node.found").length;
const here = () => document.querySelector(".node.here title").textContent;
const all = rows();
type("WORD");
const first = [hit(), here(), rows()];
find.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}));
const second = here();
type("no such thing");
const none = [hit(), rows()];
document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
const wide = graph.getBoundingClientRect().width;
document.getElementById("in").click();
const wider = graph.getBoundingClientRect().width;
document.getElementById("fit").click();
const fits = graph.getBoundingClientRect().width <= document.querySelector(".stage").clientWidth;
const left = [hit(), rows(), find.value];
document.title = JSON.stringify({first, second, none, all, left, grew: wider / wide, fits});
</script></body>"""


@pytest.mark.slow
def test_nodes_are_found_and_the_graph_grows(tmp_path: Path) -> None:
    page = inspect_page(result("inspect")).replace("</body>", FIND.replace("WORD", "conv conv2d_"))
    seen = re.search(r"<title>(.*?)</title>", browse(tmp_path, page, "--dump-dom", "--window-size=500,900"))
    assert seen is not None
    found = json.loads(html.unescape(seen[1]))
    number, first, shown = found["first"]
    assert number >= 2
    assert "conv2d_" in first
    assert "conv2d_" in found["second"] != first
    assert 1 <= shown < found["all"]
    assert found["none"] == [0, 0]
    assert found["left"] == [0, found["all"], ""]
    assert found["grew"] == pytest.approx(1.4, rel=0.01)
    assert found["fits"]
