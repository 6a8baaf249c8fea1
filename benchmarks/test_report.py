"""The page, the pictures and the README come from records, and from nothing else."""

import json
from pathlib import Path

import pytest

from benchmarks import measure, report

pytestmark = pytest.mark.quick

SHAPE = {"batch": 1, "length": 64, "dim": 96, "dstate": 16}
SIZE = {"batch": 2, "n_visual": 3, "n_text": 4}
RECORD = {
    "created": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "device": "A CPU <one>, 2 threads",
    "threads": 2,
    "versions": {"python": "3.11", "torch": "2.14"},
    "limits": {"fma_per_second": 1e11, "bytes_per_second": 2e10},
    "rows": [
        {"suite": "ops", "name": name, **SHAPE, "which": which,
         "seconds": 1e-3 * k, "spread": 0.02, "ns_per_element": 0.5,
         "share_of_limit": 0.5 / k, "ratio": k}
        for which in ("forward", "forward+backward")
        for name, k in (("cpu", 1.0), ("torch.compile of a 16-step loop", 7.0))
    ]
    + [
        {"suite": "ops", "name": "mambapy", **SHAPE,
         "which": "forward", "not_run": "mambapy is not installed"},
        {"suite": "ops", "name": "cpu", **SHAPE, "which": "backward",
         "seconds": 1e-3, "spread": 0.1, "ns_per_element": 0.5, "share_of_limit": 0.4},
    ]
    + [
        {"suite": "fusion", "name": name, **SIZE, "which": which, "parameters": 10**7,
         "seconds": 0.5, "spread": 0.0, "samples_per_second": 4.0, "ratio": 6.5}
        for which in ("forward", "forward+backward")
        for name in ("Cross-Mamba", "Transformer")
    ]
    + [{"suite": "length", "name": "Cross-Mamba", "length": n, "which": "forward",
        "seconds": n * 1e-4} for n in (32, 64)]
    + [{"suite": "block", "name": part, **SIZE, "share": 0.5}
       for part in ("GEMM", "scan")],
}  # fmt: skip


def test_page_is_whole_and_self_contained(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(RECORD))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    options = ["--page", tmp_path / "page.html", "--pictures", tmp_path / "png", "--readme", readme]
    report.main([str(x) for x in (path, *options)])
    page = (tmp_path / "page.html").read_text()
    assert "A CPU &lt;one&gt;" in page and "mambapy is not installed" in page
    assert page.count("data:image/png;base64") == len(report.PICTURES)
    assert "http" not in page and 'src="/' not in page
    for name in report.PICTURES:
        assert (tmp_path / "png" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "6.5x" in text and "7.0x" in text


def test_readme_without_markers():
    with pytest.raises(ValueError, match="README: it must hold"):
        report.replace_section("nothing here", "section")


def test_readme_holds_the_committed_record():
    """And nothing measured where there is no record."""
    readme = (measure.ROOT / "README.md").read_text()
    records = sorted(report.COMMITTED.glob("*.json"))
    section = report.readme_section(report.load(records[0])) if records else ""
    expected = report.replace_section(readme, section)
    assert readme == expected, "run `python -m benchmarks.report` with --readme README.md"


def test_records_name_their_commit_and_versions():
    for path in sorted(Path(report.COMMITTED).glob("*.json")):
        record = report.load(path)
        assert len(record["commit"].split("+")[0]) == 40, path.name
        assert {"python", "torch"} <= set(record["versions"])
        assert record["rows"]
