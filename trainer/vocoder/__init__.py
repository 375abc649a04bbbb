"""Speech out: speech units -> durations and mel -> waveform, and what Whisper hears in it."""
