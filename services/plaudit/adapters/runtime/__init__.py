"""Model runtimes, and the import of other ONNX files."""
