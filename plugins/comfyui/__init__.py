"""OmniAlpha in ComfyUI: `comfy_entrypoint` is what ComfyUI looks for."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
