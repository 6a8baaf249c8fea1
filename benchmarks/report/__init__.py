"""Records -> one page with pictures, and the numbers of the documents.

    cmimtl bench report RECORD… [--page FILE] [--pictures DIR] [--documents DIR]

The page shows the records one after another, and the claims of all of them side by side. The
documents are those of a checkout, DIR: the section of README.md between its two markers, its plot
docs/measured.svg, and benchmarks/RESULTS.md. In this repository they come from the records in
benchmarks/records/, which test_report.py holds.

Reading order: records.py (rows of a record), tables.py and claims.py (what is shown of them),
pictures.py and plot.py, documents.py (texts and page), __main__.py (the command).
"""
