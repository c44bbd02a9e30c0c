"""The page: complete, self-contained, and without anything in it that a name could run."""

import html.parser
import re

import numpy as np
import pytest

import metricjax as mj

EVIL = "<script>alert('x')</script>"
SECTIONS = [
    "Numbers",
    "Verification",
    "Retrieval",
    "Identification",
    "Neighbours",
    "Hardest pairs",
    "Maps",
    "Similarities, ordered by person",
]
VOID = ("meta", "img", "br")


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text between them; tags must be closed."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.texts, self.open = [], [], []
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag):
        return [text for inside, text in self.texts if inside == tag]

    def images(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 3)
    z = (rng.normal(size=(6, 4))[labels] + 0.5 * rng.normal(size=(18, 4))).astype(np.float32)
    names = [EVIL, "Bo $\\frac", "Cem & Co", "Dora", '"E"', "F"]
    return z, labels, rng.integers(0, 256, (18, 8, 6, 1), dtype=np.uint8), names


@pytest.fixture(scope="module")
def written(people, tmp_path_factory):
    """A report with everything in it, and what it returns. Bands and health are stand-ins."""
    z, labels, images, names = people
    path = tmp_path_factory.mktemp("report") / "new" / "page.html"
    calls = []

    def roc_bands(embeddings, labels, fars, **options):
        calls.append(options)
        fars = np.asarray(fars)
        return mj.metrics.Bands(fars=fars, lower=fars * 0, upper=np.minimum(fars + 0.5, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mj.metrics, "roc_bands", roc_bands, raising=False)
        patch.setattr(
            mj.metrics, "embedding_health", lambda z, y, k: {"effective_rank": 2.5, "alignment": np.nan}, raising=False
        )
        numbers = mj.plots.report(
            path,
            z,
            labels,
            images=images,
            people=names,
            title=EVIL,
            fars=(0.1, 0.001),
            compare={"one number": mj.metrics.pair_scores(z[:, :1], labels)},
            notes={"accuracy <b>": 0.25, "Protocol": "ten <i>folds</i>"},
            seed=3,
        )
    return Page(path), numbers, calls


def test_every_section_is_there(written):
    page, _, _ = written
    assert page.of("h2") == SECTIONS
    assert not [tag for tag, attrs in page.tags if attrs.get("class") == "why"]
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == [f"#{attrs['id']}" for tag, attrs in page.tags if tag == "section"]
    assert len(page.images()) >= 10  # ROC, DET, histograms, recall, precision, CMC, neighbours, pairs, map, matrix
    assert all(len(image["alt"]) > 10 for image in page.images())


def test_nothing_is_fetched_and_nothing_runs(written):
    page, _, _ = written
    assert all(
        image["src"].startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for image in page.images()
    )
    assert not re.search(r"https?://|\burl\(|@import", page.source)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    policy = next(attrs["content"] for tag, attrs in page.tags if "http-equiv" in attrs)
    assert "default-src 'none'" in policy


def test_names_are_text(written):
    page, _, _ = written
    assert EVIL not in page.source
    assert page.of("title") == [EVIL] == page.of("h1")
    cells = page.of("td")
    assert EVIL in cells or "Cem & Co" in cells or '"E"' in cells  # among the hardest pairs
    assert "accuracy <b>" in cells
    assert "Protocol: ten <i>folds</i>." in page.of("p")


def test_numbers_are_those_of_the_metrics(written, people):
    page, numbers, _ = written
    z, labels, _, _ = people
    curve = mj.metrics.pair_scores(z, labels).roc
    found = mj.metrics.retrieval(z, labels, ks=(1, 5))
    assert numbers["EER"] == curve.equal_error_rate()
    assert numbers["TAR@FAR=0.1"] == curve.tar_at_far(0.1)
    assert numbers["TAR@FAR=0.001"] is None  # 135 pairs of strangers cannot tell
    assert (numbers["genuine pairs"], numbers["impostor pairs"]) == (18, 135)
    assert numbers["recall@1"] == found["recall@1"]
    assert numbers["MAP@R"] == found["map@r"]
    assert numbers["accuracy <b>"] == 0.25
    assert "needs 1,000 pairs of strangers; there are 135" in page.of("td")
    assert f"{numbers['EER']:.4f}" in page.of("td")


def test_identification_enrols_every_other_person(written, people):
    _, numbers, _ = written
    z, labels, _, _ = people
    gallery = np.array([0, 6, 12])
    queries = np.setdiff1d(np.arange(18), gallery)
    found = mj.metrics.identification(z[queries], labels[queries], z[gallery], labels[gallery])
    assert (found.mated, found.non_mated) == (6, 9)
    assert numbers["enrolled people"] == 3
    assert (numbers["mated searches"], numbers["non-mated searches"]) == (6, 9)
    assert numbers["rank-1 identification"] == found.cmc((1,))["rank-1"]
    assert numbers["DIR@FPIR=0.1"] is None  # 9 searches cannot tell


def test_bands_and_health_are_asked_for_once(written):
    page, numbers, calls = written
    assert calls == [{"resamples": 200, "seed": 3, "similarity": mj.similarities.cosine}]
    assert (numbers["TAR@FAR=0.1 lower"], numbers["TAR@FAR=0.1 upper"]) == (0, pytest.approx(0.6))
    assert "0.0000 to 0.6000" in page.of("td")
    assert numbers["effective rank"] == 2.5
    assert numbers["alignment"] is None


def test_what_cannot_be_told_is_left_out_with_a_sentence(people, tmp_path):
    z, labels, _, _ = people
    strangers = mj.plots.report(tmp_path / "strangers.html", z[::3], labels[::3], resamples=0)
    page = Page(tmp_path / "strangers.html")
    assert page.of("h2") == SECTIONS
    why = [text for text in page.of("p") if text.startswith("Left out")]
    assert why == [
        "Left out: nobody has two photographs, so no pair is of the same person.",
        "Left out: nobody has two photographs, so there is nothing to find.",
        "Left out: it enrols every other person with two photographs or more, of whom there are fewer than three.",
        "Left out: no images were given.",
    ]
    assert "EER" not in strangers
    one = mj.plots.report(tmp_path / "one.html", z[:3], labels[:3], resamples=0)
    assert "Left out: there is one person only, so no pair of different people." in Page(tmp_path / "one.html").of("p")
    assert one["recall@1"] == 1


def test_a_failed_report_leaves_the_old_one(people, tmp_path, monkeypatch):
    z, labels, images, names = people
    path = tmp_path / "page.html"
    path.write_text("old")
    wrong = {
        "people has 5 names": {"people": names[:5]},
        r"images has shape \(17, 8, 6, 1\); wanted \[18": {"images": images[:17]},
        r"fars is \(0,\)": {"fars": (0,)},
        "compare has an entry 'embeddings'": {"compare": {"embeddings": mj.metrics.pair_scores(z, labels)}},
    }
    for message, options in wrong.items():
        with pytest.raises(ValueError, match=message):
            mj.plots.report(path, z, labels, **options)
    with pytest.raises(ValueError, match="embeddings holds NaN"):
        mj.plots.report(path, np.where(labels[:, None] == 1, np.float32(np.nan), z), labels)
    with pytest.raises(ValueError, match="2 rows; wanted at least 3 for a report"):
        mj.plots.report(path, z[:2], labels[:2])
    with pytest.raises(IsADirectoryError, match="is a folder"):
        mj.plots.report(tmp_path, z, labels)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError, match="disk is full"):
        mj.plots.report(path, z[:3], labels[:3], resamples=0)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_any_name_survives_the_report(people, tmp_path):
    z, labels, images, _ = people
    names = ["Ren\udce9", "\u202e\0\x1b[2J", "日本", "_x", "$\\frac", EVIL]
    notes = {"Ren\udce9 accuracy": 0.5, "Note": "of \udcff\n<b>"}
    compare = {"Ren\udce9": mj.metrics.pair_scores(z, labels)}
    options = {"notes": notes, "compare": compare, "title": names[0] + names[1], "resamples": 0}
    numbers = mj.plots.report(tmp_path / "page.html", z, labels, images=images, people=names, **options)
    page = Page(tmp_path / "page.html")
    assert page.of("title") == [r"Ren\xe9\u202e\x00\x1b[2J"]
    cells = page.of("td")
    assert r"Ren\xe9 accuracy" in cells
    assert {r"Ren\xe9", "日本", "_x", "$\\frac", EVIL} & set(cells)
    assert r"Note: of \xff\n<b>." in page.of("p")
    assert numbers["Ren\udce9 accuracy"] == 0.5
