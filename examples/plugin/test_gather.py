"""The kernel keeps to the interface."""

from codegemm_gather import Gather

from codegemm.testing import check_kernel


def test_gather():
    checked = check_kernel(Gather, tolerance=3e-6)
    assert {"m1v4g128", "m2v11b7g-1", "m1v16b16g64", "m2v4g32+rotated"} <= set(checked.taken)
    assert set(checked.refused.values()) == {"it multiplies CodebookWeights"}
