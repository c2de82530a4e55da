"""Picture files: read PNG, WebP, JPEG, TIFF (and what else Pillow knows); write PNG, WebP, JPEG, TIFF atomically.

In the order of imports: `icc`, `sources`, `metadata`, `samples`, `tiffs`, `decoding`, `encoding`, `reading`, `kinds`,
`writing`."""

from omnialpha.io.conversion import AnyImage, loaded, same_kind, to_rgba
from omnialpha.io.reading import Picture, read_image, read_settings
from omnialpha.io.samples import DAMAGED
from omnialpha.io.writing import FORMATS, Format, check_output, write_image

__all__ = [
    "DAMAGED",
    "FORMATS",
    "AnyImage",
    "Format",
    "Picture",
    "check_output",
    "loaded",
    "read_image",
    "read_settings",
    "same_kind",
    "to_rgba",
    "write_image",
]
