"""Writes the table of families into docs/conversion.md, from what the code says."""

from functools import cache
from pathlib import Path

from family_cases import CASES, config_of

from allmem_mlx.convert.base_config import EXPERTS, carry_over, fixed_settings
from allmem_mlx.families import FAMILIES, SCALED, attention_windows, reach

DOCS = Path(__file__).parents[1] / "docs" / "conversion.md"
BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->\n"
TEST = "tests/test_families.py::test_the_logits_are_those_of_transformers"
LEGEND = f"""\
Every case is a checkpoint made by transformers and compared with it by
`{TEST}[case]`,
and beyond the window by the tests after that. A family's first case has its name; the
table says what others try.

- **kind**: dense, if it is empty; a mixture of experts, in all layers or some; what
  layers beside attention, or branches, have a state of their own.
- **hybrids**: `all` layers that have attention; the `global` ones, where others slide;
  the `sliding` ones, if all slide.
- **rotary**: the types that are obeyed; *scaled* are {", ".join(SCALED)}.
  With †, as far as the base computes the same: `sinks + window + chunk` is bounded.
- **only with**: values of settings; others are refused. So are, in every family,
  another activation than its own, and a `partial_rotary_factor` that mlx-lm does not
  read.
"""
# What the legend says of every family.
EVERYWHERE = {"hidden_act", "hidden_activation", "partial_rotary_factor"}


@cache
def cases(family: str) -> dict[str, dict]:
    """The cases of a family, as they are carried over."""
    return {
        name: carry_over(config_of(name))
        for name, (kind, _) in CASES.items()
        if kind == family
    }


def kind(family: str) -> str:
    configs = cases(family).values()
    mixed = any(config.get(name) for config in configs for name in EXPERTS)
    state = FAMILIES[family].recurrent
    return ", ".join(filter(None, [state, "experts" if mixed else None]))


def hybrids(family: str) -> str:
    """Which layers become hybrids, as the cases show."""
    found = []
    for config in cases(family).values():
        windows = attention_windows({**config, "model_type": family}).values()
        if any(windows):
            found.append("global")
        else:
            found.append("sliding" if config["sliding_window"] else "all")
    return " or ".join(dict.fromkeys(found))


def rotary(family: str) -> str:
    types = FAMILIES[family].rope_types
    scaled = set(types) >= set(SCALED)
    names = [*(["scaled"] if scaled else []), *(x for x in types if x not in SCALED)]
    if not scaled:
        names = list(types)
    bounded = any(
        reach({**config, "model_type": family}) for config in cases(family).values()
    )
    return ", ".join(names) + "†" * bounded


def only_with(family: str) -> str:
    """Settings that must have a value."""
    values = [
        f"`{name}` " + " or ".join(f"`{value}`" for value in accepted)
        for name, accepted in sorted(fixed_settings(family).items())
        if name not in EVERYWHERE
    ]
    return ", ".join(values)


def table() -> str:
    rows = ["| family | kind | hybrids | rotary | only with | also tried |"]
    rows.append("|---|---|---|---|---|---|")
    for family in sorted(FAMILIES):
        others = [name.partition(", ")[2] for name in list(cases(family))[1:]]
        columns = [family, kind(family), hybrids(family), rotary(family)]
        columns += [only_with(family), "; ".join(others)]
        rows.append("| " + " | ".join(columns) + " |")
    return f"{LEGEND}\n{len(FAMILIES)} families:\n\n" + "\n".join(rows) + "\n"


def updated(text: str) -> str:
    """The document with the table of today."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(updated(DOCS.read_text()))
