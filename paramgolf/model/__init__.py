"""The network: one block function, used by training, calibration, evaluation and adaptation."""
