"""Picture files: reading PNG, WebP, JPEG, TIFF and what else Pillow knows, writing PNG, WebP, JPEG and TIFF.

In the order of imports: `colour`, `sources`, `metadata`, `samples`, `tiffs`, `decoding`, `encoding`, `reading`,
`writing`, `layers`, `layer_files`, `stack_reading`, `inputs`, `conversion`, `layer_writing`, `contact_sheet`."""

from omnialpha.io.conversion import AnyImage, as_type_of, read_if_file, to_rgba
from omnialpha.io.inputs import read_image
from omnialpha.io.reading import read_settings
from omnialpha.io.samples import DAMAGED, Picture
from omnialpha.io.writing import FORMATS, Format, check_output, write_image

__all__ = [
    "DAMAGED",
    "FORMATS",
    "AnyImage",
    "Format",
    "Picture",
    "check_output",
    "read_if_file",
    "read_image",
    "read_settings",
    "as_type_of",
    "to_rgba",
    "write_image",
]
