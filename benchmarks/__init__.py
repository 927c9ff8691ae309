"""How fast fastattn is, beside every rival there is.

    python -m benchmarks.compare                    all cases, one core, every rival that is installed
    python -m benchmarks.report results.json        a result as the README's table
    pytest benchmarks --benchmark-enable            fastattn by itself, as a pytest-benchmark report
"""
