"""The words that curation asks with: prompts.toml, some of which a recipe may replace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template

from omnialpha import config
from omnialpha.errors import InputError

BUNDLED = Path(__file__).with_name("prompts.toml")
REMINDER = "That cannot be used: {why}. Follow the rules above and answer again, with nothing but what is asked for."


@dataclass(frozen=True)
class Prompt:
    """text: with $NAME for what is filled in."""

    text: str

    def fill(self, **values: str) -> str:
        return Template(self.text.strip()).substitute(values)


@dataclass(frozen=True)
class Prompts:
    """A question each, and what a remover is told."""

    caption: Prompt
    scene: Prompt
    whole: Prompt
    instruction: Prompt
    background: Prompt
    removal: Prompt

    @classmethod
    def read(cls, path: str = "") -> Prompts:
        """The bundled ones, and in their place those of a TOML file of the same form.

        Raises:
            InputError: The file is not of that form, or leaves out a $NAME, or has one that nothing is known of.
        """
        tree, own = config.load(BUNDLED), config.load(path) if path else {}
        made = config.build(cls, tree | own)
        for name in own:
            known, used = (_names(getattr(prompts, name)) for prompts in (config.build(cls, tree), made))
            if used != known:
                wrong = min(used ^ known)
                raise InputError(
                    f"the prompt {name} of {path} {'lacks' if wrong in known else 'has'} ${wrong}: mend it."
                )
        return made


def _names(prompt: Prompt) -> set[str]:
    return set(Template(prompt.text).get_identifiers())
