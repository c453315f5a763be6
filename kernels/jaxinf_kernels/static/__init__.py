"""What compilers say of kernels for chips that are not here.

:mod:`~jaxinf_kernels.static.tpu` reads the schedule that libtpu makes: instruction words, how full
the matrix unit is, spilled registers. :mod:`~jaxinf_kernels.static.cuda` reads what ptxas says:
registers, spills. Both are properties of a compiled program, the same on every run, and leave out
waiting for memory; no time is measured. ``python -m jaxinf_kernels.static MODULE:FUNCTION --chip
v5e`` prints them for the cases that a function returns.
"""
