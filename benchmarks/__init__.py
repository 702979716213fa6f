"""Benchmarks: ``make bench``, or ``python -m benchmarks``. Contenders are measured in the same run, in turns."""
