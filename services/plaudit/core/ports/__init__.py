"""Protocols of what the services need from the outside. Each docstring is a contract, held by a suite in
tests/contracts that every adapter passes. Only ``compose`` and ``cli`` know which adapter is behind a port.
"""
