"""How well the learner learns, measured beside its peers on the same streams; `make bench-learning`."""
