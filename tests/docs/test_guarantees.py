"""Each promise in the documentation names a test that is there, and each link leads somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "order_service" / "README.md",
]


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_test_named_in_the_documentation_exists() -> None:
    named = {path for page in PAGES for path in re.findall(r"tests/[\w/]+\.py", page.read_text())}
    assert named
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]


def test_each_promise_names_its_tests() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text().partition("\n## Beside these")[0]
    promises = re.split(r"^\*\*(G\d)\. ", text, flags=re.MULTILINE)[1:]
    assert promises[::2] == [f"G{number}" for number in range(1, 9)]
    assert all("`tests/" in promise for promise in promises[1::2])


def test_every_link_between_pages_leads_somewhere() -> None:
    broken = []
    for page in PAGES:
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append((page.name, path, anchor))
    assert not broken
