"""Networks that are trained, as torch modules: the policy, its low-rank updates, a posterior on its last layer."""
