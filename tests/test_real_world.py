"""The real world: constraints on real prompts, by IFEval's checkers; a corpus made here stands for real text."""

import json
from itertools import product
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import real_lm
from eval.judge import OracleJudge
from eval.sources import check
from eval.statistics import mean_interval
from sso import worlds
from sso.config import parse
from sso.errors import InputError
from sso.records import Answer, Message, Pair, Principles, Query, read
from sso.sampling.triples import pairs_of
from sso.worlds.real import corpus
from sso.worlds.real.data import KEPT, Writer, write_all
from sso.worlds.real.kinds import KINDS
from sso.worlds.real.oracle import ConstraintOracle, constraints, is_answer
from sso.worlds.settings import RealWorld

SUBJECTS = (
    "The harbour",
    "A garden",
    "The old clock",
    "My neighbour",
    "Every winter",
    "The river",
    "A library",
    "Bread",
)
ENDS = (
    "needs patience, care and a little luck",
    "has changed a lot over the years",
    "tells more about a town than any map",
    "makes people talk to each other",
    "is worth a visit, even in the rain",
)


def rows() -> list[dict]:
    """Prompts with an answer of five sentences each."""
    made = []
    for number, (subject, first) in enumerate(product(SUBJECTS, ENDS)):
        random = Random(number)
        said = [f"{subject} {first}.", *(f"{random.choice(SUBJECTS)} {end}." for end in random.sample(ENDS, 4))]
        made.append({"instruction": f"Say why {subject.lower()} {first}.", "input": "", "output": " ".join(said)})
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("real") / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    return path


def world(source: Path, **own) -> RealWorld:
    small = {"sft_examples": 40, "train_queries": 20, "tune_queries": 6, "eval_queries": 12, "annotated_pairs": 6}
    return RealWorld(name="real", sources=[str(source)], **{**small, "benchmark_items": 8, **own})


@pytest.fixture(scope="module")
def writer(source: Path) -> Writer:
    return Writer(world(source, two_constraints=0.5))


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data")
    write_all(world(source), out, 2)
    return out


def ask(*sentences: str) -> list[Message]:
    return [Message(role="user", content="\n\n".join(["Tell me about bread.", *sentences]))]


def sentence(kind: str) -> str:
    return next(text for text, one in constraints().items() if one.kind.id == kind)


BREAD = "Bread needs patience, care and a little luck. It makes people talk. It is worth the wait."


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("change_case:english_lowercase", BREAD.lower()),
        ("change_case:english_capital", BREAD.upper()),
        ("punctuation:no_comma", BREAD.replace(",", "")),
        ("startend:quotation", f'"{BREAD}"'),
        ("detectable_format:title", f"<<On Bread>>\n{BREAD}"),
        ("detectable_content:postscript", f"{BREAD}\nP.S. Try rye."),
        ("length_constraints:number_words", "Bread needs patience and some luck."),
        ("detectable_format:number_highlighted_sections", "Bread needs *patience* and a *little* luck, they say."),
        ("length_constraints:number_paragraphs", "Bread needs patience, they say.\n***\nIt makes people talk."),
        ("detectable_format:multiple_sections", "Section 1\nBread needs patience.\nSection 2\nIt is worth it."),
    ],
)
def test_the_oracle_decides_each_kind_by_the_text_alone(kind, kept):
    oracle, prompt = ConstraintOracle(), ask(sentence(kind))
    long = BREAD + " It has changed a lot over the years, and so have those who bake it every day."
    assert oracle.score(prompt, kept).features == {"answer": 1, kind: 1}
    assert oracle.score(prompt, kept).total == 1
    assert oracle.score(prompt, long).total == 0


def test_two_constraints_count_half_each_and_what_is_no_answer_counts_nothing():
    oracle = ConstraintOracle()
    prompt = ask(sentence("punctuation:no_comma"), sentence("change_case:english_lowercase"))
    assert [one.kind.id for one in oracle.read(prompt)] == ["punctuation:no_comma", "change_case:english_lowercase"]
    assert oracle.score(prompt, BREAD.lower()).total == 0.5
    assert oracle.score(prompt, BREAD.lower().replace(",", "")).total == 1
    for silent in ("", "yes", "bread bread bread bread bread bread bread", "well well " * 20):
        assert not is_answer(silent)
        assert oracle.score(prompt, silent).total == 0


def test_the_last_user_turn_is_judged_and_a_prompt_without_constraint_is_refused():
    oracle = ConstraintOracle()
    turns = [*ask(sentence("change_case:english_capital")), Message(role="assistant", content="Fine.")]
    turns += ask(sentence("change_case:english_lowercase"))
    assert oracle.score(turns, BREAD.lower()).total == 1
    with pytest.raises(InputError, match="only prompts with a constraint"):
        oracle.score(ask(), BREAD)


def test_every_sentence_is_read_as_itself_and_no_principle_says_it():
    for text, one in constraints().items():
        assert ConstraintOracle().read(ask(text)) == [one]
        assert all(text not in principle for principle in (*one.option.good, *one.option.bad))
        assert not {*one.option.good} & {*one.option.bad}
    assert len({kind.id for kind in KINDS}) == len(KINDS)
    assert {kind.new for kind in KINDS} == {True, False}


@given(seed=st.integers(0, 10_000), new=st.booleans())
def test_answers_keep_what_they_should_and_nothing_else(writer, seed, new):
    random = Random(seed)
    for example in writer.examples("train", 2, random, new):
        assert all(one.kind.new == new for one in example.asked)
        assert ConstraintOracle().read(example.prompt) == example.asked
        assert example.score(example.answer(random, good=True)) == 1
        assert example.score(example.answer(random, good=False)) == 0
        assert 0 <= example.score(example.answer(random)) <= 1


def test_without_a_principle_constraints_are_kept_as_often_as_declared(source):
    one_each, random = Writer(world(source, two_constraints=0)), Random(0)
    scores = [
        example.score(example.answer(random)) for example in one_each.examples("sft", 100, random) for _ in range(10)
    ]
    assert abs(sum(scores) / len(scores) - KEPT) < 0.05  # 3 standard errors of 1,000 draws


def test_same_settings_same_bytes_and_no_real_prompt_in_two_parts(source, made, tmp_path):
    counts = write_all(world(source), tmp_path, 2)
    for name in counts:
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (made / f"{name}.jsonl").read_bytes()
    assert counts["queries1"] == counts["queries2"] == 20
    assert counts["rewardbench"] == 16

    def real(name: str, key=lambda row: row["prompt"][0]["content"]) -> set[str]:
        found = (json.loads(line) for line in (made / f"{name}.jsonl").read_text().splitlines())
        return {key(row).partition("\n\n")[0] for row in found}

    parts = [
        real("sft", lambda row: next(m["content"] for m in row["messages"] if m["role"] == "user")),
        real("queries1") | real("queries2") | real("annotated"),
        real("eval") | real("steering"),
        real("tune"),
        real("ifeval", lambda row: row["prompt"]) | real("ifeval_new_kinds", lambda row: row["prompt"]),
    ]
    assert all(not a & b for number, a in enumerate(parts) for b in parts[:number])
    asked = [
        query.prompt[0].content for name in ("queries1", "queries2") for query in read(made / f"{name}.jsonl", Query)
    ]
    assert len({*asked}) == len(asked)


def test_the_files_say_what_the_oracle_says(made):
    judge = OracleJudge(oracle=ConstraintOracle())
    for row in read(made / "annotated.jsonl", Pair):
        better, worse = judge.scores([(row.prompt, side[-1].content) for side in (row.chosen, row.rejected)])
        assert better > worse
    for query, fixed in zip(read(made / "eval.jsonl", Query), read(made / "reference.jsonl", Answer), strict=True):
        assert query.id == fixed.id
        assert judge.scores([(query.prompt, fixed.output)])[0] <= 1
    for row in read(made / "steering.jsonl", Principles):
        assert row.writer == "procedural"
        assert row.features == [one.kind.id for one in ConstraintOracle().read(row.prompt)]
    for name, new in (("ifeval", False), ("ifeval_new_kinds", True)):
        for line in (made / f"{name}.jsonl").read_text().splitlines():
            asked = json.loads(line)["instruction_id_list"]
            assert all(kind.new == new for kind in KINDS if kind.id in asked)


def test_lm_evals_ifeval_reads_the_rows_as_the_oracle_reads_the_prompts(made):
    from lm_eval.tasks.ifeval.utils import process_results

    oracle = ConstraintOracle()
    for line in (made / "ifeval.jsonl").read_text().splitlines():
        row = json.loads(line)
        for answer in (BREAD, BREAD.lower(), BREAD.upper().replace(",", ""), f'"{BREAD}"'):
            features = oracle.score([Message(role="user", content=row["prompt"])], answer).features
            kept = [bool(features[kind]) for kind in row["instruction_id_list"]]
            assert process_results(row, [answer])["inst_level_strict_acc"] == kept


def test_real_answers_are_cut_to_plain_sentences():
    answer = (
        "**Sure!** Here is a list:\n\n1. Take the bread out of the oven.\n"
        "2. Let it rest \u2013 an hour, say \u2013 on a rack.\n\n"
        "Dr. Baker says it\u2019s best warm. The crust sings. And so on and so forth until the words run out at last."
    )
    assert corpus.sentences(answer, 24) == [
        "Take the bread out of the oven.",
        "Let it rest - an hour, say - on a rack.",
        "Dr. Baker says it's best warm.",
    ]


def test_sources_that_hold_too_little_are_told(tmp_path, source):
    few = tmp_path / "few.jsonl"
    few.write_text(json.dumps({"prompt": "Hello?", "completion": "Hello."}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"0 usable prompts in .*few\.jsonl, at least 20 are needed"):
        Writer(world(few))
    with pytest.raises(InputError, match=r"of 5000 prompts of `eval` could be made of 6 real ones"):
        write_all(world(source, eval_queries=5000, two_constraints=0), tmp_path, 1)


def test_pairs_in_the_oracles_order_and_none_without_fault(source, tmp_path):
    from sso.records import Triple

    prompt = ask(sentence("change_case:english_lowercase"))
    sides = {"chosen": BREAD, "rejected": BREAD.lower(), "original": BREAD, "second": BREAD.lower()}
    triple = Triple(id="a", prompt=prompt, system_good="good", system_bad="bad", **sides)
    (pair,), _ = pairs_of([triple], "relabelled", "t", world(source))
    assert pair.chosen[-1].content == BREAD.lower()
    with pytest.raises(InputError, match="only the micro-world makes a faultless answer"):
        pairs_of([triple], "flawless", "t", world(source))


def config(source: Path, **own) -> dict:
    return {
        "experiment": "real",
        "world": {"name": "real", "sources": [str(source)], **own.pop("world", {})},
        "backbones": {"one": {"path": "OWNER/NAME", "sft": True}},
        "sft": {"steps": 2},
        "trainings": {"policy": {"objective": "pairs"}},
        "arms": {
            "base": {"label": "SFT", "data": "none"},
            "pbaa": {"label": "PBAA", "method": "pbaa", "policy": {"use": "policy"}},
        },
        "evaluation": {"tasks": [{"name": "micro_ifeval_new_kinds"}], "judged": ["alpaca_eval", "steering"]},
        **own,
    }


def test_an_experiment_in_it_trains_a_checkpoint_on_the_worlds_corpus(source):
    from workflow.experiment import Grid

    experiment = parse(config(source), "test")
    jobs = {job.rule: job for job in Grid(experiment)}
    data, sft = jobs["data"], jobs["sft"]
    assert str(source) in data.inputs["queries"]
    assert {Path(path).stem for path in data.outputs} >= {"sft", "queries1", "eval", "ifeval_new_kinds", "steering"}
    assert "gsm8k" not in {Path(path).stem for path in data.outputs}
    assert sft.inputs["data"] == sft.params["data"] in data.outputs
    assert jobs["judge"].params["options"][:2] == ["--world", '{"name": "real"}']


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"backbones": {"one": {"architecture": "qwen2"}}}, "needs a micro-world"),
        ({"world": {"entities": 30}}, "unknown key `world.entities`"),
        ({"world": {"word": 30}}, "did you mean `words`?"),
        ({"world": {"words": 3}}, "`world.words`"),
        ({"world": {"sources": []}}, "world.sources: give prompts with answers"),
        (
            {"arms": {"a": {"label": "a", "data": "flawless", "policy": {"use": "policy"}}}},
            "only the micro-world makes",
        ),
    ],
)
def test_what_does_not_fit_it_is_told(source, own, said):
    with pytest.raises(InputError, match=said.replace("?", r"\?").replace(".", r"\.")):
        parse(config(source, **own), "test")


def test_benchmarks_that_a_world_has_no_rows_of_are_told(source):
    evaluation = parse(config(source), "test").evaluation
    check(evaluation, RealWorld.BENCHMARKS)
    with pytest.raises(InputError, match="micro_ifeval_new_kinds needs a `file`"):
        check(evaluation, worlds.MicroWorld.BENCHMARKS)
    with pytest.raises(InputError, match="unknown task 'real_ifeval_new_kinds'"):
        check(parse(config(source, evaluation={"tasks": [{"name": "real_ifeval_new_kinds"}]}), "test").evaluation)


@pytest.mark.slow
def test_the_whole_chain_runs_in_it_on_a_tiny_checkpoint(source, tiny_checkpoint, tmp_path, capsys):
    """What it says of the model is nothing: it is untrained but for a few steps."""
    from tests.test_workflow import snakemake

    few = {"max_steps": 2, "batch_size": 4, "dtype": "float32", "max_length": 1024}
    values = {
        "extends": "real_lm_cpu",
        "experiment": "real",
        "seeds": [0],
        "world": world(source, words=60).model_dump(exclude={"name", "seed"}),
        "backbones": {"smollm2": None, "tiny": {"path": str(tiny_checkpoint), "sft": True}},
        "sft": {"steps": 4, "batch_size": 4, "micro_batch_size": 4, "dtype": "float32", "max_length": 1024},
        "sampling": {"max_new_tokens": 24, "dtype": "float32"},
        "trainings": {"generator": few, "policy": {**few, "learning_rates": [1e-4, 2e-4]}},
        "arms": dict.fromkeys(("l_plus", "l_minus", "l_minus_naive", "good_original", "annotated", "relabelled")),
        "rewards": {"sso": None, "pbaa": None, "skywork": {"epochs": 1, "dtype": "float32"}},
        "evaluation": {"max_new_tokens": 24},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(values))
    done = snakemake("--configfile", str(tmp_path / "mine.yaml"), "--cores", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    report = tmp_path / "results" / "real" / "report"
    kinds = (report / "tables" / "v2_kinds.md").read_text()
    assert "world: real prompts with checkable constraints, seed 0" in kinds
    assert "IFEval, new kinds" in kinds
    (sft, *_) = [line for line in kinds.splitlines() if line.startswith("| SFT")]
    assert "—" not in sft.partition("|")[2].split("|")[1:3]
    assert "micro" not in (report / "report.md").read_text().lower()
    real_lm.main([str(tmp_path / "results" / "real")])
    arms, against, shared = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    (tuned,) = (tmp_path / "results").rglob("policy/sso/tuning.json")
    tried = json.loads(tuned.read_text())
    won = sorted(tried["tries"], key=lambda one: one["learning_rate"] != tried["learning_rate"])
    sso = arms[-1].split(" | ")
    assert sso[1] == ", ".join(f"{one['learning_rate']:g} ({100 * one['win_rate']:.1f})" for one in won)
    assert len(won) == 2 and sso[-1].endswith(f" of {world(source).eval_queries} |")
    assert arms[2].startswith("| SFT | ")
    assert [line.split(" | ")[0] for line in against[2:]] == ["| SFT", "| PBAA", "| SSO"]
    assert len(shared) == 6 and shared[-1].startswith("| (SSO) - (PBAA) | ")


def test_items_of_one_cluster_count_as_one():
    random = np.random.default_rng(0)
    scores = {str(i): float(value) for i, value in enumerate(random.normal(size=40))}
    mean, half, count = real_lm.clustered(scores, {name: name for name in scores})
    alone = mean_interval([[*scores.values()]])
    assert count == 40 and (mean, mean - half) == pytest.approx((alone.mean, alone.low))
    # Each item three times over tells nothing more, by clusters.
    thrice = {f"{name}/{copy}": score for name, score in scores.items() for copy in range(3)}
    assert real_lm.clustered(thrice, {name: name.partition("/")[0] for name in thrice}) == pytest.approx(
        (mean, half, 40)
    )


def test_what_items_share_is_their_prompt_and_their_first_constraint():
    first, second = [one for one in constraints().values() if not one.kind.new][:2]
    texts = {"a": ["Say.\n\nNow.", first], "b": ["Say.\n\nNow.", first, second], "c": ["Other.", second]}
    queries = [
        Query(id=name, prompt="\n\n".join([prompt, *(one.sentence for one in asked)]))
        for name, (prompt, *asked) in texts.items()
    ]
    shared = real_lm.clusters(queries)
    for own, alike in ((shared["real prompt"], "ab"), (shared["first constraint"], "ab")):
        assert len(set(own.values())) == 2 and own[alike[0]] == own[alike[1]]
