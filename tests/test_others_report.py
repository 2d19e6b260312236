"""verify of the losses without kernels, and that verify leaves no loss out."""

from __future__ import annotations

import pytest
from conftest import cpu_only

from lossops import functional
from lossops.report import build, others_verify
from lossops.report.others_verify import OTHERS
from lossops.report.tables import to_text

pytestmark = cpu_only
each_other = pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)


def test_every_loss_is_verified():
    names = {getattr(row, "public_name", row.name) for family in build.FAMILIES for row in family}
    assert names == set(functional.__all__)


@each_other
def test_verify_passes(other):
    result = others_verify.verify([other])
    assert result["passed"], others_verify.failures(result)
    assert other.name in to_text(others_verify.tables(result)[0])


@each_other
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_verify_finds_what_is_wrong(other, what, monkeypatch):
    right = getattr(functional, other.name)

    def wrong(input, *arguments, **options):
        loss = right(input, *arguments, **options)
        return loss * 1.001 if what == "value" else loss + (input - input.detach()).sum()

    monkeypatch.setattr(functional, other.name, wrong)
    result = others_verify.verify([other])
    assert not result["passed"]
    failed = {name for row in result["checks"] for name in row if row[name] and name in FOUND}
    assert failed >= {"float64", "float32"} | ({"gradcheck"} if what == "gradient" else set())
    assert others_verify.failures(result)


FOUND = ("float64", "float32", "gradcheck")
