"""Products in every form: which there are, what is added up, and what is shown."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from glm_export import api
from glm_export.cli import cli
from glm_export.modeling import Decoder, linear_weights
from glm_export.performance import sweep as room
from glm_export.performance.sweep import FORMS, ROWS, FormSpeed, Product, SweepReport, products_of, sweep
from tests.helpers.golden_data import Golden


@pytest.mark.parametrize("name", ["chatglm2", "glm", "glm4_moe"])
def test_every_linear_layer_is_one_of_them(name: str) -> None:
    config = api.open_checkpoint(Golden(name).folder).config
    model = Decoder(config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    products = products_of(config)
    assert sum(product.count for product in products) == len(linear_weights(model))
    elements = sum(parameters[name].numel() for name in linear_weights(model))
    assert sum(product.count * product.rows_N * product.columns_K for product in products) == elements
    assert "head" in {name for product in products for name in product.names}


def report_of(*seconds: dict[str, float]) -> SweepReport:
    """Products whose forms take so long, whatever the tokens, 2, 3, … of each."""
    products = tuple(
        (
            Product(names=(f"p{count}",), rows_N=4, columns_K=2, count=count),
            tuple(FormSpeed(form=form, nbytes=10, seconds=dict.fromkeys(ROWS, s)) for form, s in of.items()),
        )
        for count, of in enumerate(seconds, 2)
    )
    return SweepReport(model="m", threads=1, rounds=1, machine=room.this_machine(()), products=products)


def test_a_call_is_all_of_its_products() -> None:
    report = report_of({"a": 1.0, "b": 2.0}, {"a": 0.5, "b": 0.25})
    assert (report.total("a", 1), report.total("b", 1)) == (3.5, 4.75)
    assert report.nbytes("a") == 50
    assert [speed.form for _, speed in report.fastest(8)] == ["a", "b"]


def test_what_is_measured_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CACHE_BYTES", 1 << 20)
    config = api.open_checkpoint("demo").config
    found = sweep("demo", config, threads=1, rounds=1)
    assert all(tuple(one.form for one in speeds) == tuple(FORMS) for _, speeds in found.products)
    assert all(one.seconds[tokens] > 0 for _, speeds in found.products for one in speeds for tokens in ROWS)
    # Half the bits, about half the bytes: what was measured are those forms.
    assert found.nbytes("4 bits / 128") < 0.6 * found.nbytes("8 bits / 128") < 0.2 * found.nbytes("float32")
    monkeypatch.setattr(room, "sweep", lambda *_, **__: found)
    shown = CliRunner().invoke(cli, ["bench", "demo", "--sweep"], catch_exceptions=False).output
    assert all(form in shown for form in FORMS)
    assert "fastest with 8 tokens" in shown
    told = json.loads(CliRunner().invoke(cli, ["bench", "demo", "--sweep", "--json"], catch_exceptions=False).output)
    assert len(told["products"]) == len(found.products)
    refused = CliRunner().invoke(cli, ["bench", "demo", "--sweep", "--report", "page.html"])
    assert refused.exit_code == 2
    assert "--sweep prints a table" in refused.stderr
