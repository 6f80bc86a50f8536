"""Endpoint and reward-model judges, Arena-Hard, AlpacaEval's annotator, data quality and judge variance."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from eval import alpaca_annotator, data_quality, variance
from eval.benchmarks import alpaca_eval, arena_hard, mt_bench
from eval.endpoint_judge import CONTINUE, EndpointJudge
from eval.judge import AnswerPair, Grading, Preference, RewardJudge, make_judge
from eval.settings import Evaluation
from eval.settings import Judge as JudgeSettings
from sso.errors import InputError
from sso.records import Answer, Message, Pair
from sso.sampling.engine import Generation
from sso.settings import Backbone
from tests.openai_server import serving


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def said(*texts: str) -> list[Message]:
    """Turns of user and assistant by turns."""
    return [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]


def endpoint_judge(url: str, folder: Path, **settings) -> EndpointJudge:
    values = {"kind": "openai", "model": "j", "base_url": url, "backoff_s": 0.01, "concurrency": 1, **settings}
    return make_judge(JudgeSettings.model_validate(values), None, folder / "c.db")


def test_both_orders_are_asked_read_and_kept(tmp_path):
    replies = ["so [[A]]", "so [[B]]", "[[A]]", "[[A]]", "hm", "hm", "[[A]]"]
    items = [AnswerPair(user(q), "one", "two") for q in ("q1", "q2", "q3")]
    with serving(tmp_path / "server", replies=replies) as server:
        judge = endpoint_judge(server.url, tmp_path)
        found = judge.pairwise(items)
        texts = [r["body"]["messages"][1]["content"] for r in server.requests]
        assert texts[0].index("one") < texts[0].index("two") and texts[1].index("two") < texts[1].index("one")
        assert texts[4] == texts[5]  # an unreadable reply is asked for twice
        assert found[:2] == [(1, 1), (1, 0)] and math.isnan(found[2].first) and found[2].second == 0
        assert [p.mean for p in found[:2]] == [1, 0.5] and math.isnan(found[2].mean)
        assert judge.notes() == {"asked": 7, "cached": 0, "verdicts": 6, "unreadable": 1}
        again = endpoint_judge(server.url, tmp_path)
        assert str(again.pairwise(items)) == str(found) and again.notes()["asked"] == 0


def test_a_refused_item_is_counted_and_a_refused_run_is_told(tmp_path):
    items = [Grading(said(f"q{i}", "a")) for i in range(3)]
    with serving(tmp_path / "server", replies=["[[4]]", 400, "[[6]]", 400, 400, 400]) as server:
        judge = endpoint_judge(server.url, tmp_path)
        assert judge.grade(items)[::2] == [4, 6] and judge.notes()["refused"] == 1
        with pytest.raises(InputError, match="HTTP 400"):
            judge.grade([Grading(said("other", f"{i}")) for i in range(3)])


def test_grades_use_fastchats_four_prompts(tmp_path):
    one, two = said("first?", "1st."), said("first?", "1st.", "second?", "2nd.")
    reference = ("ref one", "ref two")
    items = [Grading(one), Grading(one, reference), Grading(two), Grading(two, reference)]
    with serving(tmp_path / "server") as server:
        judge = endpoint_judge(server.url, tmp_path)
        assert all(1 <= grade <= 10 for grade in judge.grade(items))
        system, text = zip(*([m["content"] for m in r["body"]["messages"]] for r in server.requests), strict=True)
        bodies = [r["body"] for r in server.requests]
    assert {(b["temperature"], b["max_tokens"]) for b in bodies} == {(0, 2048)}
    assert system[0] == system[1] == "You are a helpful assistant." and "second user question" in system[2]
    assert "[Question]\nfirst?\n" in text[0] and "Answer]\n1st.\n[" in text[0] and "Reference" not in text[0]
    assert "[The Start of Reference Answer]\nref one\n" in text[1] and "ref two" not in text[1]
    assert "### User:\nsecond?\n\n### Assistant A:\n2nd.\n" in text[2] and "Reference" not in text[2]
    assert "### Reference answer:\nref two\n" in text[3] and "Compare" not in text[3]


def test_an_unfinished_arena_judgment_is_continued_once(tmp_path):
    items = [AnswerPair(user("q"), "base", "ours")]
    with serving(tmp_path / "server", replies=["I would answer ...", "[[B>>A]]", "[[A=B]]"]) as server:
        assert endpoint_judge(server.url, tmp_path).five_way(items) == [("B>>A", "A=B")]
        first, second, swapped = (r["body"]["messages"] for r in server.requests)
    assert [m["role"] for m in second] == ["system", "user", "assistant", "user"] and second[:2] == first
    assert second[3]["content"] == CONTINUE
    assert first[1]["content"].index("base") < first[1]["content"].index("ours")
    assert swapped[1]["content"].index("ours") < swapped[1]["content"].index("base")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> Path:
    """A tiny reward model with random weights: a scorer, no good one."""
    from rewardbench.train import start
    from sso.worlds.micro.models import build

    folder = tmp_path_factory.mktemp("reward")
    for part in build(Backbone(architecture="qwen2"), seed=0):
        part.save_pretrained(folder / "sft")
    for part in start(folder / "sft", seed=1):
        part.save_pretrained(folder / "model")
    return folder / "model"


def test_a_reward_model_judges_by_its_rewards(reward_model):
    from rewardbench.score import load, rewards
    from sso.chat import encode

    judge = make_judge(JudgeSettings(kind="reward", path=str(reward_model)), None, Path("unused"))
    assert isinstance(judge, RewardJudge) and judge.scale == "reward"
    model, tokenizer = load(reward_model)
    prompt, texts = user("Tova has 3 apples."), ["5", "Tova rests.", "x is 3."]
    expected = [rewards(model, [encode(tokenizer, prompt, text)], 1)[0] for text in texts]
    assert judge.scores([(prompt, text) for text in texts]) == pytest.approx(expected, abs=1e-5)
    assert judge.grade([Grading([*prompt, Message(role="assistant", content=t)]) for t in texts]) == pytest.approx(
        expected, abs=1e-5
    )
    better, worse = (texts[i] for i in (int(np.argmax(expected)), int(np.argmin(expected))))
    items = [AnswerPair(prompt, better, worse), AnswerPair(prompt, worse, better), AnswerPair(prompt, better, better)]
    assert judge.pairwise(items) == [(1, 1), (0, 0), (0.5, 0.5)]
    with pytest.raises(InputError, match="exceed its context"):
        judge.scores([(prompt, "Tova rests. " * 2000)])


def test_settings_of_a_reward_judge_name_its_folder():
    with pytest.raises(ValueError, match="`kind: reward` needs `path`, the reward model's folder"):
        JudgeSettings(kind="reward")
    with pytest.raises(ValueError, match="needs `model`"):
        JudgeSettings(kind="openai")
    with pytest.raises(ValueError, match="max_cost needs price_input"):
        JudgeSettings(kind="openai", model="m", max_cost=3)


# Arena-Hard.


def games(n: int, seed: int = 0) -> list[dict]:
    random = np.random.default_rng(seed)
    first = random.choice(list(arena_hard.WINS), n, p=[0.25, 0.25, 0.1, 0.25, 0.15])
    second = random.choice(list(arena_hard.WINS), n, p=[0.15, 0.25, 0.1, 0.25, 0.25])
    return [{"id": str(i), "games": [str(a), str(b)]} for i, (a, b) in enumerate(zip(first, second, strict=True))]


def test_the_win_rate_is_the_maximum_of_the_bradley_terry_likelihood():
    """An independent computation: the likelihood of weighted verdicts, maximised over the strengths' difference."""
    from scipy.optimize import minimize_scalar

    rows = games(120)
    # By hand: verdict -> (win of A, weight), A is the baseline in game 1 and the model in game 2.
    table = {"A>>B": (1, 3), "A>B": (1, 1), "A=B": (0.5, 1), "B>A": (0, 1), "B>>A": (0, 3)}
    outcomes = []
    for row in rows:
        (win, weight), (swapped, weight2) = (table[verdict] for verdict in row["games"])
        outcomes += [(1 - win, weight), (swapped, weight2)]

    def loss(gap: float) -> float:
        p = 1 / (1 + math.exp(-gap))
        return -sum(w * (win * math.log(p) + (1 - win) * math.log(1 - p)) for win, w in outcomes)

    best = 100 / (1 + math.exp(-minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x))
    out = arena_hard.score(rows)
    assert out["value"] == pytest.approx(best, abs=1e-4)
    assert out["n"] == 120 and out["games"] == 240 and out["lower"] < out["value"] < out["upper"]
    assert arena_hard.score(rows) == out


def test_arena_verdicts_by_hand():
    rows = [{"id": "0", "games": ["B>>A", "A>B"]}, {"id": "1", "games": ["A=B", None]}]
    assert arena_hard.battles(rows).tolist() == [1, 1, 1, 1, 0.5]
    out = arena_hard.score(rows)
    assert out["value"] == pytest.approx(90, abs=1e-3) and out["unreadable"] == 1 and out["games"] == 3
    assert arena_hard.score([{"id": "0", "games": ["A=B", "A=B"]}])["value"] == pytest.approx(50)
    assert arena_hard.score([{"id": "0", "games": ["B>>A", "A>>B"]}])["value"] == 100  # no finite fit
    assert arena_hard.score([{"id": "0", "games": ["A>B", "B>A"]}])["value"] == 0
    assert arena_hard.score([{"id": "0", "games": [None, None]}])["value"] is None
    assert arena_hard.win(("B>>A", "B>A")) == 0.75 and math.isnan(arena_hard.win((None, "A>B")))


def test_the_bootstrap_interval_has_the_width_of_theory():
    """Resampling weighted battles: the standard error of a mean of that many draws."""
    rows = games(400, seed=1)
    wins = arena_hard.battles(rows)
    out = arena_hard.score(rows)
    assert out["stderr"] == pytest.approx(100 * wins.std() / math.sqrt(len(wins)), rel=0.25)
    assert out["upper"] - out["lower"] == pytest.approx(2 * 1.96 * out["stderr"], rel=0.25)


def test_arena_prompts_carry_the_figures_own_noise():
    """The mean of the prompts' scores is the rate, its standard error that of resampling whole prompts."""
    rows = games(300, seed=2)
    rows[0]["games"], rows[1]["games"] = [None, None], [None, "A=B"]
    scores = arena_hard.items(rows)["arena_hard"]
    values = np.array([*scores.values()])
    assert "0" not in scores and len(values) == 299
    assert values.mean() == pytest.approx(100 * arena_hard.battles(rows).mean())
    random, read = np.random.default_rng(0), rows[1:]
    resampled = [
        100 * arena_hard.battles([read[i] for i in random.integers(299, size=299)]).mean() for _ in range(1000)
    ]
    assert values.std(ddof=1) / math.sqrt(299) == pytest.approx(np.std(resampled), rel=0.1)
    assert arena_hard.items([{"id": "0", "games": [None, None]}]) == {}


def test_arena_files_that_do_not_fit_are_told(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"uid": "u", "messages": []}\n')
    with pytest.raises(InputError, match=r"a.jsonl:1: must have `messages`"):
        arena_hard.read_answers(path)
    path.write_text('{"prompt": "p"}\n')
    with pytest.raises(InputError, match=r"a.jsonl:1: must have a `uid`"):
        arena_hard.read_questions(path)
    path.write_text("\n")
    with pytest.raises(InputError, match=r"a.jsonl: holds no question"):
        arena_hard.read_questions(path)
    base = [Answer(id=i, prompt="p", output="b", model="gpt-4-0314") for i in "xy"]
    with pytest.raises(InputError, match="no answer to 'y'"):
        arena_hard.comparisons(base[:1], base)


@pytest.mark.shared_data
def test_real_arena_and_mt_bench_files_are_judged_whole(shared_data, tmp_path):
    """A scripted judge, no real one: that all files fit, and what is asked how often."""
    folder = shared_data / "arena_hard"
    questions = arena_hard.read_questions(folder / "question.jsonl")
    baseline = arena_hard.read_answers(folder / "answer_gpt-4-0314.jsonl")
    ours = arena_hard.read_answers(folder / "answer_gpt-3.5-turbo-0125.jsonl")
    assert len(questions) == 500 and {q.id for q in questions} == {b.id for b in baseline} == {a.id for a in ours}
    folder = shared_data / "mt_bench"
    dialogues = mt_bench.read(folder / "question.jsonl")
    references = mt_bench.read_references(folder / "reference_answer_gpt-4.jsonl")
    families = {d.id: d.family for d in dialogues}

    class Echo:
        heats: set[tuple[str, float]] = set()

        def generate(self, conversations, seeds, temperature, top_p, max_new_tokens):
            self.heats |= {
                (next(d.family for d in dialogues if d.turns[0] == c[0].content), temperature) for c in conversations
            }
            return [Generation(f"answer {len(c)}", 1, True) for c in conversations]

    answers = mt_bench.answer(Echo(), dialogues, Evaluation(temperature=1.0), 0, "m")
    assert Echo.heats == {(family, mt_bench.TEMPERATURES[family]) for family in set(families.values())}
    assert len(answers) == 160 and [a.id for a in answers[:2]] == ["81/1", "81/2"]
    with serving(tmp_path / "server") as server:
        judge = endpoint_judge(server.url, tmp_path, concurrency=8)
        out = arena_hard.score(arena_hard.judge_games(judge, ours[:50], baseline[:50]))
        assert out["games"] == 100 == len(server.requests)
        rows = mt_bench.grade(judge, answers, families, references)
        asked = ["".join(m["content"] for m in r["body"]["messages"]) for r in server.requests[100:]]
    assert len(asked) == 160 and sum("Reference" in text for text in asked) == 60
    average = mt_bench.average(rows)
    assert average["n"] == 80 and len(average["categories"]) == 8
    assert average["value"] == pytest.approx(np.mean([row["score"] for row in rows]))  # FastChat's: all judgments
    with pytest.raises(InputError, match="no reference answer to question '101', turn 1"):
        mt_bench.gradings(answers, families, {})


# AlpacaEval's annotator.


def replies(texts: list[str], model: str, ids: str = "") -> list[Answer]:
    return [Answer(id=str(i), prompt=f"Do {i}.", output=text, model=model) for i, text in enumerate(texts)]


def test_the_annotator_asks_what_the_package_asks_and_reads_as_it_does(tmp_path, monkeypatch):
    """The package's own run, with its client pointed at the same server, against ours."""
    theirs = replies([f'the reference says """{i}"""' for i in range(12)], "reference")
    ours = replies([f"our text {i}, {{x}}" for i in range(11)] + [theirs[11].output], "m")
    with serving(tmp_path / "server") as server:
        judge = endpoint_judge(server.url, tmp_path, model="gpt-4-1106-preview")
        rows = alpaca_annotator.annotate(judge, ours, theirs)
        mine = [r["body"] for r in server.requests]
        assert len(mine) == 11 and rows[11]["preference"] == 0.5  # equal outputs are not asked for
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        from alpaca_eval.annotators import PairwiseAnnotator

        package = PairwiseAnnotator(
            annotators_config=alpaca_annotator.ANNOTATOR, caching_path=None, is_avoid_reannotations=False
        )
        pairs = [
            {"instruction": t.prompt[0].content, "output_1": t.output, "output_2": o.output}
            for t, o in zip(theirs, ours, strict=True)
        ]
        client = {"client_config_path": "none", "openai_api_keys": "none", "openai_api_base": server.url}
        annotated = package(pairs, **client)
        official = [r["body"] for r in server.requests[11:]]

    # Theirs spells out the API's default of top_p; all else is the same, order aside.
    assert [body.pop("top_p") for body in official] == [1] * 11
    assert sorted(json.dumps(b, sort_keys=True) for b in mine) == sorted(
        json.dumps(b, sort_keys=True) for b in official
    )
    assert [row["preference"] for row in rows] == pytest.approx([a["preference"] - 1 for a in annotated], abs=1e-6)
    assert len({round(row["preference"], 3) for row in rows}) > 6
    found, plain = alpaca_annotator.raw_win_rate(rows), alpaca_eval.win_rate(rows)
    assert found == pytest.approx(plain)


def test_the_annotator_counts_what_it_cannot_read(tmp_path):
    theirs, ours = replies(["r"] * 30, "reference"), replies(["o"] * 30, "m")
    with serving(tmp_path / "server", unreadable=0.4) as server:
        judge = endpoint_judge(server.url, tmp_path)
        rows = alpaca_annotator.annotate(judge, ours, theirs)
        unreadable = sum(row["preference"] is None for row in rows)
        assert 0 < unreadable == judge.notes()["unreadable"] < 30
        assert alpaca_annotator.raw_win_rate(rows)["unreadable"] == unreadable
        assert [row["id"] for row in rows] == [str(i) for i in range(30)]
    with serving(tmp_path / "bare", logprobs=False) as server, pytest.raises(InputError, match="no logprobs"):
        alpaca_annotator.annotate(endpoint_judge(server.url, tmp_path / "b"), ours, theirs)


# Data quality and variance.


def test_orders_that_disagree_are_ties_and_lower_the_agreement():
    class Positional:
        def pairwise(self, items, draw=0):
            return [Preference(1, 0), Preference(1, 1), Preference(0, 0), Preference(math.nan, 1)][: len(items)]

    pairs = [Pair(id=i, prompt="q", chosen="c", rejected="r") for i in "abcd"]
    rows = data_quality.judged(Positional(), pairs)
    # What one order alone says is the position's, too, so it counts for nothing.
    assert [row["hit"] for row in rows] == [0.5, 1, 0, None] and [r["agree"] for r in rows] == [False, True, True, None]
    out = data_quality.accuracy(rows)
    assert (out["value"], out["ties"], out["n"], out["unreadable"]) == (0.5, 1, 3, 1)
    assert out["agreement"] == pytest.approx(2 / 3)


def test_a_dialogue_counts_with_all_of_its_grades_or_not_at_all():
    """Second turns are harder: a dialogue of which the first alone can be read would raise the mean."""
    grades = [("a", 1, 9.0), ("a", 2, 5.0), ("b", 1, 9.0), ("b", 2, None), ("c", 1, None), ("c", 2, None)]
    rows = [{"id": name, "turn": turn, "score": score, "family": "math"} for name, turn, score in grades]
    out = mt_bench.average(rows)
    assert (out["value"], out["n"], out["unreadable"]) == (7, 1, 2)
    assert (out["turn_1"], out["turn_2"]) == (9, 5) and mt_bench.items(rows) == {"mt_bench": {"a": 7}}


def test_a_sample_of_pairs_is_seeded():
    pairs = [Pair(id=str(i), prompt="q", chosen="c", rejected="r") for i in range(50)]
    first = variance.subset(pairs, 20, seed=1)
    assert first == variance.subset(pairs, 20, seed=1) != variance.subset(pairs, 20, seed=2)
    assert len({p.id for p in first}) == 20 and variance.subset(pairs, 99) == pairs


def test_the_spread_of_a_repeated_judge_by_hand():
    draws = [[1.0, 5, 2, math.nan], [3.0, 5, 2, 1], [5.0, 5, 2, 1]]
    out = variance.repeat(lambda draw: draws[draw], 3)
    assert out["n"] == 3 and out["unreadable"] == 1 and out["changed"] == pytest.approx(1 / 3)
    assert out["sd_item"] == pytest.approx(2 / 3) and out["sd_mean"] == pytest.approx(2 / 3)
    assert out["means"] == pytest.approx([8 / 3, 10 / 3, 4])
    assert variance.repeat(lambda draw: [math.nan], 2)["sd_mean"] is None
    assert variance.subset(range(10), 3) == variance.subset(range(10), 3) and len(variance.subset(range(3), 9)) == 3


def test_a_judge_that_samples_shows_its_spread(tmp_path):
    grades = ["[[5]]", "[[7]]", "[[9]]", "[[3]]"]
    with serving(tmp_path / "server", replies=grades) as server:
        judge = endpoint_judge(server.url, tmp_path)
        items = [Grading(said("q", "a")), Grading(said("q", "b"))]
        out = variance.repeat(lambda draw: judge.grade(items, draw), 2)
        assert len(server.requests) == 4
    assert out["means"] == [6, 6] and out["changed"] == 1 and out["sd_item"] == pytest.approx(math.sqrt(8))
