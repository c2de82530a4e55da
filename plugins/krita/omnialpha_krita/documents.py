"""Pictures out of a Krita document, and new layers into it."""

try:
    from PyQt5.QtCore import QBuffer, QByteArray, QIODevice
    from PyQt5.QtGui import QImage
except ImportError:  # Krita 6
    from PyQt6.QtCore import QBuffer, QByteArray, QIODevice
    from PyQt6.QtGui import QImage

from .client import ServerError

SPACE = ("RGBA", "U8", "sRGB-elle-V2-srgbtrc.icc")  # of what is sent and of new layers
FORMAT = getattr(QImage, "Format", QImage)
WRITE = getattr(QIODevice, "OpenModeFlag", QIODevice).WriteOnly


def take(document):
    """The PNG of what is seen of a document, and that of its selection, white where it is, or None."""
    document.waitForDone()
    width, height = document.width(), document.height()
    space = (document.colorModel(), document.colorDepth(), document.colorProfile())
    source = document
    if space != SPACE:
        source = document.clone()  # the original stays as it is
        source.setColorSpace(*SPACE)
        source.refreshProjection()
        source.waitForDone()
    pixels = bytes(source.pixelData(0, 0, width, height))
    if source is not document:
        source.close()
    picture = _png(pixels, width, height, 4, FORMAT.Format_ARGB32)
    selection = document.selection()
    if selection is None:
        return picture, None
    mask = bytes(selection.pixelData(0, 0, width, height))
    if not any(mask):
        return picture, None
    return picture, _png(mask, width, height, 1, FORMAT.Format_Grayscale8)


def _png(pixels, width, height, channels, form):
    image = QImage(pixels, width, height, width * channels, form)
    data = QByteArray()
    buffer = QBuffer(data)
    buffer.open(WRITE)
    image.save(buffer, "PNG")
    return bytes(data)


def put(document, layers, group=None):
    """Add layers to the top of a document, in a group of that name where one is given.

    Returns:
        The new nodes: the group, or the layers.

    Raises:
        ServerError: A layer is no picture.
    """
    images = [(layer, _image(layer)) for layer in layers]  # all of them, before anything is added
    parent = document.rootNode()
    if group:
        node = document.createGroupLayer(group)
        parent.addChildNode(node, None)
        parent = node
    made = [_add(document, parent, layer, image) for layer, image in images]
    document.refreshProjection()
    return [parent] if group else made


def _image(layer):
    image = QImage.fromData(layer.png, "PNG")
    if image.isNull():
        raise ServerError(f"The server's layer {layer.name!r} is no picture: try again.")
    return image.convertToFormat(FORMAT.Format_ARGB32)


def _add(document, parent, layer, image):
    node = document.createNode(layer.name, "paintlayer")
    if (node.colorModel(), node.colorDepth(), node.colorProfile()) != SPACE:
        node.setColorSpace(*SPACE)
    bits = image.constBits()
    bits.setsize(image.height() * image.bytesPerLine())
    node.setPixelData(QByteArray(bytes(bits)), layer.left, layer.top, image.width(), image.height())
    parent.addChildNode(node, None)  # above all that is there
    return node
