"""Pretrained encoders: waveforms to activations, any layer."""
