"""Data of training as tensors and arrays: rows, experiences, what users said of them, random changes of content."""
