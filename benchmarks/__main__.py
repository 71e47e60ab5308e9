"""Run the benchmarks and keep the tables: `python -m benchmarks [SECTION ...] [--rounds N] [--write]`."""

from __future__ import annotations

import argparse
import datetime
import importlib
from pathlib import Path

from benchmarks.harness import commit, hardware

# section: module:function, in the order of the page
SECTIONS = {
    "pgd-floor": "benchmarks.pgd:floor",
    "below-floor": "benchmarks.below_floor:below",
    "pgd-peers": "benchmarks.pgd:peers",
    "balls": "benchmarks.strength:balls",
    "floors": "benchmarks.floors:floors",
    "distances": "benchmarks.strength:distances",
    "distances-large": "benchmarks.strength:distances_large",
    "distances-photos": "benchmarks.strength:distances_photos",
    "saliency": "benchmarks.strength:saliency",
    "scores": "benchmarks.queries:by_scores",
    "scores-large": "benchmarks.queries:by_scores_large",
    "scores-photos": "benchmarks.queries:by_scores_photos",
    "labels": "benchmarks.queries:by_labels",
    "labels-large": "benchmarks.queries:by_labels_large",
    "labels-photos": "benchmarks.queries:by_labels_photos",
    "labels-equal": "benchmarks.queries:by_labels_equal",
    "pixels-equal": "benchmarks.queries:by_pixels_equal",
    "square-imagenet": "benchmarks.queries:published",
    "queries-floor": "benchmarks.query_speed:floors",
    "queries-speed": "benchmarks.query_speed:peers",
    "regions-hard": "benchmarks.regions:hard",
    "regions-survivors": "benchmarks.regions:survivors",
    "audit-standard": "benchmarks.audits:standard",
    "audit-fast": "benchmarks.audits:fast",
    "audit-fast-large": "benchmarks.audits:fast_large",
    "audit-memory": "benchmarks.audits:memory",
    "audit-workers": "benchmarks.audits:workers",
    "training-cost": "benchmarks.training_cost:cost",
    "training-processes": "benchmarks.training_cost:processes",
    "negatives": "benchmarks.negatives:negatives",
    "training-mnist-fast": "benchmarks.training:fast",
    "training-mnist-trades": "benchmarks.training:trades",
    "training-mnist-pgd": "benchmarks.training:pgd",
}
# Sections that are run once, whatever --rounds says: their figures are strengths, or too long to repeat.
ONCE = {
    *("balls", "scores", "scores-large", "scores-photos", "labels", "labels-large", "labels-photos", "square-imagenet"),
    "negatives",
    *("regions-hard", "regions-survivors", "audit-fast", "audit-fast-large", "audit-memory"),
    *("training-mnist-fast", "training-mnist-trades", "training-mnist-pgd"),
}
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
INTRO = """# Benchmarks

Ratios of times come from one interleaved run: every contender runs once a round, in turn; medians with their range. Below 1
we are faster. Tables without a range are one run each. Strength is robust accuracy (lower is a stronger attack) with n
stated. `make bench` prints these tables, losses included; the peers are installed by its extra, `bench`. CIFAR-10 here means
JPEG-recompressed copies.
"""


def main() -> None:
    """Run the chosen sections; with --write, replace them on the page and leave the others as they are."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--write", action="store_true", help="keep the tables in docs/benchmarks.md")
    given = options.parse_args()
    unknown = [s for s in given.sections if s not in SECTIONS]
    if unknown:
        raise SystemExit(f"no section is called {', '.join(unknown)}; known: {', '.join(SECTIONS)}")
    print(f"commit {commit()}; {hardware()}", flush=True)
    for name in given.sections or SECTIONS:
        module, function = SECTIONS[name].split(":")
        told = getattr(importlib.import_module(module), function)(given.rounds)
        times = "one run" if name in ONCE else f"{given.rounds} rounds"
        stamp = f"commit {commit()}, {datetime.date.today()}, {hardware()}, {times}"
        print(f"\n## {name}\n\n{told}\n", flush=True)
        if given.write:
            keep(name, f"## {name}\n\n{told}\n\n*{stamp}*\n")


def keep(name: str, section: str) -> None:
    """Write one section into the page, in the order of SECTIONS."""
    text = PAGE.read_text() if PAGE.exists() else INTRO
    head, *rest = text.split("\n## ")
    sections = {part.split("\n", 1)[0].strip(): f"## {part.strip()}\n" for part in rest}
    sections[name] = section
    ordered = [sections[key] for key in SECTIONS if key in sections]
    PAGE.write_text("\n".join([head.strip() + "\n", *ordered]))


if __name__ == "__main__":
    main()
