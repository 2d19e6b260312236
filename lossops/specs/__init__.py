"""One row per loss: what tests, documentation, benchmarks and verify loop over."""
