"""Graphs as an HTML page."""

import re


def test_html_links_what_went_with_what_came(run, two_sums):
    page = run("dump", two_sums, "--format", "html").out
    gone = re.findall(r'class="value comm gone" id="before-(\d)">.*?href="#after-(\d)"', page)
    came = re.findall(r'class="value comm new" id="after-(\d)">(.*?)</div>', page)
    assert gone == [("2", "3"), ("3", "3")]
    assert [number for number, _ in came] == ["3"]
    assert re.findall(r'href="#(before-\d)"', came[0][1]) == ["before-2", "before-3"]
    assert not re.search(r"(src|href)=\"(?!#)", page)  # nothing is loaded from elsewhere
    assert "<script>alert" not in page


def test_html_keeps_a_collective_that_stays(run, two_sums, tmp_path):
    stays = tmp_path / "<b>stays.spmd"
    text = two_sums.read_text().replace("return (%4,)", "return (%4, %2)")
    stays.write_text(text)
    page = run("dump", stays, "--format", "html").out
    assert "&lt;b&gt;stays.spmd" in page
    assert len(re.findall(r'class="value comm "', page)) == 4
    assert "→ %" not in page


def test_html_of_one_side(run, two_sums):
    page = run("dump", two_sums, "--format", "html", "--before").out
    assert 'id="before-4"' in page
    assert "<b>values</b>" in page
    assert "after-" not in page


def test_html_of_a_reduction_that_is_done_twice(run, two_sums):
    two_sums.write_text(two_sums.read_text().replace("all_reduce(%1)", "all_reduce(%0)"))
    page = run("dump", two_sums, "--format", "html").out
    marks = re.findall(r'class="value comm (\w*)" id="(\w+-\d)"', page)
    assert marks == [("", "before-2"), ("", "after-2"), ("gone", "before-3")]
