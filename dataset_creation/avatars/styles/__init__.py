"""The avatar styles as tables; `style.py` says what a style is, every other file holds one."""

from dataset_creation.avatars.styles import (
    avataaars,
    big_smile,
    micah,
    miniavs,
    open_peeps,
    personas,
    toon_head,
)
from dataset_creation.avatars.styles.style import ABSENT, State, Style

__all__ = ["ABSENT", "State", "Style", "styles"]


def styles() -> dict[str, Style]:
    """All styles by name."""
    modules = (avataaars, open_peeps, toon_head, personas, big_smile, micah, miniavs)
    return {style.name: style for style in (module.style() for module in modules)}
