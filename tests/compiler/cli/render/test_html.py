"""The report's page: well-formed, alone, and safe from what names and code contain."""

import json
from html.parser import HTMLParser

from compiler.cli.render.html import to_html

VOID = {"meta", "input", "link", "br", "img", "hr"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'\u2028"


class Page(HTMLParser):
    """Checks that elements nest, and keeps what a browser would run, load or read."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        opened = self.open.pop() if self.open else None
        assert tag == opened, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        self.texts[where] = self.texts.get(where, "") + data


def page_of(run, *arguments):
    outcome = run("report", *arguments)
    assert outcome.code == 0, outcome.err
    return Page(outcome.out)


def test_page_is_well_formed_and_loads_nothing(run, two_sums):
    page = page_of(run, two_sums)
    assert [tag for tag, _ in page.tags if tag in ("link", "img", "iframe")] == []
    assert [a for _, a in page.tags if "src" in a or (a.get("href") or "#")[0] != "#"] == []
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'")
    assert "@import" not in page.texts["style"]
    assert "url(" not in page.texts["style"]


def test_page_holds_the_data_that_is_printed_as_json(run, two_sums):
    text = run("report", two_sums).out
    inside = text.split('id="data">')[1].split("</script>")[0]
    data, alone = json.loads(inside), json.loads(run("report", two_sums, "--format", "json").out)
    for plan in (*data["plans"], *alone["plans"]):
        for timed in (plan["report"], *plan["passes"]):
            del timed["seconds"]
    assert data == alone


def test_names_cannot_leave_the_data():
    text = to_html({"model": EVIL, "groups": [{"title": EVIL}], EVIL: EVIL})
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert all(tag != "img" for tag, _ in page.tags)
    assert page.texts["title"] == f"{EVIL} – commplan"
    inside = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside) == {"model": EVIL, "groups": [{"title": EVIL}], EVIL: EVIL}


def test_the_script_writes_texts_only_as_texts():
    text = to_html({"model": "m"})
    script = text.rsplit("<script>", 1)[1]
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert sink not in script
