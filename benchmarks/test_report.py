"""The page, the pictures and the documents come from records, and from nothing else."""

import copy
import json
import xml.dom.minidom

import pytest

from benchmarks import claims, measure, overview, records, report, synthetic, tables
from benchmarks.claims import CLAIMS
from benchmarks.pictures import PICTURES

pytestmark = pytest.mark.quick


@pytest.fixture
def made_up():
    return synthetic.record()


def test_page_is_whole_and_self_contained(tmp_path, made_up):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(made_up))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    options = ["--page", tmp_path / "page.html", "--pictures", tmp_path / "png"]
    options += ["--documents", tmp_path]
    report.main([str(x) for x in (path, *options)])
    page = (tmp_path / "page.html").read_text()
    assert "A CPU &lt;one&gt;" in page and "mamba_ssm is not installed" in page
    assert page.count("data:image/png;base64") == len(PICTURES)
    assert "http" not in page and 'src="/' not in page
    for name in PICTURES:
        assert (tmp_path / "png" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for title in tables.TABLES:
        assert title in page
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "6.5x" in text and "18.0x the time of ours" in text
    results = (tmp_path / "benchmarks" / "RESULTS.md").read_text()
    assert "6.0x" in results and "about 64,000x*" in results
    plot = xml.dom.minidom.parse(str(tmp_path / "docs" / "measured.svg"))
    assert len(plot.getElementsByTagName("path")) == 3


def test_what_cannot_be_written_is_found_before_the_pictures(tmp_path, made_up, monkeypatch):
    """The page's folder is made; a name that cannot be had is refused at once."""
    record = tmp_path / "record.json"
    record.write_text(json.dumps(made_up))
    (tmp_path / "README.md").write_text("no markers")
    pages = []
    monkeypatch.setattr(report, "page", lambda records: pages.append(records) or "a page")
    for options, message in (
        (["--page", tmp_path], "--page must name a file that can be written"),
        (["--pictures", record], "--pictures must be a folder that can be written to"),
        (["--documents", tmp_path], "README: it must hold"),
    ):
        with pytest.raises(ValueError, match=message):
            report.main([str(x) for x in (record, "--page", tmp_path / "a.html", *options)])
    assert pages == []
    report.main([str(x) for x in (record, "--page", tmp_path / "new" / "page.html")])
    assert (tmp_path / "new" / "page.html").read_text() == "a page"


def test_records_stand_side_by_side(made_up):
    """A second device: a column of its own, its own section, and no claim of the CPU's."""
    gpu = copy.deepcopy(made_up)
    gpu["device"], gpu["device_type"] = "A GPU", "cuda"
    gpu["rows"] = [row for row in gpu["rows"] if row["suite"] != "dtypes"]
    table = claims.table([made_up, gpu])
    assert table[0][2:] == ["A CPU <one>", "A GPU"]
    line = next(row for row in table if row[0].startswith("our scan's time in bfloat16"))
    assert line[1:] == ["at most 1.05x", "0.98x", "not measured"]
    page = report.page([made_up, gpu])
    assert page.index("<h2>A CPU") < page.index("<h2>A GPU")
    assert report.results([made_up, gpu]).count("\n## ") == 3
    assert [len(line) for line in overview.table([made_up, gpu])] == [3] * 7
    assert overview.plot([made_up, gpu]).count("<g ") == 2


def test_a_record_of_few_rows(made_up):
    """A quick run has a row or two of each suite; the report leaves out what it cannot show."""
    seen = set()
    made_up["rows"] = [
        row
        for row in made_up["rows"]
        if "seconds" in row and (row["suite"] not in seen and not seen.add(row["suite"]))
    ]
    assert "cmimtl benchmarks" in report.page([made_up])
    made_up["rows"], made_up["limits"] = [], None
    assert "not measured" in report.page([made_up])
    assert all("not measured" in line for line in overview.table([made_up])[1:])
    assert "<path" not in overview.plot([made_up])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_claims_can_fail(claim, made_up):
    """The made-up record holds every claim; one beyond the number that was found does not."""
    assert claim.holds(made_up)
    number = claim.value(made_up)
    stricter = number * 1.01 + 1 if claim.sense == "at least" else number - 1
    beyond = claims.Claim(claim.text, claim.sense, stricter, claim.unit, claim.value)
    assert beyond.holds(made_up) is False
    made_up["rows"] = []
    assert claim.holds(made_up) is None


def test_missed_claims_are_marked(made_up):
    row = records.one(
        made_up, "ops", name="ggml", which="forward", **records.workload(records.TEXT)
    )
    row["ratio"] = 3.0
    line = next(line for line in claims.table([made_up]) if line[0].startswith("ggml"))
    assert line[2] == "3x (missed)"


def test_exponent():
    lengths = [1.0, 2.0, 4.0]
    assert records.exponent(lengths, [5 * n**1.5 for n in lengths]) == pytest.approx(1.5)


def test_readme_without_markers():
    with pytest.raises(ValueError, match="README: it must hold"):
        report.replace_section("nothing here", "section")


def test_documents_hold_the_committed_records():
    """And nothing measured where there is none."""
    advice = "run `cmimtl bench report benchmarks/records/* --documents .`"
    for path, expected in report.documents(records.committed(), measure.ROOT).items():
        assert path.read_text() == expected, f"{path.name}: {advice}"


def test_committed_records_hold_the_claims():
    for record in records.committed():
        if record["device_type"] == "cpu":
            missed = {c.text: c.show(c.value(record)) for c in CLAIMS if not c.holds(record)}
            assert not missed, f"{record['device']}: {missed}"


def test_benchmarks_readme_explains_every_key():
    text = (measure.ROOT / "benchmarks" / "README.md").read_text()
    for record in records.committed():
        keys = {*record, *record["limits"], *(key for row in record["rows"] for key in row)}
        assert not [key for key in keys if f"`{key}`" not in text]


def test_committed_records_are_whole():
    """Their commit has no changes beside it, and every row has a time, a size or a reason."""
    for record in records.committed():
        assert record["format"] == 1
        assert len(record["commit"]) == 40, "measured with changes that no commit holds"
        assert {"python", "torch"} <= set(record["versions"])
        assert {row["suite"] for row in record["rows"]} == {
            "ops", "kernel", "dtypes", "peak", "fusion", "fusion memory", "length", "length memory",
            "batch", "block", "model",
        }  # fmt: skip
        for row in record["rows"]:
            assert row.keys() & {"seconds", "peak_bytes", "not_run"}, row
            if "rounds" in row:
                assert {"spread", "limit"} <= row.keys(), row
