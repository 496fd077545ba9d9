"""What stands in the blocks of a page in docs/, for tests that do it."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


class Page:
    """A page of docs/, by its name."""

    def __init__(self, name: str):
        text = (DOCS / name).read_text(encoding="utf-8")
        self.sections: dict[str, list[str]] = {}
        section = ""
        for part in re.split(r"(^```.*?^```\n|^#+ [^\n]*\n)", text, flags=re.MULTILINE | re.DOTALL):
            if part.startswith("#"):
                section = part.strip("# \n")
            elif part.startswith("```"):
                self.sections.setdefault(section, []).append(part.partition("\n")[2].removesuffix("```\n"))

    def block(self, section: str, beginning: str) -> str:
        """Returns the block of a section that begins like this."""
        found = [block for block in self.sections[section] if block.startswith(beginning)]
        assert len(found) == 1, f"{len(found)} blocks below {section!r} begin with {beginning!r}"
        return found[0]

    def commands(self, section: str) -> list[str]:
        """Returns what is typed in a shell in a section, by root or by anybody: blocks of lines with a prompt."""
        blocks = [block.splitlines() for block in self.sections[section]]
        return [line[2:] for lines in blocks if all(line[:2] in ("# ", "$ ") for line in lines) for line in lines]
