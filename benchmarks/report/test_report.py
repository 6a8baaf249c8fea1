"""The page, the pictures and the documents come from records, and from nothing else."""

import copy
import dataclasses
import json
import re
import xml.dom.minidom

import pytest

from benchmarks import measure
from benchmarks.report import claims, documents, pictures, plot, records, tables
from benchmarks.report.__main__ import main
from benchmarks.report.claims import CLAIMS

pytestmark = pytest.mark.quick

RECORDS = records.committed()


@pytest.fixture
def record():
    """A record whose device has a name that HTML has to escape; without a second part of it."""
    return copy.deepcopy(RECORDS[0]) | {"device": "A CPU <one>, 2 threads"}


def test_page_is_whole_and_self_contained(tmp_path, record):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{documents.BEGIN}\nold\n{documents.END}\nafter\n")
    options = ["--page", tmp_path / "page.html", "--pictures", tmp_path / "png"]
    options += ["--documents", tmp_path]
    main([str(x) for x in (path, *options)])
    page = (tmp_path / "page.html").read_text()
    assert "A CPU &lt;one&gt;" in page
    assert page.count("data:image/png;base64") == len(pictures.PICTURES)
    text = re.sub(r'base64,[^"]*"', "", page)
    assert "http" not in text and 'src="/' not in text
    for name in pictures.PICTURES:
        assert (tmp_path / "png" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("<table>") == 1 + len(tables.SECTIONS)  # the claims first
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    svg = xml.dom.minidom.parse(str(tmp_path / "docs" / "measured.svg"))
    assert len(svg.getElementsByTagName("path")) == 3
    assert (tmp_path / "benchmarks" / "RESULTS.md").read_text() == documents.results([record])


def test_what_cannot_be_written_is_found_before_the_pictures(tmp_path, record, monkeypatch):
    """The page's folder is made; a name that cannot be had is refused at once."""
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    (tmp_path / "README.md").write_text("no markers")
    drawn = []
    monkeypatch.setattr("benchmarks.report.__main__.pictures", lambda r: drawn.append(r) or {})
    for options, message in (
        (["--page", tmp_path], "--page must name a file that can be written"),
        (["--pictures", path], "--pictures must be a folder that can be written to"),
        (["--documents", tmp_path], "README: it must hold"),
    ):
        with pytest.raises(ValueError, match=message):
            main([str(x) for x in (path, "--page", tmp_path / "a.html", *options)])
    assert drawn == []
    main([str(x) for x in (path, "--page", tmp_path / "new" / "page.html")])
    assert "cmimtl benchmarks" in (tmp_path / "new" / "page.html").read_text()


def test_records_stand_side_by_side(record):
    """A second device: a column of its own, its own section, and no claim of the CPU's."""
    gpu = copy.deepcopy(record) | {"device": "A GPU", "device_type": "cuda"}
    gpu["rows"] = [row for row in gpu["rows"] if row["suite"] != "dtypes"]
    table = claims.table([record, gpu])
    assert table[0][2:] == ["A CPU <one>", "A GPU"]
    line = next(row for row in table if "bfloat16" in row[0])
    assert line[1:] == ["at most 1.05x", "1.02x", "not measured"]
    page = documents.page([record, gpu], [{}, {}])
    assert page.index("<h2>A CPU") < page.index("<h2>A GPU")
    assert documents.results([record, gpu]).count("\n## ") == 3
    assert [len(line) for line in tables.overview_table([record, gpu])] == [3] * 7
    assert plot.svg([record, gpu]).count("<g ") == 2


@pytest.mark.filterwarnings("error")
def test_a_record_of_few_rows(record):
    """A quick run has a row or two of each suite; the report leaves out what it cannot show."""
    first: dict[str, list[dict]] = {}
    for row in record["rows"]:
        first.setdefault(row["suite"], []).append(row)
    record["rows"] = [row for of_suite in first.values() for row in of_suite[:2]]
    drawn = documents.pictures(record)
    assert set(drawn) == set(pictures.PICTURES)
    assert "cmimtl benchmarks" in documents.page([record], [drawn])
    record["rows"], record["limits"] = [], None
    assert documents.pictures(record) == {}
    assert documents.page([record], [{}]).count("not measured") == len(CLAIMS)
    assert all("not measured" in line for line in tables.overview_table([record])[1:])
    assert "<path" not in plot.svg([record])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_claims_can_fail(claim, record):
    """Every claim holds, and one beyond the number that was found does not."""
    assert claim.holds(record)
    beyond = claim.worst(record) * (1.01 if claim.sense == "at least" else 0.99)
    assert dataclasses.replace(claim, bound=beyond).holds(record) is False
    record["rows"] = []
    assert claim.holds(record) is None


def test_missed_claims_are_marked(record):
    of = records.workload(tables.TEXT)
    records.one(record, "ops", name="ggml", which="forward", **of)["ratio"] = 3.0
    (line,) = (line for line in claims.table([record]) if "ggml" in line[0])
    assert line[2] == "3x (missed)"


def test_exponent():
    points = [(n, 5 * n**1.5) for n in (1.0, 2.0, 4.0)]
    assert pictures.exponent(points) == pytest.approx(1.5)


def test_documents_hold_the_committed_records():
    """And nothing measured where there is none."""
    advice = "run `cmimtl bench report benchmarks/records/* --documents .`"
    for path, expected in documents.documents(RECORDS, measure.ROOT).items():
        assert path.read_text() == expected, f"{path.name}: {advice}"


def test_committed_records_hold_the_claims():
    for record in RECORDS:
        if record["device_type"] == "cpu":
            # As many numbers as the claims speak of: sizes, passes, peers.
            assert [len(c.numbers(record)) for c in CLAIMS] == [2, 1, 2, 2, 5, 5, 6, 6, 2, 3]
            missed = {c.text: c.show(c.worst(record)) for c in CLAIMS if not c.holds(record)}
            assert not missed, f"{record['device']}: {missed}"


def test_benchmarks_readme_explains_every_key():
    text = (measure.ROOT / "benchmarks" / "README.md").read_text()
    for record in RECORDS:
        keys = {*record, *record["limits"], *(key for row in record["rows"] for key in row)}
        assert not [key for key in keys if f"`{key}`" not in text]


def test_committed_records_are_whole():
    """Their commit has no changes beside it, and every row has a time, a size or a reason."""
    for record in RECORDS:
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
