"""Connected components of masks, with OpenCV, which comes with the extra `eval`."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from omnialpha.errors import InputError


def opencv() -> ModuleType:
    """The module cv2, or a message that says how to get it."""
    try:
        import cv2
    except ImportError:
        raise InputError("OpenCV is not installed: `pip install omnialpha[eval]` brings it.") from None
    return cv2


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected component of a bool mask (H, W), as one; empty if the mask is.

    Of equally large ones the first in MATLAB's order (bwconncomp and max): the one that a scan down the columns, from
    the left one to the right one, meets first.
    """
    cv2 = opencv()
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=4, ltype=cv2.CV_32S)
    if count <= 2:  # the background counts as one: here there is at most one component beside it
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    largest = np.flatnonzero(sizes == sizes.max())
    if len(largest) == 1:
        return labels == largest[0]
    by_column = labels.ravel(order="F")
    return labels == by_column[np.isin(by_column, largest).argmax()]
