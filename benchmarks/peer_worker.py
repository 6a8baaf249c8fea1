"""Runs one peer's forward kernel in another interpreter, on requests of peers.py.

    PYTHON -I peer_worker.py NAME THREADS

A request is a line of JSON on stdin, and its answer a line of JSON on stdout:

    {"load": FILE.npz}   read the arguments of `cmimtl_kernels.selective_scan`, channels-last and
                         float32, and prepare the call
    {"run": true}        run the call once; the answer is {"seconds": …}
    {"save": FILE.npy}   write the output, (batch, length, dim)

This file imports nothing of this project, only what the other interpreter has.
"""

import json
import os
import sys
import time

import numpy as np


def intel(inputs, threads):
    """Intel's extension for PyTorch, in mamba's layout, (batch, dim, length)."""
    import intel_extension_for_pytorch  # noqa: F401  registers the op
    import torch

    torch.set_num_threads(threads)
    x = {name: torch.from_numpy(a) for name, a in inputs.items()}
    for name in ("u", "delta", "B", "C", "z"):
        x[name] = x[name].transpose(1, 2).contiguous()
    arguments = [x[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]

    @torch.no_grad()
    def run():
        return torch.ops.torch_ipex.selective_scan_fn(*arguments, True, False)[0]

    return run, lambda out: out.transpose(1, 2).numpy(), lambda: None


def ggml(inputs, threads):
    """ggml's scan in the graph that llama.cpp builds for Mamba, with bias, D and gate."""
    import ctypes

    import ggml as g

    batch, length, dim = inputs["u"].shape
    dstate = inputs["A"].shape[1]
    kept = sum(a.nbytes for a in inputs.values())
    made = 5 * inputs["u"].nbytes + 8 * batch * dim * dstate  # bias, scan, D twice, gate; states
    context = g.ggml_init(g.ggml_init_params(mem_size=kept + made + 2**22, mem_buffer=None))

    def tensor(array, *sizes):
        made = g.ggml_new_tensor_4d(context, g.GGML_TYPE_F32, *sizes, *[1] * (4 - len(sizes)))
        ctypes.memmove(g.ggml_get_data(made), array.ctypes.data, array.nbytes)
        return made

    x = {name: np.ascontiguousarray(a) for name, a in inputs.items()}
    u, z, delta = (tensor(x[name], dim, length, batch) for name in ("u", "z", "delta"))
    bias, skip = tensor(x["delta_bias"], dim), tensor(x["D"], dim)
    A = tensor(x["A"], dstate, dim)
    B, C = (tensor(x[name], dstate, 1, length, batch) for name in ("B", "C"))
    state = tensor(np.zeros((batch, dim, dstate), np.float32), dstate, 1, dim, batch)
    rows = g.ggml_new_tensor_1d(context, g.GGML_TYPE_I32, batch)
    order = np.arange(batch, dtype=np.int32)
    ctypes.memmove(g.ggml_get_data(rows), order.ctypes.data, order.nbytes)

    heads = g.ggml_reshape_4d(context, u, 1, dim, length, batch)
    delta = g.ggml_add(context, delta, bias)  # its softplus is inside the scan
    both = g.ggml_ssm_scan(context, state, heads, delta, A, B, C, rows)
    y = g.ggml_view_3d(context, both, dim, length, batch, 4 * dim, 4 * dim * length, 0)
    y = g.ggml_add(context, y, g.ggml_mul(context, u, skip))
    out = g.ggml_swiglu_split(context, z, y)
    graph = g.ggml_new_graph(context)
    g.ggml_build_forward_expand(graph, out)
    plan = g.ggml_graph_plan(graph, threads, None)
    scratch = (ctypes.c_uint8 * max(1, plan.work_size))()
    plan.work_data = ctypes.cast(scratch, type(plan.work_data))

    def run():
        status = g.ggml_graph_compute(graph, ctypes.pointer(plan))
        if status != g.GGML_STATUS_SUCCESS:
            raise RuntimeError(f"ggml_graph_compute must succeed, got status {status}")
        return scratch

    def numbers(_):
        flat = (ctypes.c_float * (batch * length * dim)).from_address(g.ggml_get_data(out))
        return np.frombuffer(flat, np.float32).reshape(batch, length, dim)

    return run, numbers, lambda: g.ggml_free(context)


def numpy(inputs, threads):
    """The recurrence in NumPy, for the tests: every interpreter has NumPy here."""
    u, delta, A, B, C, D, z, bias = (
        inputs[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    )

    def run():
        step = np.log1p(np.exp(delta + bias))
        state, ys = np.zeros((u.shape[0], *A.shape), np.float32), []
        for t in range(u.shape[1]):
            state = np.exp(step[:, t, :, None] * A) * state
            state = state + (step * u)[:, t, :, None] * B[:, t, None]
            ys.append((state * C[:, t, None]).sum(-1))
        return (np.stack(ys, 1) + D * u) * z / (1 + np.exp(-z))

    return run, lambda out: out, lambda: None


PEERS = {"intel": intel, "ggml": ggml, "numpy": numpy}


def main() -> None:
    name, threads = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that nothing a library prints comes between the answers
    run = numbers = result = None
    release = lambda: None  # noqa: E731
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        try:
            if "load" in request:
                release()
                with np.load(request["load"]) as file:
                    run, numbers, release = PEERS[name](dict(file), threads)
            elif "run" in request:
                start = time.perf_counter()
                result = run()
                answer["seconds"] = time.perf_counter() - start
            else:
                np.save(request["save"], numbers(result))
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
