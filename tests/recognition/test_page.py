"""The page of `metricjax recognize serve` in a headless Chromium: drop, see, enrol, remove."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.helpers.people import write_people

webdriver = pytest.importorskip("selenium.webdriver")
pytest.importorskip("flask")
pytest.importorskip("waitress")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium, or no driver of it"),
]
MARKUP = "<img src=x onerror=\"document.title='run'\">"
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage", "no-first-run"]
FLAGS += ["disable-background-networking", "disable-component-update", "disable-sync"]


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    from tests.helpers.serving import NOISE

    return write_people(tmp_path_factory.mktemp("people"), photographs=[4] * 4, size=(23, 28), noise=NOISE)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from tests.helpers.serving import THRESHOLD, serving, untrained

    folder = tmp_path_factory.mktemp("served")
    encoder = untrained(folder / "encoder.npz")
    with serving(encoder, folder / "staff.npz", "--threshold", THRESHOLD) as url:
        yield url


@pytest.fixture(scope="module")
def browser(address):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER, env={**os.environ, "SE_OFFLINE": "true"})
    browser = webdriver.Chrome(options, service)
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    return Page(browser)


class Page:
    """What a person does with the page, and sees on it."""

    def __init__(self, browser):
        self.browser = browser

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def texts(self, selector):
        return [found.text for found in self.all(selector)]

    def until(self, seen):
        from selenium.common import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, 20, 0.05, [StaleElementReferenceException]).until(lambda _: seen())

    def answers(self, count):
        """Once there are so many, newest first."""
        self.until(lambda: len(self.all("#answers .what")) == count)
        return self.all("#answers li")

    def enrol(self, name, *files):
        self.one("#name").send_keys(name)
        self.one("#enrol-files").send_keys("\n".join(map(str, files)))
        self.one("#enrol-button").click()
        self.until(lambda: "enrolled." in self.one("#status").text)

    def names(self):
        return self.texts("#people bdi")


def photograph(people, person, number=1):
    return people / f"Person_{person}" / f"Person_{person}_{number:04d}.png"


DROP = """
const [kind, target, bytes] = arguments;
const data = new DataTransfer();
data.items.add(new File([new Uint8Array(bytes)], "dropped.png"));
const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
return !target.dispatchEvent(event);
"""


def test_a_photograph_is_dropped_and_people_come_and_go(page, people):
    page.until(lambda: page.one("#nobody").is_displayed())
    assert "Threshold 0.930, as the server was told." in page.one("#about").text
    page.one("#ask").send_keys(str(photograph(people, 0, 3)))
    (answer,) = page.answers(1)
    assert "holds nobody; enrol somebody first" in answer.text

    page.enrol("Ada Lovelace", photograph(people, 0, 1), photograph(people, 0, 2))
    assert page.one("#status").text == "2 photographs of Ada Lovelace enrolled."
    page.until(lambda: page.names() == ["Ada Lovelace"])
    assert "2 photographs" in page.one("#people li").text and not page.one("#nobody").is_displayed()

    page.one("#ask").send_keys(f"{photograph(people, 0, 3)}\n{photograph(people, 1)}")
    stranger, ada, _ = page.answers(3)
    assert (ada.get_attribute("class"), stranger.get_attribute("class")) == ("known", "unknown")
    who, score = ada.text.splitlines()
    assert who == "Ada Lovelace" and 0.93 < float(score.removeprefix("score ").split(",")[0]) <= 1
    assert score.endswith(", threshold 0.930") and stranger.text.startswith("unknown\nscore 0.")

    dropped = page.one("#ask-drop"), list(photograph(people, 0, 4).read_bytes())
    assert page.browser.execute_script(DROP, "dragover", *dropped)
    assert "over" in page.one("#ask-drop").get_attribute("class")
    assert page.browser.execute_script(DROP, "drop", *dropped)  # and the browser does not open the file itself
    assert page.answers(4)[0].text.startswith("Ada Lovelace\n")
    assert "over" not in page.one("#ask-drop").get_attribute("class")

    page.one("#people button").click()
    assert page.one("#confirm").text.startswith("Remove Ada Lovelace?")
    page.one("#keep").click()
    assert page.names() == ["Ada Lovelace"]
    page.one("#people button").click()
    page.one("#remove").click()
    page.until(lambda: page.one("#status").text == "Ada Lovelace is removed.")
    page.until(lambda: page.names() == [])


def test_names_with_markup_are_text(page, people, tmp_path):
    file = tmp_path / "<b>&amp;.txt"
    file.write_text("no photograph")
    page.enrol(MARKUP, photograph(people, 0))
    page.until(lambda: page.names() == [MARKUP])
    page.one("#ask").send_keys(f"{photograph(people, 0)}\n{file}")
    wrong, found = page.answers(2)
    assert found.text.splitlines()[0] == MARKUP
    assert wrong.text.startswith("<b>&amp;.txt cannot be read: it is not one of BMP")
    assert not page.all("#people img, #answers b b, .what b, .who img") and page.browser.title.startswith(
        "Who is this?"
    )
    page.one("#people button").click()
    assert MARKUP in page.one("#confirm").text
    page.one("#remove").click()
    page.until(lambda: page.names() == [])
    kinds = {entry["source"] for entry in page.browser.get_log("browser")}
    assert kinds <= {"network"}  # the 422 of the file, and nothing that the policy had to stop


def test_what_goes_wrong_is_said(page, people, tmp_path):
    page.enrol("unknown", photograph(people, 0))
    assert "0 photographs of unknown enrolled. 'unknown' is not a name" in page.one("#status").text
    assert page.one("#name").get_property("value") == "unknown"  # to be put right
    page.one("#name").clear()
    large = tmp_path / "large.bmp"
    Image.fromarray(np.zeros((4000, 3000, 3), np.uint8)).save(large)
    page.one("#ask").send_keys(str(large))
    page.until(lambda: page.texts("#answers .what"))
    assert "is larger than 32 MiB" in page.one("#answers .what").text


def test_a_phone_and_a_keyboard(page, people):
    from selenium.webdriver.common.keys import Keys

    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.enrol("W" * 200, photograph(people, 0))
        page.until(lambda: page.names() == ["W" * 200])
        page.one("#ask").send_keys(str(photograph(people, 0)))
        page.answers(1)
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 320
        page.one("#people button").send_keys(Keys.ENTER)
        active = lambda: page.browser.switch_to.active_element.get_attribute("id")
        assert active() == "keep"
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        assert active() == "remove"
        page.browser.switch_to.active_element.send_keys(Keys.ENTER)
        page.until(lambda: page.names() == [])
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    for field in page.all("input"):
        assert field.accessible_name, field.get_attribute("id")
