"""Imported last by the server of which every process of a study begins as a copy.

What is imported by then stays, so the garbage collector need not look through it in every copy.
"""

import gc

gc.freeze()
