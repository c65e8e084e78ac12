"""Benchmarks: ``python -m bench`` (speed beside peers), ``python -m bench kernels`` (what
compiles).
"""
