"""The table of all attacks in docs/which-attack.md, from their cards: `python scripts/which_attack.py` writes it anew."""

from __future__ import annotations

from pathlib import Path

from sparring.core.registry import attack_cards

PAGE = Path(__file__).parent.parent / "docs" / "which-attack.md"
MARKS = ("<!-- cards -->", "<!-- end of cards -->")


def rendered() -> str:
    """The table, in Markdown: what asks for least first, by name within."""
    lines = ["| attack | needs | change | spaces | goals | cost |", "|---|---|---|---|---|---|"]
    for card in sorted(attack_cards(), key=lambda c: (c.access, c.domains != ("tensor",), c.name)):
        lines.append(
            f"| `{card.name}` | {card.access} | {'smallest' if card.minimal else 'within eps'} | {' '.join(card.spaces)} | "
            f"{' '.join(card.goals)} | {card.cost.replace('|', '/')} |"
        )
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its table renewed."""
    head, rest = text.split(MARKS[0])
    _, tail = rest.split(MARKS[1])
    return f"{head}{MARKS[0]}\n{rendered()}\n{MARKS[1]}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
