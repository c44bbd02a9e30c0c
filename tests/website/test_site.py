"""The site: it builds without a warning, has a page for every public name, and takes nothing from elsewhere."""

import html.parser
import inspect
import os
import pathlib
import re
import subprocess
import sys
import zlib

import pytest

import metricjax as mj
from metricjax.losses.catalogue import CATALOGUE
from website.pictures import BLANK

ROOT = pathlib.Path(__file__).parents[2]
ROOMS = {name: getattr(mj, name) for name in dir(mj) if inspect.ismodule(getattr(mj, name))}
PUBLIC = {f"metricjax.{room}.{name}" for room, module in ROOMS.items() for name in module.__all__}
PUBLIC |= {f"metricjax.{name}" for name in dir(mj) if not name.startswith("_") and name not in ROOMS}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", BLANK: "1"}
    command = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
    return folder


class Loaded(html.parser.HTMLParser):
    """Addresses of what a page loads by itself; links are not."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        links = tag == "link" and values.get("rel") not in ("canonical", "next", "prev")
        if tag in ("img", "script", "iframe", "source") or links:
            self.found += [values[key] for key in ("src", "href") if values.get(key)]


def test_every_public_name_has_a_place(site):
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]).decode().splitlines()
    assert PUBLIC - {line.split(" ")[0] for line in lines} == set()


def test_every_loss_has_a_page_with_a_picture(site):
    for name in CATALOGUE:
        text = (site / "losses" / f"{name}.html").read_text()
        assert re.search(r'<img [^>]*src="[^"]*pictures/loss-', text), name


def test_nothing_is_loaded_from_elsewhere(site):
    for path in set(site.rglob("*.html")) - {site / "404.html"}:  # which a server shows, at any address
        for address in Loaded(path.read_text()).found:
            assert not re.match(r"(https?:)?//", address), (path.name, address)
            assert address.startswith(("data:", "#")) or (path.parent / address.split("?")[0].split("#")[0]).exists(), (
                path.name,
                address,
            )
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", path.read_text()), path.name
