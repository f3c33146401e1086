"""Builders, harnesses and brokers that tests, fault suite and benchmarks share."""
