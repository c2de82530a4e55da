"""Run by kritarunner: every action in documents of several kinds; what became of them goes to PROBE_OUT as JSON."""

import json
import os
import traceback

from krita import Krita, Selection
from omnialpha_krita import documents
from omnialpha_krita.client import ACTIONS, Client, ServerError
from omnialpha_krita.extension import run_action

GREY, SRGB = "gray-D50-elle-V2-srgbtrc.icc", "sRGB-elle-V2-srgbtrc.icc"
KINDS = [("RGBA", "U8", SRGB), ("RGBA", "U16", SRGB), ("GRAYA", "U8", GREY)]


def tree(node):
    boxes = [(n, n.bounds()) for n in node.childNodes() if n.type() != "selectionmask"]
    return [
        {
            "name": n.name(),
            "type": n.type(),
            "depth": n.colorDepth(),
            "place": [box.x(), box.y(), box.width(), box.height()],
            "pixel": bytes(n.pixelData(4, 3, 1, 1)).hex(),
            "inside": tree(n),
        }
        for n, box in boxes
    ]


def probe(kind):
    document = Krita.instance().createDocument(12, 8, "test", *kind, 72.0)
    before, client = tree(document.rootNode()), Client(os.environ["PROBE_URL"])
    for action in ACTIONS:
        run_action(document, action, client)
    chosen = Selection()
    chosen.select(2, 1, 5, 4, 255)
    document.setSelection(chosen)
    run_action(document, "remove", client)
    picture, mask = documents.take(document)
    try:
        run_action(document, "remove", Client("http://127.0.0.1:9"))
    except ServerError as error:
        said = str(error)
    document.waitForDone()
    found = {"before": before, "after": tree(document.rootNode()), "said": said}
    found.update(picture=picture.hex(), mask=mask.hex(), kind=[document.colorModel(), document.colorDepth()])
    document.setModified(False)
    document.close()
    return found


def main(*_):
    Krita.instance().setBatchmode(True)
    try:
        found = {"kinds": [probe(kind) for kind in KINDS]}
    except Exception:  # noqa: BLE001  the test shows it
        found = {"trace": traceback.format_exc()}
    with open(os.environ["PROBE_OUT"], "w") as file:
        json.dump(found, file)
