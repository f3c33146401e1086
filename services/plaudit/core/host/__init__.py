"""The machine: addresses, cores, pauses, errors of the operating system, and the page that Prometheus reads."""
