"""Several samples a prompt, the win rate against the SFT model's own, what a principle does, and the oracle's pairs."""

import json
from pathlib import Path

import pytest

from eval.benchmarks.alpaca_eval import ALPACA_EVAL, against_start
from eval.benchmarks.steering import judge, prompts, scored
from eval.cli import main
from eval.draws import by_draw
from eval.judge import OracleJudge
from eval.settings import Judge
from report import samples
from sso.errors import InputError
from sso.records import Answer, Principles, Query, Triple, read, write
from sso.sampling.triples import pairs_of
from sso.worlds.micro.data import user, write_all
from sso.worlds.settings import MicroWorld

WORLD = MicroWorld(
    entities=20, sft_examples=1, train_queries=6, tune_queries=1, eval_queries=4, benchmark_items=3, annotated_pairs=1
)
ORACLE = OracleJudge(WORLD)
BEST, WARM, WRONG = (
    f"9 plus 2 is 11. 11 minus 1 is {end}" for end in ("10. Happy to help! #### 10", "10. #### 10", "9. #### 9")
)
STORY = user("Bada has 9 pears. Bada buys 2 more and loses 1. How many pears?")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_all(WORLD, tmp_path_factory.mktemp("world"), 1)
    return tmp_path_factory.getbasetemp() / "world0"


def answers(*draws: str, id: str = "q") -> list[Answer]:
    names = [f"{id}/{draw}" if draw else id for draw in range(len(draws))]
    return [
        Answer(id=name, prompt=STORY, output=text, model="m", draw=i)
        for i, (name, text) in enumerate(zip(names, draws, strict=True))
    ]


def test_draws_of_equal_number_share_their_random_numbers_and_are_not_compared():
    asked = [Answer(id="q", prompt=STORY, output="", model="world")]
    ours, start = by_draw(answers(BEST, WRONG)), by_draw(answers(WARM, WARM))
    assert [[a.id for a in draw] for draw in ours] == [["q"], ["q"]]
    assert against_start(ORACLE, ours, start, asked) == [0.5]  # BEST wins, WRONG loses
    assert against_start(ORACLE, ours[:1], start, asked) == [1.0]
    assert against_start(ORACLE, by_draw(answers(BEST, BEST, WRONG)), start[:1], asked) == [0.5]  # draws 1 and 2
    with pytest.raises(InputError, match="same random numbers"):
        against_start(ORACLE, ours[:1], start[:1], asked)


def test_a_change_is_the_policys_figure_less_the_sft_models(tmp_path):
    query = Principles(id="q", prompt=STORY, good="Be accurate.", bad="Be dull.", writer="procedural")
    assert [m.content for m in prompts(query)["x-"]] == ["Be dull.", STORY[0].content]

    def said(none: str, good: str, bad: str) -> list[Answer]:
        pairs = zip(("x", "x+", "x-"), (none, good, bad), strict=True)
        return [Answer(id=f"q/{context}", prompt=STORY, output=text, model="m") for context, text in pairs]

    write(tmp_path / "steering.jsonl", [query])
    write(tmp_path / "start.jsonl", said(WARM, BEST, WARM))
    files = {"steering": tmp_path / "steering.jsonl", "against": tmp_path / "start.jsonl"}
    scores = judge(ORACLE, Judge(), said(BEST, BEST, WRONG), files).scores
    best, warm, wrong = (100 * score for score in ORACLE.scores([(STORY, text) for text in (BEST, WARM, WRONG)]))
    assert best == pytest.approx(100) and best > warm > wrong
    assert {name: entry["value"] for name, entry in scores.items()} == pytest.approx(
        {
            "steering_none": best,
            "steering_good": best,
            "steering_bad": wrong,
            "steering_effect": wrong - best,
            "steering_none_change": best - warm,
            "steering_good_change": 0,
            "steering_bad_change": wrong - warm,
            "steering_effect_change": wrong - best,
        },
        abs=1e-3,
    )
    draws = [
        *said(BEST, BEST, WRONG),
        *(a.model_copy(update={"id": f"{a.id}/1", "draw": 1}) for a in said(*[WARM] * 3)),
    ]
    assert 100 * scored(ORACLE, [query], draws)["q"]["steering_bad"] == pytest.approx((wrong + warm) / 2)
    with pytest.raises(InputError, match="no answer to 'q/x-'"):
        scored(ORACLE, [query], said(BEST, BEST, WRONG)[:2])


def test_a_model_against_itself_has_not_changed(tiny_checkpoint, data, tmp_path):
    settings = json.dumps({"judged": ["alpaca_eval", "steering"], "samples": 2, "batch_size": 8, "max_new_tokens": 8})
    out, judged = tmp_path / "answers", tmp_path / "judged"
    shared = ["--data", str(data), "--settings", settings]
    assert main(["answer", "--model", str(tiny_checkpoint), *shared, "--out", str(out)]) == 0
    made = read(out / "answers.jsonl", Answer)
    assert [a.id for a in made] == [f"eval-{i}" for i in range(4)] + [f"eval-{i}/1" for i in range(4)]
    assert any(a.output != b.output for a, b in zip(made[:4], made[4:], strict=True))
    steered = by_draw(read(out / "steering_answers.jsonl", Answer))
    assert [len(draw) for draw in steered] == [3 * WORLD.benchmark_items] * 2
    world = ["--world", WORLD.model_dump_json()]
    assert main(["judge", "--answers", str(out), *shared, *world, "--against", str(out), "--out", str(judged)]) == 0
    scores = json.loads((judged / "scores.json").read_text())
    assert scores["sft_wr"]["value"] == pytest.approx(50) and scores["sft_wr"]["n"] == WORLD.eval_queries
    assert {scores[f"steering_{name}_change"]["value"] for name in ("none", "good", "bad", "effect")} == {0}
    rows = [json.loads(line) for line in (judged / "pairwise.jsonl").read_text().splitlines()]
    first, second = (ORACLE.scores([(a.prompt, a.output) for a in half]) for half in (made[:4], made[4:]))
    means = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert [row["score"] for row in rows] == pytest.approx(means, abs=1e-6)
    assert scores["quality"]["value"] == pytest.approx(100 * sum(means) / 4, abs=1e-3)


def test_the_page_shows_the_first_of_several_samples(tmp_path):
    prompts = [f"q{i}" for i in range(30)]
    for run, draws in (("base", ("first", "second")), ("sso", ("other",))):
        rows = [answer for name in prompts for answer in answers(*draws, id=name)]
        write(tmp_path / run / "answers" / "answers.jsonl", rows)
        verdicts = [{"id": name, "preference": 1.0} for name in prompts]
        write(tmp_path / run / "judged" / "pairwise.jsonl", verdicts)
    runs = [
        samples.Run(run, tmp_path / run / "answers", tmp_path / run / "judged", draws, False)
        for run, draws in (("base", 2), ("sso", 1))
    ]
    found = samples._answers("answers", ALPACA_EVAL, runs, {})
    assert len(found.samples) == samples.COUNT and found.draws == 2
    assert {tuple(text.text for text in sample.texts) for sample in found.samples} == {("first", "other")}


def test_the_oracles_pairs_are_in_its_order_and_flawless_ones_without_fault(data):
    asked = read(data / "queries1.jsonl", Query)
    about = {"system_good": "", "system_bad": ""}
    triples = [
        Triple(id="lost", prompt=STORY, chosen=WRONG, rejected=WARM, original=WRONG, cut=["chosen"], **about),
        Triple(id="won", prompt=STORY, chosen=BEST, rejected=WARM, original=BEST, **about),
        Triple(id="tie", prompt=STORY, chosen=WARM, rejected=f"{WARM} ", original=WARM, **about),
    ]
    found, counts = pairs_of(triples, "relabelled", "t.jsonl", WORLD)
    made = {pair.id: pair for pair in found}
    assert counts == {"pairs": 2, "left_out_pairs": 1, "equal_sides": 1}
    assert {name: pair.chosen[0].content for name, pair in made.items()} == {"lost": WARM, "won": BEST}
    assert made["lost"].cut == ["rejected"]
    triples = [Triple(id=q.id, prompt=q.prompt, chosen="", rejected="", original="It is.", **about) for q in asked]
    flawless, _ = pairs_of(triples, "flawless", "t.jsonl", WORLD)
    assert ORACLE.scores([(p.prompt, p.chosen[0].content) for p in flawless]) == pytest.approx([1.0] * len(asked))
    for kind in ("relabelled", "flawless"):
        with pytest.raises(InputError, match=f"{kind} pairs need --world"):
            pairs_of(triples, kind, "t.jsonl")
