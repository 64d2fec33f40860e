"""A model measured: answers and verdicts, held-out loss, latency, lm-eval's benchmarks.

Others take `evaluate.evaluate`, `loss.reasoning_loss`, `latency.measure`.
To add a measure: one file that returns an `EvalResult`.
"""
