"""What stands beside `ldm` in the wheel: the programs and what they read, in one folder."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FILES = (
    "main.py",
    "edit_dataset.py",
    "edit_cli.py",
    "edit_app.py",
    "prompt_app.py",
    "scripts/convert_checkpoint.py",
    "checkpoints/avatars.safetensors",
    "checkpoints/README.md",
    "imgs/example.jpg",
)


class Programs(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":  # such an installation finds them in the checkout
            build_data["force_include"] |= {name: f"ip2p/{name}" for name in FILES}
