"""hat train: the steps float, calibration, qat and int_infer."""
