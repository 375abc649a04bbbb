"""Which frames are compared; test_quality.py has the figures, test_inspection.py the whole command."""

import numpy as np

from dmlm.pipeline.codebooks.measuring import Recording, _compare_shifted, _match_letters


def test_units_beside_the_later_beginning_are_not_compared() -> None:
    own = [np.arange(100, dtype=np.int32)]
    late = [np.array([-1] * 25 + [*range(75, 100)], np.int32)]  # at 50 units a second 0.5 s differ
    assert _compare_shifted(own, late, 50.0) == 1.0


def test_silence_has_no_letters() -> None:
    waveform = np.zeros(4 * 320, np.float32)
    waveform[320:960] = 1
    units = np.array([9, 1, 2, 9], np.int32)
    match = _match_letters([Recording(waveform, "ab")] * 2, [units] * 2, 10)
    assert match is not None
    assert (match.num_frames, match.purity) == (4, 1.0)
