"""Event logs: SQLite, Kafka, and a spool in front of one that is away."""
