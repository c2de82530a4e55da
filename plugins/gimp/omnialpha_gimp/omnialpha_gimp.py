#!/usr/bin/env python3
"""OmniAlpha in GIMP 3: three entries of the menu Filters > OmniAlpha, by a local `omnialpha serve`."""

import os
import sys
import tempfile

import gi

gi.require_version("Gimp", "3.0")
from gi.repository import Gimp, Gio, GLib  # noqa: E402  the version comes first

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from client import ACTIONS, Client, ServerError  # noqa: E402

PREFIX = "omnialpha-"


class OmniAlphaPlugIn(Gimp.PlugIn):
    """GIMP makes one for each call."""

    def do_query_procedures(self):
        return [PREFIX + name.replace("_", "-") for name in ACTIONS]

    def do_set_i18n(self, _name):
        return False

    def do_create_procedure(self, name):
        action = name[len(PREFIX) :].replace("-", "_")
        procedure = Gimp.ImageProcedure.new(self, name, Gimp.PDBProcType.PLUGIN, self.run, action)
        procedure.set_image_types("*")
        with_image = Gimp.ProcedureSensitivityMask
        procedure.set_sensitivity_mask(with_image.DRAWABLE | with_image.DRAWABLES | with_image.NO_DRAWABLES)
        procedure.set_menu_label(ACTIONS[action].title)
        procedure.add_menu_path("<Image>/Filters/OmniAlpha")
        procedure.set_documentation("Adds new layers; a selection says what is meant.", None, name)
        procedure.set_attribution("OmniAlpha", "OmniAlpha", "2026")
        return procedure

    def run(self, procedure, _mode, image, _drawables, _config, action):
        """What GIMP calls. The sentence of an error is shown by GIMP."""
        Gimp.progress_init(ACTIONS[action].title)
        try:
            run_action(image, action, Client())
        except ServerError as error:
            status = GLib.Error.new_literal(Gimp.PlugIn.error_quark(), str(error), 0)
            return procedure.new_return_values(Gimp.PDBStatusType.EXECUTION_ERROR, status)
        Gimp.displays_flush()
        return procedure.new_return_values(Gimp.PDBStatusType.SUCCESS, GLib.Error())


def run_action(image, action, client):
    """Do what an entry of the menu says with an image. Its own layers stay as they are.

    Returns:
        The new layers, or the group that they are in.

    Raises:
        ServerError: With a sentence for the user; the image is unchanged.
    """
    with tempfile.TemporaryDirectory() as folder:
        picture, mask = take(image, folder)
        made = client.run(action, picture, mask, on_step=show_progress)
        return put(image, made, ACTIONS[action].group, folder)


def show_progress(step, total):
    """The share of the steps that is done; a bar that moves where nobody knows it."""
    if total:
        Gimp.progress_update(step / total)
    else:
        Gimp.progress_pulse()


def take(image, folder):
    """The PNG of what is seen of an image, and that of its selection, white where it is, or None."""
    copy = image.duplicate()  # the original stays as it is
    try:
        if copy.get_base_type() != Gimp.ImageBaseType.RGB:
            copy.convert_rgb()
        selected = not Gimp.Selection.is_empty(copy)
        layer = copy.merge_visible_layers(Gimp.MergeType.CLIP_TO_IMAGE)
        if layer is None:
            raise ServerError("Nothing of the picture is seen: show a layer of it.")
        layer.resize_to_image_size()
        picture = save(copy, os.path.join(folder, "picture.png"))
        if not selected:
            return picture, None
        layer.fill(Gimp.FillType.WHITE)
        copy.flatten()
        Gimp.Selection.invert(copy)
        Gimp.context_push()
        Gimp.context_set_default_colors()  # black is the foreground
        copy.get_layers()[0].edit_fill(Gimp.FillType.FOREGROUND)
        Gimp.context_pop()
        return picture, save(copy, os.path.join(folder, "mask.png"))
    finally:
        copy.delete()


def save(image, path):
    """The bytes of an image as a file."""
    Gimp.file_save(Gimp.RunMode.NONINTERACTIVE, image, Gio.File.new_for_path(path), None)
    with open(path, "rb") as file:
        return file.read()


def put(image, layers, group, folder):
    """Add layers to the top of an image in one step of undo, in a group of that name where one is given."""
    loaded = [load(image, layer, os.path.join(folder, f"{k}.png")) for k, layer in enumerate(layers)]
    image.undo_group_start()
    try:
        parent = None
        if group:
            parent = Gimp.GroupLayer.new(image, group)
            image.insert_layer(parent, None, 0)
        for layer, made in zip(layers, loaded):  # noqa: B905  from back to front, each on top
            image.insert_layer(made, parent, 0)
            made.set_offsets(layer.left, layer.top)
        return [parent] if group else loaded
    finally:
        image.undo_group_end()


def load(image, layer, path):
    """A layer of the image, not yet in it."""
    with open(path, "wb") as file:
        file.write(layer.png)
    made = Gimp.file_load_layer(Gimp.RunMode.NONINTERACTIVE, image, Gio.File.new_for_path(path))
    if made is None:
        raise ServerError(f"The server's layer {layer.name!r} is no picture: try again.")
    made.set_name(layer.name)
    return made


if __name__ == "__main__":
    Gimp.main(OmniAlphaPlugIn.__gtype__, sys.argv)
