"""How fast the trainer is, beside plain loops and the floor of arithmetic.

Called by `make bench`, or `python -m lib.bench`; `make precision` calls `lib.bench.precision`. What
they write into `results/bench` is read by notebook 80, with `lib.bench.tables` alone.
"""
