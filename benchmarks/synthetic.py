"""A record of made-up numbers with every suite in it, for the tests of the report."""

from benchmarks import fusions
from benchmarks.baselines import BASELINES
from benchmarks.records import LARGE, PATCHES_SIZE, QUERIES_SIZE, SMALL, size, workload

PASSES = ("forward", "forward+backward")
TIMED = {"spread": 0.02, "rounds": 9}
LIMIT = {"fma": 1e10, "bytes": 1e9, "limit": "FMA", "limit_seconds": 0.1, "share_of_limit": 0.6}


KERNEL = (("forward", "kernel"), ("backward", "kernel"))


def record() -> dict:
    return {
        "format": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "device": "A CPU <one>, 2 threads",
        "device_type": "cpu",
        "threads": 2,
        "versions": {"python": "3.11", "torch": "2.14"},
        "limits": {"fma_per_second": 1e11, "bytes_per_second": 2e10, "ex2_per_second": None},
        "seconds": {"test_ops": 100.0},
        "rows": [*_ops(), *_fusion(), *_scaling(), *_block(), *_model()],
    }


def _ops():
    for which, suite in (*((which, "ops") for which in PASSES), *KERNEL):
        for of in LARGE if suite == "kernel" else (*LARGE, *SMALL):
            batch, length, dim = of
            elements = batch * length * dim * 16
            place = {
                "suite": suite,
                **workload(of),
                "dstate": 16,
                "dtype": "float32",
                "which": which,
            }
            factor = {"forward": 1, "backward": 2, "forward+backward": 3}[which]
            ours = 2e-10 * factor * elements
            work = LIMIT | {"fma": 10.0 * factor * elements, "bytes": elements * factor}
            yield place | TIMED | work | {
                "name": "cpu", "seconds": ours, "ratio": 1.0, "ns_per_element": 0.2 * factor
            }  # fmt: skip
            if suite == "kernel":
                continue
            for i, baseline in enumerate(BASELINES):
                row = place | {"name": baseline.name}
                if which != "forward" and not baseline.backward:
                    yield row | {"not_run": "has no backward pass"}
                elif which != "forward" and baseline.quadratic and length > 64:
                    reason = "takes too long: 700 s a call, by its rate at 16x64x1536"
                    yield row | {"not_run": reason, "expected_ratio": 250.0 * length / 64}
                elif baseline.name == "mamba_ssm":
                    yield row | {"not_run": "mamba_ssm is not installed"}
                else:
                    ratio = (6, 40, 70, 90, 120, 25, 16)[i] * (1 if which == "forward" else 3)
                    yield row | TIMED | work | {
                        "seconds": ours * ratio, "ratio": ratio, "ns_per_element": 0.2 * ratio
                    }  # fmt: skip
    for which in PASSES:
        for dtype, ratio in (("float32", 1.0), ("bfloat16", 0.98), ("float16", 0.97)):
            place = {"suite": "dtypes", "name": "cpu", **workload(LARGE[1]), "which": which}
            yield place | TIMED | LIMIT | {"dtype": dtype, "seconds": 0.02 * ratio, "ratio": ratio}
    for length, share in ((289, 0.1), (1154, 0.06), (4616, 0.05)):
        yield {"suite": "peak", "name": "cpu", "batch": 4, "length": length, "dim": 1536,
               "peak_bytes": 10**8, "least_bytes": 8 * 10**7, "extra_bytes": 2 * 10**7,
               "share_of_states": share}  # fmt: skip


def _fusion():
    factor = {fusions.OURS: 1, fusions.GATED: 1.1, fusions.BIDIRECTIONAL: 1.2,
              fusions.TRANSFORMER: 6.5, fusions.PLAIN: 3.0, fusions.MAMBAS: 50.0}  # fmt: skip
    for of in (QUERIES_SIZE, PATCHES_SIZE):
        for which in PASSES:
            for name, ratio in factor.items():
                row = {"suite": "fusion", "name": name, **size(of), "which": which}
                if name == fusions.MAMBAS and (of, which) == (PATCHES_SIZE, PASSES[1]):
                    yield row | {"not_run": "left out"}
                    continue
                seconds = (0.12 if which == "forward" else 0.37) * ratio
                count = 113_421_312 if name == fusions.TRANSFORMER else 7_544_832
                yield row | TIMED | LIMIT | {
                    "seconds": seconds, "ratio": ratio, "parameters": count,
                    "samples_per_second": of[0] / seconds,
                }  # fmt: skip
        for name, ratio in factor.items():
            if name != fusions.MAMBAS or of == QUERIES_SIZE:
                yield {"suite": "fusion memory", "name": name, **size(of),
                       "which": "forward+backward", "kept_bytes": int(4e7 * ratio),
                       "peak_bytes": int(1e8 * ratio)}  # fmt: skip


def _scaling():
    for which in PASSES:
        for length in (32, 128, 512, 1024, 2048, 4096, 8192, 16384):
            tokens = length + 32
            for name, seconds in (
                (fusions.OURS, 2e-5 * tokens),
                (fusions.BIDIRECTIONAL, 2.4e-5 * tokens),
                ("Transformer co-attention", 1e-4 * tokens + 2e-8 * tokens**2),
            ):
                row = {"suite": "length", "name": name, "batch": 1, "length": length,
                       "which": which}  # fmt: skip
                if name == "Transformer co-attention" and which != "forward" and length > 4096:
                    yield row | {"not_run": "left out"}
                    continue
                yield row | TIMED | LIMIT | {
                    "seconds": seconds, "seconds_per_token": seconds / tokens,
                    "ratio": seconds / (2e-5 * tokens),
                }  # fmt: skip
                if length in (512, 2048, 8192) and which != "forward":
                    yield row | {"suite": "length memory", "peak_bytes": int(1e9 * seconds)}
    for batch in (1, 2, 4, 8, 16, 32):
        for name, ratio in ((fusions.OURS, 1.0), ("Transformer co-attention", 4.0)):
            seconds = 2e-3 * (1 + batch) * ratio
            yield {"suite": "batch", "name": name, "batch": batch, "length": 32,
                   "which": "forward+backward", "seconds": seconds, "ratio": ratio,
                   "seconds_per_token": seconds / (64 * batch), **TIMED, **LIMIT}  # fmt: skip


def _block():
    shares = {"GEMM": 0.83, "scan": 0.1, "convolution": 0.015, "LayerNorm": 0.005,
              "elementwise and copies": 0.05}  # fmt: skip
    for of in (QUERIES_SIZE, PATCHES_SIZE):
        place = {"suite": "block", **size(of), "which": "forward+backward"}
        yield (
            place
            | TIMED
            | LIMIT
            | {"name": "whole block", "seconds": 0.2, "kept_bytes": 19 * 10**6}
        )
        for part, share in shares.items():
            yield place | {"name": part, "seconds": 0.2 * share, "share": share}


def _model():
    for name, ratio in (("cross-mamba", 1.0), ("transformer", 1.4)):
        yield {"suite": "model", "name": name, "preset": "tiny", "batch": 32, "which": "forward",
               "parameters": 10**6, "fusion_parameters": 10**5, "seconds": 0.1 * ratio,
               "samples_per_second": 320 / ratio, "ratio": ratio, **TIMED, **LIMIT}  # fmt: skip
