"""A comparison's tables and page, drawn from its file of records alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemminer import api
from gemminer.cli import main
from gemminer.core.errors import GemminerError
from gemminer.runs import archive, compare
from gemminer.runs.archive import Archive, Entry
from tests.reporting.fakes import make_run
from tests.reporting.reader import Page
from tests.runs.helpers import plan

TABLES = ("table.csv", "table.md", "summary.csv", "costs.csv")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of which one cell failed."""
    out, run = tmp_path_factory.mktemp("compared"), compare.execute.run_recipe

    def broken(recipe: compare.Recipe, *args: object, **more: object) -> object:
        if (recipe.method, recipe.seed) == ("snip", 1):
            raise GemminerError("no memory")
        return run(recipe, *args, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare.execute, "run_recipe", broken)
        api.compare(plan(method=["uniform", "snip"], seed="0-1", checks=["shuffle"]), out, workers=0, threads=1)
    return out


def test_drawn_again_it_is_the_same_to_the_byte(compared: Path, tmp_path: Path) -> None:
    page = api.draw(compared / archive.NAME, tmp_path / "again")
    assert page == tmp_path / "again" / "report.html"
    for name in TABLES:
        assert (tmp_path / "again" / name).read_bytes() == (compared / name).read_bytes(), name
    # The page's rows link to the runs' own pages, which lie in the comparison's folder only; here none was written.
    assert page.read_bytes() == (compared / "report.html").read_bytes()
    assert "failed: no memory" in Page(page).text


def test_the_command_draws_and_runs_nothing(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "run_cells", lambda *_, **__: pytest.fail("ran"))
    file = (tmp_path / "moved.jsonl.gz").absolute()
    file.write_bytes((compared / archive.NAME).read_bytes())
    assert main(["compare", "--draw", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(tmp_path / "report.html")}
    assert (tmp_path / "summary.csv").read_bytes() == (compared / "summary.csv").read_bytes()
    assert main(["compare", "--draw", str(file), "--out", str(tmp_path / "a" / "b")]) == 0
    assert str(Path("a") / "b" / "report.html, table.csv") in capsys.readouterr().out.replace("\n", "")
    assert main(["compare", "--draw", str(file), "--density", "0.1"]) == 2
    assert main(["compare", "--density", "0.1"]) == 2
    assert main(["compare", "--draw", str(tmp_path / "none.gz")]) == 2
    said = capsys.readouterr().err
    for sentence in ("give only --out beside it", "a comparison needs a folder: add --out FOLDER", "cannot read"):
        assert sentence in said


def test_a_file_that_was_cut_short_says_so_on_the_page(compared: Path, tmp_path: Path) -> None:
    packed = (compared / archive.NAME).read_bytes()
    (tmp_path / archive.NAME).write_bytes(packed[:-5])
    text = Page(api.draw(tmp_path / archive.NAME)).text
    assert "its last cell was cut short, and is left out" in text
    assert "no record: it has not run, or not finished" in text


def test_a_single_run_is_drawn_as_its_own_page_with_its_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", recipe={"density": 0.0059}, verdict=None)
    kept = archive.from_folders([("gem-miner", run)], "gemminer mine", ["search", "train"])
    page = Page(api.draw(archive.write(tmp_path / "one.jsonl.gz", kept), tmp_path / "one"))
    assert list(page.figures()) == ["search", "training", "checks", "layers"]
    assert len(page.figures()["search"]["data"][0]["x"]) == 40
    assert "97.1% after training" in page.text


def test_a_file_without_a_record_is_refused(tmp_path: Path) -> None:
    cell = plan(dense=False).cells()[0]
    failed = Archive("x", plan(dense=False).as_fields(), 1, {cell.digest: Entry(cell.digest, cell.label, error="no")})
    with pytest.raises(GemminerError, match="there is no record in"):
        api.draw(archive.write(tmp_path / "none.jsonl.gz", failed))


def test_a_damaged_check_is_listed_with_the_rest(tmp_path: Path) -> None:
    unpaired = {"shuffle": {"mean": 0.5, "std": 0.1, "verdict": "pass", "values": [], "ticket_values": []}}
    entries = {}
    for number, changes in enumerate(({}, {"checks": unpaired})):
        run = make_run(tmp_path / str(number), metrics=False, recipe={"seed": number}, seed=number, **changes)
        entries[str(number)] = Entry(str(number), "gem-miner", archive.record.read(run))
    page = Page(api.draw(archive.write(tmp_path / "x.jsonl.gz", Archive("x", entries=entries)), tmp_path / "out"))
    assert "1 of 2 runs is missing" in page.text
    assert "check shuffle has no paired values" in page.text
