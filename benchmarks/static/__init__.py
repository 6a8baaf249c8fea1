"""Static figures of the GPU kernels, read from compiled code: no GPU is needed, and none is used.

    cmimtl bench static --json FILE [--backend cuda triton] [--target sm_90 …] [--dtype float32 …]

Reading order: sass.py (what compiled code says), cuda.py and triton.py (one row for each kernel),
rows.py (what is computed from a row, and mamba_ssm's rows beside ours), __main__.py (the command).

An element is one state of one channel at one step. Every figure "per element" counts the hot loop
of a kernel, the loop over steps that has the recurrence in it:

    slots_per_element         issue slots of the hot loop
    all_slots_per_element     issue slots of every such loop; in Triton's backward pass other loops
                              recompute states and prepare them
    last_slots_per_element    issue slots of the loop that a CUDA forward kernel has for the last
                              steps of a sequence, where all its branches are taken
    warps_per_sm              warps that fit on a multiprocessor, by registers, by shared memory
                              and by the most warps and blocks that it takes

The row of a whole pass also has the bytes that it moves, as csrc/cuda/traffic.h counts them. On
sm_90 it has a modelled time on an H100: the slowest of issue slots, MUFU pipe and memory, each at
its peak. Two limits stand beside the time: one EX2 for each element, and the least bytes.
"""

# What a row may be about. Compute capabilities of NVIDIA, then architectures of AMD.
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes
STREAMS = {"selective_scan": 1, "cross_selective_scan": 2}  # of each op
PASSES = ("forward", "backward")
# Kernels that Triton runs before a pass of a scan that it splits over time.
SPLIT_PASSES = ("summary", "carry", "summary of gradients", "carry of gradients")
