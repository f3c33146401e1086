"""The composition: settings → adapters → services, one module for each part. Beside ``cli`` it alone chooses adapters.

Importing this package loads nothing. A module imports what its part needs, so that each service runs without the extras
of the others; what only some settings need (Kafka, OpenTelemetry) is imported where they ask for it.
"""
