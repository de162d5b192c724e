"""Which diffusion networks quantize: small random ones of the public families, each with its outcome.

From the root of the checkout::

    python -m benchmarks.coverage                      # the table of docs/coverage.md, on the terminal
    python -m benchmarks.coverage --out docs/coverage.md
    python -m benchmarks.coverage --only dit           # those whose family or name holds "dit"

A family's networks have its blocks, its conditioning and its spelling, at widths that take seconds. What is shown is
whether such a network is captured, which of its layers run on integers, and how close the result is; not how fast.
"""
