"""The entries of the menu Tools > Scripts, and what they do."""

import threading
from functools import partial

from krita import Extension, Krita

try:
    from PyQt5.QtCore import Qt
    from PyQt5.QtWidgets import QApplication, QInputDialog, QMessageBox, QProgressDialog
except ImportError:  # Krita 6
    from PyQt6.QtCore import Qt
    from PyQt6.QtWidgets import QApplication, QInputDialog, QMessageBox, QProgressDialog

from . import documents
from .client import ACTIONS, URL, Cancelled, Client, ServerError

NAME = "OmniAlpha"
MODAL = getattr(Qt, "WindowModality", Qt).WindowModal


def run_action(document, action, client, wait=None):
    """Do what an entry of the menu says with a document. Its own layers stay as they are.

    Args:
        document: Krita's.
        action: Of `ACTIONS`, by name.
        client: Of the server.
        wait: Called with a function that takes on_step and cancelled, and has to return what it returns; for a dialog.

    Returns:
        The new nodes.

    Raises:
        ServerError: With a sentence for the user; the document is unchanged.
        Cancelled: The user does not want it any more; the document is unchanged.
    """
    picture, mask = documents.take(document)
    ask = partial(client.run, action, picture, mask)
    return documents.put(document, wait(ask) if wait else ask(), ACTIONS[action].group)


def wait_in_dialog(title, ask):
    """Run `ask` beside Krita's own thread, with a bar of its steps and a button to cancel it."""
    made, failed, steps, stop = [], [], [(0, 0)], threading.Event()

    def work():
        try:
            made.append(ask(on_step=lambda *step: steps.append(step), cancelled=stop.is_set))
        except Exception as error:  # noqa: BLE001  raised again below, in the thread that called
            failed.append(error)

    dialog = QProgressDialog(title + "...", "Cancel", 0, 0, Krita.instance().activeWindow().qwindow())
    dialog.setWindowTitle(NAME)
    dialog.setWindowModality(MODAL)
    dialog.setMinimumDuration(0)
    dialog.setAutoReset(False)
    dialog.show()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        step, total = steps[-1]
        dialog.setMaximum(total)
        dialog.setValue(step)
        QApplication.processEvents()
        if dialog.wasCanceled():
            stop.set()
        thread.join(0.05)
    dialog.close()
    if failed:
        raise failed[0]
    return made[0]


class OmniAlphaExtension(Extension):
    """Krita makes one, and asks it for its entries for each window."""

    def setup(self):
        pass

    def createActions(self, window):
        for name, row in ACTIONS.items():
            entry = window.createAction("omnialpha_" + name, f"{NAME}: {row.title}", "tools/scripts")
            entry.triggered.connect(partial(self.act, name))
        entry = window.createAction("omnialpha_address", NAME + ": Address of the Server...", "tools/scripts")
        entry.triggered.connect(self.ask_address)

    def act(self, name, _checked=False):
        """An action of the menu, on the document in front."""
        document = Krita.instance().activeDocument()
        if document is None:
            return show("There is no picture: open one first.")
        client = Client(Krita.instance().readSetting(NAME, "url", "") or None)
        try:
            run_action(document, name, client, partial(wait_in_dialog, ACTIONS[name].title))
        except ServerError as error:
            show(str(error))
        except Cancelled:
            return

    def ask_address(self, _checked=False):
        """Where the server is, kept in Krita's settings."""
        krita = Krita.instance()
        old = krita.readSetting(NAME, "url", "") or URL
        url, agreed = QInputDialog.getText(None, NAME, "Address of `omnialpha serve`:", text=old)
        if agreed:
            krita.writeSetting(NAME, "url", url.strip())


def show(sentence):
    """A message for the user."""
    QMessageBox.warning(None, NAME, sentence)
