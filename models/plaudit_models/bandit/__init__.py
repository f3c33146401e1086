"""The fast loop's maths: features, reward model, policy improvement, and the head as a graph."""
