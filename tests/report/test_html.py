"""report.html: one file that holds everything, and whose words are escaped."""

import re
from html.parser import HTMLParser

import pytest

from tests.report.cases import ERROR, compressing, result, serving, sparse, written
from trimtab.report import build_report
from trimtab.report.load import load_jobs
from trimtab.report.pages import inline
from trimtab.report.table import main_table

VOID = {"meta", "br", "wbr", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


ODD = "odd <b>&amp;</b> `|` **x** $_^/日本"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sweep")
    jobs = [
        result("baseline"),
        sparse(serving(result("larosa", (1.5, 1.4, 1.6)), (2.0, 1.9, 2.1))),
        compressing("adaptivocab", -0.03, -0.01),
        result("all", (1.9, 1.8, 2.0), methods=("adaptivocab", "larosa")),
        result(ODD, methods=("odd",)),
        {**ERROR, "message": "<script>alert(1)</script>"},
    ]
    return (build_report(written(folder, jobs)).parent / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_it_is_well_formed_and_its_ids_are_its_own(page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_it_loads_nothing_from_anywhere(text, page):
    targets = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "data")
    ]
    assert all(target and target.startswith("#") for target in targets)
    assert not page.all("link")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_every_plot_is_inline_with_its_words_and_its_numbers_below(text, page):
    pictures = page.all("svg")
    assert len(pictures) > 20
    assert all(one["role"] == "img" and one["aria-label"] for one in pictures)
    figures = text.split("<figure>")[1:]
    assert len(figures) == 10
    assert all("<svg" in one and "<details><summary>The numbers" in one for one in figures)
    assert "Fastest: all, 1.90 times the unmodified model" in text
    assert "on A CPU, 2 threads" in text


def test_its_colours_are_the_page_s_in_light_and_dark(text):
    assert "prefers-color-scheme: dark" in text
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    named = set(re.findall(r"var\(--(\w+)\)", drawn))
    assert {"ink", "accent", "paper"} <= named
    assert all(f"--{name}:" in text for name in named)


def test_every_label_and_message_is_there_and_escaped(page):
    words = "".join(page.words)
    for label in ("baseline", "larosa", "adaptivocab", "all", "broken"):
        assert label in words
    assert "<b>&amp;</b>" in words  # of the odd label, as text
    assert "<script>alert(1)</script>" in words
    assert len(page.all("script")) == 1
    assert not page.all("b")


def test_rows_sort_by_numbers(text):
    row = text[text.index('<th scope="row" data-sort="larosa">') :].partition("</tr>")[0]
    assert '<td data-sort="1.5">1.500 [1.400, 1.600]</td>' in row
    assert "aria-sort" in text


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("a `b` **c**", "a <code>b</code> <strong>c</strong>"),
        ("`` x`y `` & <z>", "<code>x`y</code> &amp; &lt;z&gt;"),
        ("**`a`**: b", "<strong><code>a</code></strong>: b"),
        ("a \\| b", "a | b"),
    ],
)
def test_marks_of_texts_become_tags(written, shown):
    assert inline(written) == shown


def test_a_table_is_explained_above_and_a_wide_one_says_that_it_scrolls(text):
    for title, wide in (("Serving", True), ("Shorter prompts", False), ("All figures", True)):
        part = text[text.index(f"<h2>{title}") :].partition("</table>")[0]
        hint = re.search(r'<p class="hint"( hidden)?>\d+ columns: scroll sideways', part)
        assert hint is not None
        assert (hint[1] is None) == wide
        if title != "All figures":
            assert "<p>" in part
    assert text.index("<code>candidate</code> is the stack; the others") < text.index(
        ">padded</td>"
    )


def test_whatever_is_wider_than_the_page_says_so(text, page):
    hints = [one for one in page.all("p") if one.get("class") == "hint"]
    regions = [one for one in page.all("div") if one.get("class") == "scroll"]
    assert len(hints) == len(regions)
    assert "scrollWidth <= target.clientWidth" in text


def test_columns_of_words_are_told_from_columns_of_numbers(tmp_path):
    build_report(written(tmp_path, [result("baseline"), result("larosa"), ERROR]))
    page = Page((tmp_path / "report" / "report.html").read_text())
    heads = [one.get("class") for one in page.all("th") if one.get("scope") == "col"]
    table = main_table(load_jobs(tmp_path))
    words = [head for head, kind in zip(table.heads, heads, strict=False) if kind == "words"]
    assert words == ["stack", "verdict"]
    failed = [one for one in page.all("td") if "colspan" in one]
    assert [one["class"] for one in failed] == ["words long"]
