"""One row per loss. Tests, documentation, benchmarks and verify loop over these rows."""
