"""Maths of the fast loop: features, reward model, policy improvement, and the head as a graph."""
