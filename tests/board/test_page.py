"""The page: complete in itself, safe with any name, and alive in a real browser."""

import base64
import io
import json
import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import Browser, installed
from imago.board.board import Board
from imago.board.page import write_page
from imago.board.pictures import WIDEST, embedded
from imago.board.records import read_record

from .conftest import MakeRun, likelihood, quality, rows

EVIL = '<script>alert("x")</script>&\'{{style}}'


class Elements(HTMLParser):
    """Every element with its attributes, and the text of every script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts[-1] += data


def nats(value: float, **protocol: Any) -> dict[str, Any]:
    return {"name": "test/nats", "value": value, "protocol": likelihood("test") | protocol}


def distance(value: float, seconds: float, calls: int, **more: Any) -> dict[str, Any]:
    protocol = quality(seconds_per_sample=seconds, nfe=calls) | more.pop("protocol", {})
    return {"name": "fd_classifier", "value": value, "protocol": protocol} | more


@pytest.fixture
def page(make_run: MakeRun, tmp_path: Path) -> Path:
    """A board of seven runs: a failed one, one that only training measured, and a name that wants to be markup."""
    seeds = {"config": {"seed": 1}}
    quick = distance(4.0, 0.01, 5, changes={"sampler": {"steps": 5}})
    near, bare = [distance(1.5, 2e-4, 1)], {"metrics": None}
    slow = distance(2.0, 0.5, 100)
    runs = [
        make_run("logs/made", evaluation=[nats(86.9)], metrics=rows([300.0, 120.0, 95.0, 87.0])),
        make_run("logs/vae-1", model="vae", evaluation=[nats(95.1, likelihood="lower_bound"), distance(3.0, 1e-4, 1)]),
        make_run("logs/vae-2", model="vae", evaluation=[nats(92.0, likelihood="lower_bound"), quick, slow], **seeds),
        make_run("logs/watched", model="row_lstm", metrics=rows([300.0, 120.0, 50.0])),
        make_run("logs/evil", model="gan", name=EVIL, config={"word": EVIL}, evaluation=near, **bare),
        make_run("logs/broken", status="failed", error="OSError: disk", metrics="", checkpoint=None, picture=None),
        make_run("logs/thresholded", binarize="threshold", evaluation=[nats(50.0)]),
    ]  # fmt: skip
    out = tmp_path / "board"
    out.mkdir()
    write_page(Board(map(read_record, runs)), out / "board.html")
    return out / "board.html"


def test_the_page_needs_nothing_but_itself(page: Path) -> None:
    elements = Elements(page.read_text())
    for tag, attributes in elements.found:
        for name in ("src", "srcset", "href", "poster", "data", "action"):
            value = attributes.get(name)
            if value is not None and not (tag == "a" and name == "href"):
                assert value.startswith("data:"), f"<{tag} {name}={value[:60]}>"
    assert "://" not in re.sub(r"http://www\.w3\.org/2000/svg", "", page.read_text())
    assert "@import" not in page.read_text()
    policy = next(a["content"] for t, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_names_are_text_and_never_markup(page: Path) -> None:
    text = page.read_text()
    elements = Elements(text)
    assert len(elements.scripts) == 2
    assert EVIL not in text
    assert [run["label"] for run in json.loads(elements.scripts[0])["runs"]].count("gan") == 1
    words = [a["data-words"] for t, a in elements.found if t == "tr" and "data-words" in a]
    assert any(EVIL in str(w) for w in words), "whole and unharmed as an attribute's value"
    assert not [t for t, a in elements.found if any(name.startswith("on") for name in a)]


def test_links_lead_from_the_page_to_the_runs(page: Path) -> None:
    elements = Elements(page.read_text())
    links = [str(a["href"]) for t, a in elements.found if t == "a" and not str(a.get("href")).startswith("#")]
    assert len(links) == 14
    assert all((page.parent / link / "config.yaml").exists() for link in links)


def test_every_number_carries_its_protocol(page: Path) -> None:
    cells = [
        a for t, a in Elements(page.read_text()).found if t == "td" and "data-value" in a and "num" in str(a["class"])
    ]
    assert len(cells) > 20
    assert all(cell.get("data-note") for cell in cells)
    (best,) = [c for c in cells if c["data-value"] == "86.9"]
    assert str(best["data-note"]).startswith("86.9; data mnist test; data fingerprint f7b1; images 10000")


def test_a_grid_that_cannot_be_read_is_named_and_the_page_still_made(make_run: MakeRun, tmp_path: Path) -> None:
    path = make_run("run")
    grid = path / "samples" / "images-0000000200.png"
    grid.write_bytes(grid.read_bytes()[:200])
    board = Board([read_record(path)])
    write_page(board, tmp_path / "board.html")
    assert board.records[0].defects == ["samples/images-0000000200.png cannot be read"]
    assert "no samples" in (tmp_path / "board.html").read_text()


@pytest.mark.parametrize(("side", "factor", "columns"), [(8, 8, 10), (32, 2, 10), (64, 1, 10), (256, 1, 10)])
def test_grids_become_small_but_stay_sharp(tmp_path: Path, side: int, factor: int, columns: int) -> None:
    """Colour noise, which compresses worst: a hundred such grids stay below 20 MB."""
    noise = np.random.default_rng(0).integers(0, 256, (8 * side, columns * side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise.repeat(factor, 0).repeat(factor, 1))
    picture.save(tmp_path / "grid.png", compress_level=0)
    address = embedded(tmp_path / "grid.png")
    assert address.startswith("data:image/")
    assert len(address) < 190_000
    with Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))) as shown:
        assert shown.width <= WIDEST
        if side <= 32:
            assert shown.size == (columns * side, 8 * side)
            assert abs(np.asarray(shown, dtype=float) - noise).mean() < 16


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of this file."""
    if installed() is None:
        pytest.skip("no Chromium on this machine: install the package chromium to test the page in a browser")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = Browser(Path(profile))
        yield opened
        opened.close()


@pytest.fixture
def at(browser: Browser, page: Path) -> Iterator[Browser]:
    """The browser with the page open; whatever the page complained of fails the test."""
    browser.complaints.clear()
    browser.open(page)
    yield browser
    assert browser.complaints == []


SHOWN_ROWS = "[...document.querySelectorAll('#board tr[data-run]')].filter((r) => r.checkVisibility())"
NAMES = f"{SHOWN_ROWS}.map((r) => r.querySelector('.run a').getAttribute('href').split('/').at(-2))"


def header(key: str) -> str:
    return f"document.querySelector('#board th[data-key={key}] button')"


def test_columns_sort_by_mouse_and_keyboard_within_their_data(at: Browser) -> None:
    assert at.ask(NAMES) == ["made", "vae-2", "vae-1", "watched", "evil", "broken", "thresholded"]
    sorts = "[...document.querySelectorAll('#board [aria-sort]')].map((h) => [h.dataset.key, h.ariaSort])"
    assert at.ask(sorts) == [["nats", "ascending"]]
    at.click(header("nats"))
    assert at.ask(NAMES) == ["vae-1", "vae-2", "made", "watched", "evil", "broken", "thresholded"], (
        "validation stays behind the test split, and what is missing last"
    )
    assert at.ask(sorts) == [["nats", "descending"]]
    at.click(header("nats"))
    assert at.ask(NAMES) == ["made", "vae-2", "vae-1", "watched", "evil", "broken", "thresholded"]
    at.ask(f"{header('fd_classifier')}.focus()")
    at.press("Enter")
    assert at.ask(NAMES)[:3] == ["evil", "vae-2", "vae-1"]
    assert at.ask(sorts) == [["fd_classifier", "ascending"]]
    at.press(" ")
    assert at.ask(NAMES)[:3] == ["vae-1", "vae-2", "evil"]
    at.click(header("model"))
    models = at.ask(f"{SHOWN_ROWS}.slice(0, 6).map((r) => r.querySelector('.run').dataset.value)")
    assert models == sorted(models)


def test_words_and_data_filter_rows_cards_and_curves(at: Browser) -> None:
    at.ask("document.getElementById('filter').focus()")
    for letter in "vae comp":
        at.press(letter)
    assert at.ask(NAMES) == ["vae-2", "vae-1"]
    assert at.ask("document.getElementById('count').textContent.trim()") == "2 of 7 runs"
    cards = "[...document.querySelectorAll('.card')].filter((c) => c.checkVisibility()).length"
    assert at.ask(cards) == 2
    assert at.ask("document.querySelectorAll('#legend button').length") == 2
    at.ask(
        "(() => { const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input')) })()"
    )
    at.click("document.querySelectorAll('.chip')[2]")
    assert at.ask(NAMES) == ["thresholded"]
    assert at.ask(cards) == 1
    assert at.ask("document.getElementById('curve-group').selectedOptions[0].textContent").startswith("mnist, 28×28")
    at.click("document.querySelectorAll('.chip')[0]")
    assert len(at.ask(NAMES)) == 7


def test_hovering_tells_the_protocol_and_the_points(at: Browser) -> None:
    tip = "document.getElementById('tip')"
    assert at.ask(f"{tip}.hidden")
    at.hover("document.querySelector('#board td[data-value=\"86.9\"]')")
    assert at.ask(f"{tip}.hidden") is False
    assert "data fingerprint f7b1" in at.ask(f"{tip}.innerText")
    at.hover("document.querySelectorAll('#over-images circle.dot')[1]")
    told = at.ask(f"{tip}.innerText")
    assert re.search(r"val/nats [\d.]+\s+\d+ images, [\d.]+ s", told), told
    box = at.ask(f"{tip}.getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= 1400
    assert at.ask("document.querySelectorAll('#over-seconds .lit').length") > 0, "the same run lights up in both charts"
    at.ask("document.querySelector('#over-seconds svg').focus()")
    at.press("ArrowRight")
    first = at.ask(f"{tip}.innerText")
    at.press("ArrowRight")
    assert at.ask(f"{tip}.innerText") != first, "and points can be reached by keyboard"
    at.press("Escape")
    assert at.ask(f"{tip}.hidden")


def test_curves_go_over_images_and_over_seconds(at: Browser) -> None:
    for chart in ("over-images", "over-seconds"):
        assert at.ask(f"document.querySelectorAll('#{chart} path.line').length") == 4
    options = "[...document.getElementById('curve-metric').options].map((o) => o.value)"
    assert set(at.ask(options)) == {"val/nats", "val/bpd", "train/nats"}
    at.click("document.querySelector('#legend button')")
    assert at.ask("document.querySelectorAll('#over-images path.line').length") == 3
    assert at.ask("document.querySelectorAll('#legend [aria-pressed=false]').length") == 1
    at.click("document.getElementById('curve-logx')")
    assert at.ask("document.querySelectorAll('#over-images path.line').length") == 3
    assert "NaN" not in at.ask("document.querySelector('.pair').innerHTML")


def test_curves_of_runs_that_the_processors_seconds_limit_go_over_these(
    browser: Browser, make_run: MakeRun, tmp_path: Path
) -> None:
    """The title of the axis says so, and where others are shown too it names both clocks."""
    table = rows([300.0, 120.0, 95.0]).splitlines()
    table = [f"{line},{name}" for line, name in zip(table, ["time/training_cpu_seconds", *"0123456"], strict=False)]
    limited = make_run("limited", metrics="\n".join([*table, ""]), config={"max_cpu_seconds": 9})
    for runs, title in (
        ([limited], "training seconds of the processor"),
        ([limited, make_run("timed")], "training seconds of the processor or by the clock"),
    ):
        write_page(Board(map(read_record, runs)), tmp_path / "board.html")
        browser.open(tmp_path / "board.html")
        assert title in browser.ask("document.getElementById('over-seconds').textContent")


def test_quality_stands_against_the_time_of_a_sample(at: Browser) -> None:
    choose = (
        "(() => {{ const s = document.getElementById('{}'); s.value = '{}'; s.dispatchEvent(new Event('change')) }})()"
    )
    assert at.ask("document.getElementById('cost-x').value") == "seconds_per_sample"
    at.ask(choose.format("cost-y", "fd_classifier"))
    assert at.ask("document.querySelectorAll('#cost circle.dot').length") == 4, "one was sampled in two ways"
    assert at.ask("document.querySelectorAll('#cost path.line').length") == 1
    at.hover("document.querySelectorAll('#cost circle.dot')[0]")
    assert "FD classifier" in at.ask("document.getElementById('tip').innerText")
    at.ask(choose.format("cost-y", "precision"))
    assert "No run shown here" in at.ask("document.getElementById('cost').innerText")


def test_selected_runs_are_seen_alone_and_their_settings_compared(at: Browser) -> None:
    tables = "[...document.querySelectorAll('#settings .set')].map((s) => s.innerText.replace(/\\s+/g, ' '))"
    (same,) = [t for t in at.ask(tables) if t.startswith("vae on mnist")]
    assert "seed" in same
    assert "optimizer" not in same, "what is equal is left out"
    for name in ("made", "evil"):
        row = at.ask(NAMES).index(name)
        at.click(f"{SHOWN_ROWS}[{row}].querySelector('input')")
    assert len(at.ask(NAMES)) == 7, "the table keeps them all"
    assert at.ask("[...document.querySelectorAll('.card')].filter((c) => c.checkVisibility()).length") == 2
    (between,) = at.ask(tables)
    assert "MADE" in between
    assert "GAN" in between
    at.click("document.getElementById('clear')")
    assert at.ask("document.querySelectorAll('#board input:checked').length") == 0
    assert at.ask("document.getElementById('clear').hidden")


@pytest.fixture
def sweep(browser: Browser, make_run: MakeRun, tmp_path: Path) -> Iterator[Browser]:
    """The page of a sweep of GANs over learning rates and seeds, which have no likelihood, and of a VAE."""
    runs = []
    for lr in ("0.001", "0.01"):
        for seed in (1, 2, 20):
            varied = {"model.optimizer.net.lr": lr, "model/objective": "hinge", "seed": str(seed)}
            told = {
                "sweep": {"folder": "s", "overrides": [], "varied": varied},
                "notices": ["few images"],
                "seed": seed,
            }
            table = (
                rows([9.0])
                .replace("val/nats", "val/fd_x")
                .replace("val/bpd", "val/kd_x")
                .replace("train/nats", "train/y")
            )
            name = f"gan-mnist lr={lr} seed={seed}"
            node = {"_target_": "imago.models.gan.GAN", "optimizer": {"net": {"lr": float(lr)}}}
            config = {"seed": seed, "model": node}
            runs.append(make_run(f"s/{lr}-{seed}", model="gan", name=name, config=config, summary=told, metrics=table))
    runs.append(make_run("vae", model="vae"))
    write_page(Board(map(read_record, runs)), tmp_path / "board.html")
    browser.complaints.clear()
    browser.open(tmp_path / "board.html")
    yield browser
    assert browser.complaints == []


def test_runs_are_filtered_by_their_settings(sweep: Browser) -> None:
    count = "document.getElementById('count').textContent.trim()"
    for words, left in {
        "seed=2": 2,
        "lr=0.01 SEED=20": 1,
        "lr=": 7,
        "objective=hinge": 6,
        "lr=0": 0,
        "dropout=": 0,
    }.items():
        sweep.ask(f"(() => {{ const f = byId('filter'); f.value = '{words}'; f.dispatchEvent(new Event('input')) }})()")
        assert sweep.ask(count) == f"{left} of 7 runs", words
    sweep.ask("(() => { const f = byId('filter'); f.value = 'gan'; f.dispatchEvent(new Event('input')) })()")
    one = "[...document.querySelectorAll('.by')].find((b) => b.dataset.word.endsWith('lr=0.01') && b.checkVisibility())"
    sweep.click(one)
    assert sweep.ask(count) == "3 of 7 runs", "a click on a value asks for it"
    sweep.click(one)
    assert sweep.ask(count) == "6 of 7 runs", "and a second one takes it back"


def test_pinned_columns_stay_where_they_can_be_seen(sweep: Browser) -> None:
    keys = "[...document.querySelectorAll('#board thead th')].map((h) => h.dataset.key)"
    before = sweep.ask(keys)
    sweep.click("document.querySelector('#board th[data-key=status] .pin')")
    sweep.click("document.querySelector('#board th[data-key=nfe] .pin')")
    assert sweep.ask(keys)[:3] == ["model", "status", "nfe"]
    sweep.ask("document.querySelector('.scroll.board').scrollLeft = 400")
    edges = [
        sweep.ask(f"document.querySelector('#board tbody tr[data-run]').cells[{k}].getBoundingClientRect().left")
        for k in range(4)
    ]
    assert edges == sorted(edges), edges
    assert edges[3] < 700
    sweep.click(header("seed"))
    buttons = "[...document.querySelectorAll('#board .by')].filter((b) => b.dataset.word.startsWith('seed='))"
    seeds = sweep.ask(f"{buttons}.map((b) => b.textContent)")
    assert seeds == ["0", "1", "1", "2", "2", "20", "20"], "columns sort as before, numbers as numbers"
    for key in ("status", "nfe"):
        sweep.click(f"document.querySelector('#board th[data-key={key}] .pin')")
    assert sweep.ask(keys) == before


def test_means_notices_and_the_curve_that_most_runs_have(sweep: Browser) -> None:
    means = "[...document.querySelectorAll('.means tbody tr')].map((r) => r.innerText.replace(/\\s+/g, ' '))"
    first, second = sweep.ask(means)
    assert first.startswith("gan-mnist lr=0.001 3 seeds 0.001 "), first
    assert second.startswith("gan-mnist lr=0.01 3 seeds 0.01 ")
    told = "document.querySelector('.defects').textContent.replace(/\\s+/g, ' ')"
    assert re.search(r"6 runs, such as \S+ few images", sweep.ask(told))
    assert sweep.ask("document.getElementById('curve-metric').value") == "val/fd_x"


def test_numbers_with_a_curve_come_before_those_with_a_point(
    browser: Browser, make_run: MakeRun, tmp_path: Path
) -> None:
    """Distances that were measured once, at the end, of more runs than have a likelihood."""
    head = "images_seen,updates,time/training_seconds,val/nats,val/fd_x\n"
    both, distance = "100,1,1.0,90.0,\n200,2,2.0,80.0,5.0\n", "200,2,2.0,,5.0\n"
    runs = [make_run(f"run-{k}", metrics=head + (distance if k == 2 else both)) for k in range(3)]
    write_page(Board(map(read_record, runs)), tmp_path / "board.html")
    browser.open(tmp_path / "board.html")
    assert browser.ask("document.getElementById('curve-metric').value") == "val/nats"


def test_grids_can_be_enlarged_and_numbers_be_opened(at: Browser) -> None:
    at.click("document.querySelector('.zoom')")
    assert at.ask("document.getElementById('enlarged').open")
    assert at.ask("document.querySelector('#enlarged img').naturalWidth") == 582
    at.press("Escape")
    assert at.ask("document.getElementById('enlarged').open") is False
    at.click("document.querySelector('#board a[href^=\"#run-\"]')")
    assert at.ask("document.querySelector('#run-0').open")


def test_a_telephone_shows_it_without_scrolling_sideways(browser: Browser, page: Path) -> None:
    browser.complaints.clear()
    browser.open(page, width=390, height=844, touch=True)
    assert browser.ask("innerWidth") == 390
    assert browser.ask("document.documentElement.scrollWidth") == 390
    wide = "[...document.querySelectorAll('main > *, main > section > *')].filter((e) => e.offsetWidth > 390).length"
    assert browser.ask(wide) == 0
    board = "document.querySelector('.scroll.board')"
    assert browser.ask(f"{board}.scrollWidth > {board}.clientWidth"), "the table scrolls inside itself"
    browser.click("document.querySelector('#board td[data-value=\"86.9\"]')")
    assert browser.ask("document.getElementById('tip').hidden") is False, "a tap tells what hovering does"
    box = browser.ask("document.getElementById('tip').getBoundingClientRect().toJSON()")
    assert (box["left"] >= 0, box["right"] <= 390) == (True, True)
    assert browser.complaints == []


CONTRAST = """
(() => {
  const paint = (css) => {
    const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    c.fillStyle = css; c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  };
  const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
  const root = getComputedStyle(document.documentElement);
  const value = (name) => light(paint(root.getPropertyValue(name).trim()));
  const ratio = (a, b) => {
    const [x, y] = [value(a), value(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const found = {};
  for (const text of ['--ink', '--soft', '--accent']) {
    for (const on of ['--paper', '--card']) found[text + on] = ratio(text, on);
  }
  found.best = ratio('--best', '--best-tint');
  found.warn = ratio('--warn', '--warn-tint');
  found.bad = ratio('--bad', '--card');
  for (let k = 0; k < 12; k++) found['--c' + k] = ratio('--c' + k, '--card');
  return [found, value('--paper')];
})()
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_can_be_told_apart_from_what_they_lie_on(browser: Browser, page: Path, dark: bool) -> None:
    """WCAG 2: 4.5 for text, 3 for lines and points; and the page follows the system's choice of dark or light."""
    browser.open(page, dark=dark)
    ratios, paper = browser.ask(CONTRAST)
    assert (paper < 0.05) == dark
    low = {
        name: ratio
        for name, ratio in ratios.items()
        if ratio < (3 if name.startswith("--c") and name[3:].isdigit() else 4.5)
    }
    assert not low
    background = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 22, 27)" if dark else "rgb(251, 250, 247)")


def test_pictures_are_there_before_one_scrolls(at: Browser) -> None:
    assert (
        at.ask("[...document.querySelectorAll('.card img')].map((i) => i.complete && i.naturalWidth > 0)") == [True] * 6
    )


def test_costs_in_seconds_have_units_on_the_axis(at: Browser) -> None:
    written = "[...document.querySelectorAll('#cost text')].map((t) => t.textContent)"
    assert {"1 ms", "100 ms"} <= set(at.ask(written))


def test_runs_of_very_different_lengths_are_drawn_over_powers_of_ten(
    browser: Browser, make_run: MakeRun, tmp_path: Path
) -> None:
    browser.complaints.clear()
    nothing = {"evaluation": None, "picture": None}
    runs = [make_run("a", metrics=rows([300.0, 120.0, 99.0]), **nothing),
            make_run("b", metrics=rows([9.0] * 40), **nothing)]  # fmt: skip
    dots = [make_run("c", metrics=rows([9.0, 8.0]), **nothing), make_run("d", metrics=rows([7.0, 6.0]), **nothing)]
    for chosen, expected in ((runs, True), (runs[1:], False), ([*runs, *dots], False)):
        write_page(Board(map(read_record, chosen)), tmp_path / "board.html")
        browser.open(tmp_path / "board.html")
        assert browser.ask("document.getElementById('curve-logx').checked") is expected
    assert browser.complaints == []


def test_leaders_of_different_occasions_say_each_what_they_are(make_run: MakeRun, tmp_path: Path) -> None:
    def measured(value: float) -> list[dict[str, object]]:
        return [{"name": "fid", "value": value, "protocol": quality()}]

    evaluated = [make_run(name, metrics=None, evaluation=measured(value)) for name, value in (("a", 2.0), ("b", 3.0))]
    trained = make_run("c", metrics=None, summary={"metrics": {"val/fid": {"value": 1.0, "protocol": quality()}}})
    pages = {}
    for chosen in ((*evaluated,), (*evaluated, trained)):
        write_page(Board(map(read_record, chosen)), tmp_path / "board.html")
        text = (tmp_path / "board.html").read_text()
        pages[len(chosen)] = text[text.index('<div class="lists">') : text.index("</section>")]
    assert pages[2].count("<small>eval 10k</small>") == 1 == pages[2].count("<small>")
    assert (pages[3].count("<small>eval 10k</small>"), pages[3].count("<small>val 10k</small>")) == (2, 1)


def test_runs_stand_in_the_order_of_the_distance_that_all_have(make_run: MakeRun, tmp_path: Path) -> None:
    """That of infinitely many samples, which evaluate.py adds, comes after it, and is called so below the samples."""
    infinite = distance(4.9, 0.01, 1) | {"name": "fd_infinity_classifier"}
    runs = [
        make_run("evaluated", model="gan", metrics=None, evaluation=[infinite, distance(5.0, 0.01, 1)]),
        make_run("better", model="gan", metrics=None, evaluation=[distance(3.0, 0.01, 1)]),
    ]
    board = Board(map(read_record, runs))
    assert [row.record.path.name for row in board.groups[0].rows] == ["better", "evaluated"]
    write_page(board, tmp_path / "board.html")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", (tmp_path / "board.html").read_text(), re.DOTALL)
    told = [re.findall(r"[\d.]+ FD[^<\n]*", caption) for caption in captions if "FD" in caption]
    assert told == [["3 FD classifier"], ["4.9 FD∞ classifier", "5 FD classifier"]]


def test_of_a_tall_grid_the_page_carries_the_first_rows(tmp_path: Path) -> None:
    tall = Image.fromarray(np.arange(90, dtype=np.uint8)[:, None].repeat(30, 1))
    tall.save(tmp_path / "grid.png")
    content = base64.b64decode(embedded(tmp_path / "grid.png").partition(",")[2])
    with Image.open(io.BytesIO(content)) as carried:
        assert carried.size == (30, 30)
        assert (np.asarray(carried)[:, 0] == np.arange(30)).all()


def test_a_search_is_shown_with_its_trials(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("s/0-vae"), make_run("s/1-vae"), make_run("t/0-vae")]
    Image.effect_noise((1400, 900), 60).save(tmp_path / "s/search.png")
    (tmp_path / "t/search.png").write_text("no picture")
    write_page(Board(map(read_record, runs)), tmp_path / "board.html")
    elements = Elements((tmp_path / "board.html").read_text())
    shown = [a for t, a in elements.found if t == "img" and str(a.get("alt")).endswith("of the search s")]
    assert len(shown) == 1
    assert str(shown[0]["src"]).startswith("data:image/jpeg")
