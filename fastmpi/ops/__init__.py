"""One file per op: argument checks, autograd and the choice of backend.

Every op has a readable twin of the same name in `fastmpi.reference`. This package alone imports
`fastmpi._C` and `fastmpi.kernels`.
"""
