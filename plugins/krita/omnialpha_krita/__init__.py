"""OmniAlpha in Krita. Krita imports this package when it starts."""

from krita import Krita

from .extension import OmniAlphaExtension

Krita.instance().addExtension(OmniAlphaExtension(Krita.instance()))
