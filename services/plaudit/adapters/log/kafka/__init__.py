"""EventLog on Kafka."""
