"""Picture files: read PNG, WebP, JPEG, TIFF (and what else Pillow knows); write PNG, WebP, JPEG, TIFF atomically.

In the order of imports: `icc`, `sources`, `metadata`, `samples`, `tiffs`, `decoding`, `encoding`, `reading`, `kinds`,
`writing`."""

from omnialpha.files.kinds import AnyImage, loaded, same_kind, to_rgba
from omnialpha.files.reading import Picture, read_image, read_settings
from omnialpha.files.samples import DAMAGED, MAX_PIXELS
from omnialpha.files.writing import FORMATS, Format, atomic_write, check_output, swap, write_image

__all__ = [
    "DAMAGED",
    "FORMATS",
    "MAX_PIXELS",
    "AnyImage",
    "Format",
    "Picture",
    "atomic_write",
    "check_output",
    "loaded",
    "read_image",
    "read_settings",
    "same_kind",
    "swap",
    "to_rgba",
    "write_image",
]
