"""Imports point one way."""

import import_graph
import pytest


def test_no_arrow_points_up_and_there_is_no_circle():
    assert import_graph.faults(import_graph.graph()) == []


@pytest.mark.parametrize(
    "extra, words",
    [
        ({"allmem_mlx.config": {"allmem_mlx.session"}}, "config (settings) imports"),
        ({"allmem_mlx.errors": {"allmem_mlx.config"}}, "circle: "),
    ],
    ids=["upward", "circle"],
)
def test_such_an_import_is_found(extra, words):
    edges = import_graph.graph()
    for name, others in extra.items():
        edges[name] = edges[name] | others
    assert any(words in fault for fault in import_graph.faults(edges))


def test_imports_inside_functions_are_seen():
    edges = import_graph.graph()
    assert "allmem_mlx.convert.conversion" in edges["allmem_mlx.convert"]
    assert "allmem_mlx.convert" in edges["allmem_mlx.default_model"]
