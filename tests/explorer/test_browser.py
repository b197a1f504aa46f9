"""The page in a real browser, opened from the disk."""

import numpy as np
import pytest

from tapstudy.explorer.page import write_page
from tapstudy.explorer.prepare import prepare, prepare_pair
from tests.explorer.browsing import collect_errors, keep, open_browser

pytestmark = pytest.mark.browser

PIXEL = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


@pytest.fixture
def page(browser, page_path):
    """The page, opened at step 10."""
    yield from opened(browser, f"{page_path.as_uri()}#step=10")


@pytest.fixture
def film_page(browser, film, tmp_path):
    yield from opened(browser, write_page(prepare(film), tmp_path / "film.html").as_uri())


@pytest.fixture
def pair_page(browser, tiny, accelerated, tmp_path):
    first, second = prepare_pair(tiny, accelerated)
    yield from opened(browser, write_page(first, tmp_path / "pair.html", beside=second).as_uri())


def opened(browser, address):
    """A page; no error may have happened when the test ends, and nothing may have been asked of the net."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors = collect_errors(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#forecasts tbody tr")
    yield page
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    page.close()


def picture(page, name="map"):
    return page.locator(f"#{name}").evaluate("canvas => canvas.toDataURL()")


def over_token(page, row, column):
    """Position in the map of a token of a 14 x 14 grid."""
    box = page.locator("#map").bounding_box()
    return {"x": (column + 0.5) * box["width"] / 14, "y": (row + 0.5) * box["height"] / 14}


def shown_choice(page):
    return page.locator("#forecasts tr.chosen").evaluate_all("rows => rows.map(row => row.rowIndex - 1)")


def test_dragging_the_step_changes_the_map(page):
    assert "full step" in page.locator("#where").inner_text()
    before = picture(page)
    slider = page.locator("#step").bounding_box()
    middle = slider["y"] + slider["height"] / 2
    page.mouse.move(slider["x"] + 8 + (slider["width"] - 16) * 10 / 49, middle)
    page.mouse.down()
    page.mouse.move(slider["x"] + 8 + (slider["width"] - 16) * 16 / 49, middle, steps=6)
    page.mouse.up()
    assert page.locator("#step").input_value() == "16"
    assert "step 16" in page.locator("#where").inner_text()
    assert picture(page) != before


def test_hover_and_click_show_what_the_recording_says(page, prepared):
    page.locator("#sample").select_option(index=2)
    page.locator("#step").fill("23")
    one = prepared.isel(sample=2, context=0, step=23)
    page.locator("#map").hover(position=over_token(page, 2, 5))
    assert page.locator("#token").inner_text() == "Token in row 2, column 5 (under the pointer)"
    assert shown_choice(page) == [int(one["choice"][2 * 14 + 5])]
    cells = page.locator("#forecasts tbody tr td:nth-child(4)").all_inner_texts()
    assert [float(text) for text in cells] == pytest.approx(one["true_error"].values[33], rel=6e-3)
    hovered = picture(page, "over-steps"), picture(page, "at-step")
    page.locator("#map").click(position=over_token(page, 11, 3))
    page.mouse.move(5, 5)
    assert page.locator("#token").inner_text() == "Token in row 11, column 3"
    assert shown_choice(page) == [int(one["choice"][11 * 14 + 3])]
    assert (picture(page, "over-steps"), picture(page, "at-step")) != hovered
    keep(page, "explorer_page")


def test_the_map_has_the_colours_of_the_choices(page, prepared):
    page.locator("#step").fill("16")
    page.locator("#opacity").fill("100")
    choice = prepared["choice"].isel(sample=0, context=0, step=16).values
    colours = page.evaluate("JSON.parse(document.getElementById('data').textContent).predictors.map(p => p.colour)")
    for row, column in ((0, 0), (3, 10), (13, 13)):
        place = over_token(page, row, column)
        drawn = page.locator("#map").evaluate(PIXEL, [place["x"], place["y"]])
        colour = colours[choice[row * 14 + column]]
        np.testing.assert_allclose(drawn, [int(colour[i : i + 2], 16) for i in (1, 3, 5)], atol=1)


def test_every_control_redraws(page):
    page.locator("#step").fill("16")
    seen = {picture(page)}
    for name, option in (("sample", 2), ("context", 1)):
        page.locator(f"#{name}").select_option(index=option)
        assert picture(page) not in seen, name
        seen.add(picture(page))
    layers = page.locator("#layer option").all_inner_texts()
    assert layers[0] == "chosen predictor"
    assert len(layers) == 6  # the recording has no probe
    for name in layers[1:]:
        page.locator("#layer").select_option(label=name)
        assert name in page.locator("#legend").inner_text()
        assert picture(page) not in seen, name
        seen.add(picture(page))


def test_keys_and_play(page):
    page.locator("body").press("ArrowRight")
    assert page.locator("#step").input_value() == "11"
    page.locator("body").press("ArrowLeft")
    page.locator("body").press("ArrowLeft")
    assert page.locator("#step").input_value() == "9"
    page.locator("body").press("Shift+ArrowUp")
    assert page.locator("#token").inner_text() == "Token in row 6, column 7"
    assert page.locator("#step").input_value() == "9"
    page.locator("#play").click()
    page.locator("#where").filter(has_not_text="step 9 ").wait_for(timeout=10_000)
    page.locator("#play").click()
    assert int(page.locator("#step").input_value()) > 9
    assert page.locator("#play").inner_text().endswith("play")
    page.locator("body").press("l")
    assert page.locator("#layer").input_value() == "1"


def test_a_copied_link_opens_the_same_view(page, browser):
    """The address keeps it, and the link is the address."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#sample").select_option(index=3)
    page.locator("#layer").select_option(label="regret of the choice")
    page.locator("#step").fill("22")
    page.locator("#link").click()
    page.locator("#link").filter(has_text="copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url
    again = browser.new_page(viewport={"width": 1280, "height": 900})
    again.goto(link)
    again.wait_for_selector("#forecasts tbody tr")
    chosen = [again.locator(f"#{name}").input_value() for name in ("sample", "layer", "step")]
    assert chosen == [page.locator(f"#{name}").input_value() for name in ("sample", "layer", "step")]
    assert again.locator("#where").inner_text() == page.locator("#where").inner_text()
    assert picture(again) == picture(page)
    again.close()


def test_without_a_clipboard_the_link_is_shown(page):
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    shown = []
    page.on("dialog", lambda dialog: (shown.append(dialog.default_value), dialog.dismiss()))
    page.locator("body").press("c")
    page.locator("#link").filter(has_text="shown").wait_for()
    assert shown == [page.url]


def test_help_tells_the_keys(page):
    """It opens and closes with its key, and keeps the others from the page."""
    help = page.locator("#help")
    assert not help.is_visible()
    page.locator("body").press("?")
    assert help.is_visible()
    keep(page, "explorer_help")
    page.keyboard.press("ArrowRight")
    assert page.locator("#step").input_value() == "10"
    page.keyboard.press("?")
    assert not help.is_visible()
    page.locator("#ask").click()
    page.keyboard.press("Escape")
    assert not help.is_visible()


@pytest.mark.parametrize("which", ["page", "pair_page"])
def test_it_fits_any_window(request, which):
    page = request.getfixturevalue(which)
    for width in (360, 760, 1600):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width


def test_a_video_as_it_forms(film_page, film):
    """It opens on the step worth seeing; another frame, and another step with a preview, show another picture."""
    assert film_page.locator("#step").input_value() == str(prepare(film).attrs["opens"])
    assert film_page.locator("#picture-name").inner_text() == "expected clean image"
    seen = {picture(film_page, "picture")}
    for name, value in (("frame", 1), ("step", 0), ("step", 11)):
        film_page.locator(f"#{name}").fill(str(value))
        assert picture(film_page, "picture") not in seen
        seen.add(picture(film_page, "picture"))
    film_page.locator("#step").fill("9")
    film_page.locator("#step").fill("11")
    assert picture(film_page, "picture") in seen
    keep(film_page, "explorer_film")


def test_two_recordings_move_together(pair_page, tiny, accelerated):
    first, second = prepare_pair(tiny, accelerated)
    pair_page.locator("#sample").select_option(index=1)
    pair_page.locator("#step").fill("8")
    pair_page.locator("#map-2").click(position={"x": 5, "y": 5})
    pair_page.mouse.move(5, 5)
    for suffix, data in (("", first), ("-2", second)):
        assert pair_page.locator(f"#whose{suffix}").inner_text() == data.attrs["title"]
        assert pair_page.locator(f"#token{suffix}").inner_text() == "Token in row 0, column 0"
        rows = pair_page.locator(f"#forecasts{suffix} tr.chosen").evaluate_all(
            "rows => rows.map(row => row.rowIndex - 1)"
        )
        assert rows == [int(data["choice"].isel(sample=1, context=0, step=8, token=0))]
    maps = picture(pair_page), picture(pair_page, "map-2")
    pair_page.locator("#layer").select_option(label="true error of the choice")
    assert "true error" in pair_page.locator("#legend-2").inner_text()
    ends = [pair_page.locator(f"#legend{suffix} .ends").inner_text() for suffix in ("", "-2")]
    assert ends[0] == ends[1]
    assert all(picture(pair_page, name) != before for name, before in zip(("map", "map-2"), maps, strict=True))
    keep(pair_page, "explorer_pair")


def test_a_damaged_page_says_so(browser, page_path, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page_path.read_text().replace("DecompressionStream", "NoSuchStream"))
    page = browser.new_page()
    page.goto(broken.as_uri())
    assert "needs Chrome 80" in page.locator(".failed").inner_text()
    page.close()
