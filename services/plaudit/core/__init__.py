"""The words of the domain: events, errors, ports, settings. Imports no transport, no adapter, no torch."""
