"""A plug-in for Krita that uses the menu entries of the one under test, closes the messages that they show, and ends.

What it saw goes to PROBE_OUT as JSON.
"""

import json
import os
import traceback

from krita import Extension, Krita
from PyQt5.QtCore import QTimer
from PyQt5.QtWidgets import QApplication, QInputDialog, QMessageBox, QProgressDialog

found = {"said": []}
cancel = []


def close_dialogs():
    for widget in [one for one in QApplication.topLevelWidgets() if one.isVisible()]:
        if isinstance(widget, QMessageBox):
            found["said"].append(widget.text())
            widget.accept()
        elif isinstance(widget, QInputDialog):
            widget.setTextValue("http://127.0.0.1:9")
            widget.accept()
        elif isinstance(widget, QProgressDialog) and cancel:
            widget.cancel()


def use_menu():
    krita = Krita.instance()
    found["entries"] = [one.text() for one in krita.actions() if one.objectName().startswith("omnialpha")]
    krita.action("omnialpha_cut_out").trigger()  # without a document
    document = krita.createDocument(12, 8, "test", "RGBA", "U8", "sRGB-elle-V2-srgbtrc.icc", 72.0)
    krita.activeWindow().addView(document)
    for name in ("cut_out", "split"):
        krita.action("omnialpha_" + name).trigger()
    cancel.append(True)
    krita.action("omnialpha_remove").trigger()
    krita.action("omnialpha_address").trigger()
    krita.action("omnialpha_remove").trigger()
    found["nodes"] = [node.name() for node in document.rootNode().childNodes()]


def go():
    timer = QTimer()
    timer.timeout.connect(close_dialogs)
    timer.start(200)
    try:
        use_menu()
    except Exception:  # noqa: BLE001  the test shows it
        found["trace"] = traceback.format_exc()
    with open(os.environ["PROBE_OUT"], "w") as file:
        json.dump(found, file)
    os._exit(0)  # Krita would ask what to do with the document


class ProbeExtension(Extension):
    def setup(self):
        pass

    def createActions(self, window):
        QTimer.singleShot(3000, go)  # when the window is there


Krita.instance().addExtension(ProbeExtension(Krita.instance()))
