"""What the speed claims rest on: `python -m benchmarks` measures this API, a usual version of it, and pgbench, in turn.

Nothing here is imported by the product, and nothing here is needed to run it.
"""
