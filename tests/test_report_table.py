"""`sso table`: one table on the terminal, or as the report has it; bad input in one sentence."""

import pytest

import report
from report import measured, show
from sso.cli import main
from sso.records import write_text
from tests.test_report import experiment, tree
from workflow.experiment import Grid


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    made = experiment(seeds=[0])
    folder = tree(made, tmp_path_factory.mktemp("t") / "results/micro")
    write_text(folder / "config.json", made.model_dump_json())
    report.build(Grid(made), folder, folder / "report")
    return folder


@pytest.fixture
def there(results, monkeypatch):
    monkeypatch.chdir(results.parent.parent)
    return results


@pytest.mark.parametrize("form, ending", [("markdown", "md"), ("latex", "tex"), ("csv", "csv")])
def test_a_table_is_the_reports(there, capsys, form, ending):
    assert main(["table", "--experiment", "micro", "--version", "v2", "--table", "3", "--format", form]) == 0
    assert capsys.readouterr().out == (there / f"report/tables/v2_table3.{ending}").read_text()


def test_the_terminal_shows_ours_beside_the_papers(there, capsys):
    assert main(["table", "--config", str(there / "config.json"), "--version", "v1", "--table", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Experiment `micro`" in lines[0]
    at = next(i for i, line in enumerate(lines) if "PBAA v1, iteration 2" in line and "qwen2" not in line)
    block = "\n".join(lines[at : at + 3])
    # Our made-up length and the paper's, of the backbone that stands first in the config.
    assert " 72 " in block and "paper 1183" in block
    assert max(map(len, lines)) <= 200


@pytest.mark.parametrize(
    "given, said",
    [
        (["--experiment", "none"], "results/none/config.json: no such file"),
        ([], "give one of --experiment"),
        (
            ["--experiment", "micro", "--table", "5"],
            "micro has none of the arms that v2_table5 is about",
        ),
        (["--experiment", "micro", "--table", "steering"], "micro has no benchmark that v2_steering is about"),
        (
            ["--experiment", "micro", "--table", "9"],
            "v2 has no table '9'; there are 1, against_start, 2, 3, 4, 5, 6, figure3, quality, steering.",
        ),
    ],
)
def test_bad_input_is_one_sentence(there, capsys, given, said):
    assert main(["table", *(given if "--table" in given else [*given, "--table", "1"])]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def own_specs(monkeypatch, **tables) -> None:
    """tables.yaml with these tables, too."""
    content = measured.specs()
    changed = {**content, "tables": {**content["tables"], **tables}}
    for module in (measured, show):
        monkeypatch.setattr(module, "specs", lambda: changed)


def test_a_new_table_is_known_by_its_name(there, capsys, monkeypatch):
    mine = {"title": "Mine", "version": "v2", "rows": ["base", "sso"], "columns": ["alpaca_eval2_wr"]}
    own_specs(monkeypatch, mine=mine, v2_other=mine)
    for name in ("mine", "other"):
        assert main(["table", "--experiment", "micro", "--table", name, "--format", "csv"]) == 0
        assert "alpaca_eval2_wr" in capsys.readouterr().out
    assert main(["table", "--experiment", "micro", "--table", "mein"]) == 2
    assert (
        "there are 1, against_start, 2, 3, 4, 5, 6, figure3, quality, steering, other, mine." in capsys.readouterr().err
    )


def test_a_misspelt_metric_of_a_table_is_told_with_the_nearest(there, capsys, monkeypatch):
    own_specs(monkeypatch, mine={"title": "M", "version": "v2", "rows": ["base"], "columns": ["alpaca_eval2_wrr"]})
    assert main(["table", "--experiment", "micro", "--table", "1"]) == 2
    error = capsys.readouterr().err
    assert (
        "tables.yaml: tables.mine.columns: unknown metric 'alpaca_eval2_wrr'; did you mean `alpaca_eval2_wr`?" in error
    )
