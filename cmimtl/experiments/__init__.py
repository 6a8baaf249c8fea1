"""Studies: questions to the model, each answered by one command from files on disk.

    cmimtl experiment NAME

trains every arm of a study with several seeds, evaluates all of them, compares them, and leaves a
record and a page. A study is declared in a file of its own here, which reads from top to bottom as
what it is: a question, arms, measures, planned comparisons, and how the answer is put into words.

    ffae.py, fusion.py, …   the studies
    fusions.py, scores.py   what their arms and measures are made of
    study.py                what a study is
    runner.py, frozen.py    processes: each run once, resumed after a kill
    costs.py, lengths.py    time and memory of the runs, and of the fusions by length
    statistics.py           intervals, p-values, calibration
    record.py, page.py      what is kept, and what is shown
    experiment.py           the command
"""
