"""Text from outside: ids, labels, reasons, and what makes each harmless where it is shown."""
