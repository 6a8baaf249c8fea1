"""Make pictures and a page from records of `pytest benchmarks/`, and the documents' numbers."""

import argparse
from pathlib import Path

from benchmarks.report.documents import documents, page, pictures
from benchmarks.report.records import load
from cmimtl.files import check_folder, check_writable, write_text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="cmimtl bench report", description=__doc__)
    parser.add_argument("records", nargs="+", type=Path, metavar="RECORD")
    parser.add_argument("--page", type=Path, default=Path("benchmarks.html"))
    parser.add_argument("--pictures", type=Path, help="folder for the pictures as PNG files")
    parser.add_argument("--documents", type=Path, help="checkout whose documents are written")
    options = parser.parse_args(arguments)
    # Before the pictures, which take a while: what cannot be written is refused.
    check_writable("bench report", "--page", options.page)
    if options.pictures:
        check_folder("bench report", "--pictures", options.pictures)
    records = [load(path) for path in options.records]
    texts = documents(records, options.documents) if options.documents else {}
    for path in texts:
        check_writable("bench report", "--documents", path)
    drawn = [pictures(record) for record in records]
    texts[options.page] = page(records, drawn)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        for path, images in zip(options.records, drawn, strict=True):
            prefix = f"{path.stem}-" if len(records) > 1 else ""
            for name, image in images.items():
                (options.pictures / f"{prefix}{name}.png").write_bytes(image)
    for path, text in texts.items():
        write_text(path, text)


if __name__ == "__main__":
    main()
