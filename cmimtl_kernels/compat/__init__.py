"""The kernels under the names, and in the layouts, that other libraries call.

The modules `mamba_ssm` and `causal_conv1d` have the functions of the packages of these names. The
module `transformers` makes transformers' Mamba models use the kernels. Nothing here imports any of
the three packages before it is asked to.
"""
