"""What tests, fault suite and benchmarks share: builders, harnesses, brokers."""
