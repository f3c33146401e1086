"""Statistics: off-policy evaluation, e-processes, gate, experiments, calibration, raters."""
