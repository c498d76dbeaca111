"""Great Expectations suites as code; no I/O."""
