"""What a model is: its spec, its files and its maths. Importing this package is cheap and never brings torch."""
