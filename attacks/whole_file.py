"""Text files that appear whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """The file bears its name once it is complete; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)
