"""Model runtimes, and what brings foreign models into them."""
