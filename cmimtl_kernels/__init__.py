"""Selective-scan kernels for fusing two modalities, and `CrossMambaBlock`, which is built on them.

The package needs nothing but torch.
"""

from cmimtl_kernels._version import __version__
from cmimtl_kernels.block import CrossMamba, CrossMambaBlock
from cmimtl_kernels.ops import causal_conv1d, cross_selective_scan, selective_scan

__all__ = [
    "CrossMamba",
    "CrossMambaBlock",
    "__version__",
    "causal_conv1d",
    "cross_selective_scan",
    "selective_scan",
]
