"""Use cases of the inference service. No transport."""
