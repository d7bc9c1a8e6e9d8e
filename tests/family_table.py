"""Writes the table of families into docs/conversion.md, from what the code says."""

from pathlib import Path

from family_cases import CASES, FULL

from allmem_mlx.convert.base_config import fixed_settings
from allmem_mlx.families import FAMILIES

DOCS = Path(__file__).parents[1] / "docs" / "conversion.md"
BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->\n"
TEST = "tests/test_families.py::test_the_logits_are_those_of_transformers"


def layers(family: str) -> str:
    """Which layers become hybrids, as the cases show."""
    kinds = []
    for name, (kind, config) in CASES.items():
        if kind != family:
            continue
        if name.endswith(", sliding"):
            kinds.append("all, within the base's window, if all slide")
        elif config.get("sliding_window") and config.get("layer_types") != [FULL] * 2:
            kinds.append("global ones; sliding ones stay as they are")
        else:
            kinds.append("all")
    return "; ".join(dict.fromkeys(kinds))


def refused(family: str) -> str:
    """Settings with another value, and rotary embeddings of other types."""
    values = [
        f"`{name}` not " + " or ".join(f"`{value}`" for value in accepted)
        for name, accepted in sorted(fixed_settings(family).items())
    ]
    types = ", ".join(FAMILIES[family].rope_types)
    return "; ".join([f"`rope_type` not {types}", *values])


def table() -> str:
    rows = ["| family | hybrid layers | refused | cases |", "|---|---|---|---|"]
    for family in sorted(FAMILIES):
        cases = ", ".join(f"`{n}`" for n, (kind, _) in CASES.items() if kind == family)
        rows.append(f"| {family} | {layers(family)} | {refused(family)} | {cases} |")
    proof = (
        f"Every case is a checkpoint made by transformers and compared with it by\n"
        f"`{TEST}[case]`.\n\n"
    )
    return proof + "\n".join(rows) + "\n"


def updated(text: str) -> str:
    """The document with the table of today."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(updated(DOCS.read_text()))
