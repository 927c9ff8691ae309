"""How fast fastattn is, beside every rival there is.

    python -m benchmarks.compare                    all cases, one core, every rival that is installed
    python -m benchmarks.sequence                   layers against recurrent networks, over the number of words
    python -m benchmarks.memory                     memory besides the inputs, over the number of words
    python -m benchmarks.accuracy                   error against float64, over the number of keys
    python -m benchmarks.report results.json        what they wrote, as the README's tables and charts
    fastattn bench                                  the first two in two minutes, for a user's own machine
    pytest benchmarks --benchmark-enable            fastattn by itself, as a pytest-benchmark report

recorded/ has the results that charts/ shows, as they were written. A test draws them again and compares.
"""
