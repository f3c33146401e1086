"""Services as processes: one until a signal drains it, several under supervision, their metrics merged."""
