"""The page of results: what is on it, that it asks nothing of the network, and that its filters work in a browser."""

import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

from common import report


def _paper(slug, track, verdicts, figures=()):
    claims = [
        {
            "id": f"claim{i}", "says": f"<says> {slug}", "where": "Table 1", "evidence": evidence, "figure": "1.5", "unit": "s",
            "bar": ">= 1", "value": "1.4", "verdict": verdict, "control": "", "how": "timed",
        }
        for i, (evidence, verdict) in enumerate(verdicts)
    ]  # fmt: skip
    return {
        "slug": slug, "title": f"Paper {slug}", "authors": "A & B", "year": 2024, "venue": "ICS", "arxiv": "1234.5678", "track": track,
        "summary": "What it found.", "preset": None, "record": {}, "claims": claims, "figures": list(figures),
    }  # fmt: skip


PAPERS = [
    _paper("one", "Kernels", [("measured", "agrees at reduced scale"), ("counted", "agrees"), ("gpu", "not run")]),
    _paper("two", "Systems", [("modelled", "disagrees")]),
]
OPERATIONS = {
    "agreement": {"x.f": {"torch": {"float64": 1e-15}}},
    "compiled": [{"kernel": "x", "target": "sm_90", "registers": 32, "spills": 0, "stack": 0, "shared": 0, "tensor_core": 1}],
}
BENCH = {
    "machine": {"gpu": None, "cpu": "a cpu", "cores": 2}, "busy": None,
    "rows": [{"operation": "x.f", "mode": "forward", "case": "n", "provider": "torch", "seconds": 0.001, "ratio": 1.0}],
}  # fmt: skip


def test_scoreboard_counts_evidence_by_verdict():
    counts = report.scoreboard(PAPERS)
    assert counts[("measured", "agrees at reduced scale")] == 1 and counts[("modelled", "disagrees")] == 1
    assert sum(counts.values()) == 4


def test_page_is_one_file_without_requests():
    page = report.page(PAPERS, OPERATIONS, BENCH)
    assert not re.search(r"(src|href)=.(?!#|data:)", page), "only anchors and embedded pictures"
    assert "http" not in page and "@import" not in page and "url(" not in page
    assert "<!--" not in page, "every part of the template is filled"
    assert "&lt;says&gt; one" in page and "A &amp; B" in page, "text is escaped"
    anchors, ids = set(re.findall(r'href="#([\w-]+)"', page)), set(re.findall(r"id=['\"]([\w-]+)['\"]", page))
    assert anchors <= ids, "every link leads somewhere"


def test_nothing_recorded_is_said():
    assert "Nothing is recorded of the operations yet" in report.page([], {}, {})


def test_map_of_papers_stands_between_its_lines():
    text = report.with_map(f"# Title\n{report.MAP[0]}\nold\n{report.MAP[1]}\nend\n", PAPERS)
    assert text.startswith("# Title") and text.endswith("end\n") and "old" not in text
    assert "**Systems**" in text and "1 disagrees" in text
    assert text == report.with_map(text, PAPERS)


def test_picture_has_a_stretch_for_each_count():
    root = ElementTree.fromstring(report.picture(PAPERS))
    stretches = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if each.get("height") == "22"]
    assert len(stretches) == len(report.scoreboard(PAPERS))


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_filters_in_a_browser(tmp_path):
    """Clicks every filter and writes what is then seen into the title, which the browser prints with the page."""
    script = """
    <script>
    const seen = () => articles.filter(a => !a.hidden).map(a => a.id + ":" + [...a.querySelectorAll("tbody tr")].filter(r => !r.hidden).length).join(" ");
    const log = [seen()];
    for (const chip of chips) { chip.click(); log.push(chip.dataset.verdict + "=" + seen()); chip.click(); }
    track.value = "Systems"; track.dispatchEvent(new Event("change")); log.push("track=" + seen()); track.value = ""; track.dispatchEvent(new Event("change"));
    words.value = "paper one"; words.dispatchEvent(new Event("input")); log.push("words=" + seen());
    words.value = "nothing at all"; words.dispatchEvent(new Event("input")); log.push("none=" + document.getElementById("none").hidden);
    words.value = ""; words.dispatchEvent(new Event("input")); log.push(seen());
    const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
    document.title = JSON.stringify({log, wide});
    </script></body>"""
    path = tmp_path / "index.html"
    path.write_text(report.page(PAPERS, OPERATIONS, BENCH).replace("</body>", script))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += [
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=500,800",
    ]
    done = subprocess.run([CHROMIUM, *options, "--dump-dom", f"file://{path}"], capture_output=True, text=True, timeout=60)
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert found["log"] == [
        "one:3 two:1",
        "agrees=one:1",
        "agrees at reduced scale=one:1",
        "disagrees=two:1",
        "not run=one:1",
        "track=two:1",
        "words=one:3",
        "none=false",
        "one:3 two:1",
    ]
    assert not found["wide"], "nothing is wider than a phone"
