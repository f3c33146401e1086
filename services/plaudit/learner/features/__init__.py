"""Features, evidence and policies of logged experiences."""
