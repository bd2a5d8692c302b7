"""Triton kernels, one file per op; the modules live in ../../kernels.

Import them from fastmpi.ops only.
"""
