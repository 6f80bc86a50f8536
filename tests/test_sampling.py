"""The sampling engine against `generate`, against the distribution it samples from, and across batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from rewardbench.data import TextPair, text_pair
from rewardbench.score import encode
from sso.chat import encode_prompt, end_of_turn
from sso.errors import InputError
from sso.export import write_folder
from sso.preferences import load
from sso.principles import WRAPPERS
from sso.records import Message, Pair, Principles, read, write
from sso.sampling import transformers_engine
from sso.sampling.engine import Generation, seed_of
from sso.sampling.settings import Sampling
from sso.sampling.transformers_engine import OwnDraw, TransformersEngine, uniform
from sso.sampling.triples import distinct, draw, fitting, pairs_of
from sso.settings import Backbone, Preferences
from sso.train.run import save
from sso.worlds.micro.models import build
from sso.worlds.settings import MicroWorld

PROMPTS = [
    [Message(role="user", content=f"Solve x plus {i} is {i + 5}." + " It is dark." * (i % 4))] for i in range(13)
]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def engine(request):
    model, tokenizer = build(Backbone(architecture=request.param, layers=2), 0)
    # Tied embeddings make an untrained model repeat its last token; smaller ones leave room for chance.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    return TransformersEngine.of(model.eval(), tokenizer, 4)


def test_greedy_equals_generate(engine):
    ours = engine.generate(PROMPTS, [0] * len(PROMPTS), temperature=0, max_new_tokens=12)
    for prompt, generation in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([encode_prompt(engine.tokenizer, prompt)])
        output = engine.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
        assert generation.text == engine.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_batch_size_and_order_do_not_change_a_draw(engine, top_p):
    seeds = [seed_of(0, str(i), "y+") for i in range(len(PROMPTS))]
    texts = {}
    for size in (1, 3, 64):
        engine.batch_size = size
        texts[size] = [g.text for g in engine.generate(PROMPTS, seeds, 0.7, top_p, 12)]
    assert texts[1] == texts[3] == texts[64]
    backwards = engine.generate(PROMPTS[::-1], seeds[::-1], 0.7, top_p, 12)
    assert [g.text for g in backwards[::-1]] == texts[1]
    other = engine.generate(PROMPTS, [s + 1 for s in seeds], 0.7, top_p, 12)
    assert [g.text for g in other] != texts[1]


def test_first_tokens_follow_the_models_distribution(engine):
    engine.batch_size = 500
    count, prompt = 4000, PROMPTS[0]
    with torch.inference_mode():
        logits = engine.model(torch.tensor([encode_prompt(engine.tokenizer, prompt)])).logits[0, -1]
    expected = (logits.double() / 0.7).softmax(-1)
    draw = OwnDraw([seed_of(1, str(i), "yo") for i in range(count)], 3)
    drawn = draw(torch.zeros(count, 3), (logits / 0.7).expand(count, -1)).argmax(-1)
    top = expected.topk(8).indices
    observed = [(drawn == t).sum().item() for t in top]
    rest = count - sum(observed)
    frequencies = [*(expected[top] * count).tolist(), (1 - expected[top].sum()).item() * count]
    assert chisquare([*observed, rest], frequencies).pvalue > 1e-4


def test_numbers_are_uniform_and_differ_by_row_and_step():
    numbers = [uniform(seed, step) for seed in range(200) for step in range(100)]
    assert kstest(numbers, "uniform").pvalue > 1e-4 and len(set(numbers)) == len(numbers)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    assert min(numbers) > 0 and max(numbers) < 1


@given(st.lists(st.floats(-50, 5), min_size=2, max_size=9), st.integers(0, 2**63 - 1), st.data())
def test_what_has_no_probability_is_never_drawn(logits, seed, data):
    scores = torch.tensor(logits)
    masks = st.lists(st.booleans(), min_size=len(logits), max_size=len(logits))
    out = data.draw(masks.filter(lambda some: not all(some)))
    scores[torch.tensor(out)] = -torch.inf
    for number in (uniform(seed, 0), 2**-54, 1 - 2**-53):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformers_engine, "uniform", lambda seed, step, number=number: number)
            token = OwnDraw([seed], 2)(torch.zeros(1, 2), scores[None].clone()).argmax()
        probabilities = scores.softmax(-1).double()
        assert probabilities[token] > 0
        # The token in whose stretch of the sums the number lies.
        assert probabilities[:token].sum() <= number + 1e-6 <= probabilities[: token + 1].sum() + 2e-6


LONG = [Message(role="user", content="dark " * 3000)]


def test_a_prompt_longer_than_the_context_costs_the_others_nothing(engine):
    kept = {}
    alone = engine.generate(PROMPTS[:2], [1, 2], max_new_tokens=8)
    made = engine.generate([PROMPTS[0], LONG, PROMPTS[1]], [1, 5, 2], max_new_tokens=8, keep=kept.__setitem__)
    assert [made[0], made[2]] == alone and made[1].missing == "too_long" and kept == dict(enumerate(made))
    assert "exceed the context of 2048" in made[1].why


def test_queries_that_are_too_long_are_left_out_of_every_response(engine, tmp_path, capsys):
    save(engine.model, engine.tokenizer, tmp_path / "m")
    sampling = Sampling(temperature=1, top_p=1, max_new_tokens=6, batch_size=5, dtype="float32")
    rows, names = principles(4), ["y+", "y-", "yo"]
    rows[1] = rows[1].model_copy(update={"prompt": LONG})
    rows[2] = rows[2].model_copy(update={"bad": "Be dark. " * 1000})  # too long in one context alone
    fit, long = fitting(rows, sampling, tmp_path / "m", "paper", names)
    assert [p.id for p in fit] == ["0", "3"] and long == ["1", "2"]
    triples, counts = draw(engine, rows, sampling, "paper", 0, names)  # also where the engine is first to know
    assert triples == draw(engine, fit, sampling, "paper", 0, names)[0] and counts["too_long"] == 2
    assert "2 queries too long for the model's context: 1, 2" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"none of 2 queries fits: a prompt of \d+ tokens"):
        fitting(rows[1:3], sampling, tmp_path / "m", "paper", names)
    with pytest.raises(InputError, match="could be asked for"):
        draw(engine, rows[1:2], sampling, "paper", 0, names)


class Scripted:
    """An engine that says, row by row, what it is told."""

    def __init__(self, *said):
        self.said = list(said)

    def generate(self, conversations, *_):
        return self.said[: len(conversations)]


def test_a_cut_response_is_known_as_such_in_triples_pairs_files_and_exports(tmp_path):
    from datasets import load_dataset

    said = [Generation(f"text {i}", 3, finished=i not in (1, 2)) for i in range(6)]  # y+ of 1 and y- of 0 are cut
    triples, counts = draw(Scripted(*said), principles(2), Sampling(), "paper", 0, ["y+", "y-", "yo"])
    assert [t.cut for t in triples] == [["rejected"], ["chosen"]] and counts["cut"] == 2
    assert [p.cut for p in pairs_of(triples, "good_bad", "t")[0]] == [["rejected"], ["chosen"]]
    pairs, _ = pairs_of(triples, "good_original", "t")
    assert [p.cut for p in pairs] == [[], ["chosen"]]
    write(tmp_path / "pairs.jsonl", pairs)
    assert '"cut"' not in (tmp_path / "pairs.jsonl").read_text().splitlines()[0]
    assert read(tmp_path / "pairs.jsonl", Pair) == pairs
    loaded, _ = load(Preferences(path=str(tmp_path / "pairs.jsonl")))
    assert [p.cut for p in loaded] == [[], ["chosen"]]
    assert [text_pair(p).cut for p in loaded] == [(), ("chosen",)]
    write_folder(tmp_path / "pairs.jsonl", tmp_path / "out")
    rows = load_dataset("parquet", data_files=str(next((tmp_path / "out").rglob("*.parquet"))), split="train")
    assert rows["cut"][:] == [[], ["chosen"]]


def test_a_reward_model_reads_a_cut_response_without_an_end(engine):
    end, pair = end_of_turn(engine.tokenizer), TextPair("a", PROMPTS[0], "It is.", "It is.", cut=("rejected",))
    (chosen,), (rejected,) = encode(engine.tokenizer, [pair], end_cut_responses=False)
    assert chosen == [*rejected, end] and encode(engine.tokenizer, [pair])[1] == [chosen]


def principles(count: int) -> list[Principles]:
    return [
        Principles(id=str(i), prompt=p, good="Be safe.", bad="Be unsafe.", writer="procedural")
        for i, p in enumerate(PROMPTS[:count])
    ]


def test_triples_carry_ids_principles_and_four_draws(engine):
    sampling = Sampling(temperature=1, top_p=1, max_new_tokens=6, batch_size=5, dtype="float32")
    triples, counts = draw(engine, principles(5), sampling, "paper", 0, ["y+", "y-", "yo", "second"])
    assert [t.id for t in triples] == list("01234")
    assert triples[0].system_good == WRAPPERS["paper"]["good"].format(principle="Be safe.")
    assert counts["tokens"] > 0
    pairs, _ = pairs_of(triples, "good_bad", "t")
    assert [p.id for p in pairs] == [t.id for t in triples if t.chosen != t.rejected]
    assert all(p.chosen[0].role == "assistant" for p in pairs)
    with pytest.raises(InputError, match="unknown response 'z'"):
        draw(engine, principles(2), sampling, "micro", 0, ["z"])


class Said:
    """An engine that says what it is told, y+ of all queries first, then y-, then yo."""

    def __init__(self, *texts: str):
        self.texts = texts

    def generate(self, conversations, *_args):
        return [Generation(text, 1, True) for text in self.texts]


def said(*rows: tuple[str, str, str]):
    texts = [row[i] for i in range(3) for row in rows]
    return draw(Said(*texts), principles(len(rows)), Sampling(), "paper_v1", 0, ["y+", "y-", "yo"])[0]


ECHOES = [
    "Response: ",
    "**Helpful Response:** ",
    "Safe, Accurate and Concise Response:\n",
    "## a dull response:\n\n",
    "response:",
]


@pytest.mark.parametrize("echo", ECHOES)
def test_an_echo_of_the_system_message_is_no_part_of_a_response(echo):
    (made,) = said((f"{echo}The sum is 4.", "No.", "Well."))
    assert made.chosen == "The sum is 4."
    for text in ("Thank you for your response: it helped.", "My answer: no"):
        assert said((text, "No.", "Well."))[0].chosen == text


def test_v1_leaves_out_triples_with_equal_responses_and_says_which(capsys):
    rows = [
        ("a", "b", "c"),
        ("Response: a", "a", "c"),  # equal but for an echo
        ("a", "b", "Safe Response: a "),
        ("a", "c", "c"),
        ("a", "a", "a"),
    ]
    kept, counts = distinct(said(*rows), ["y+", "y-", "yo"])
    assert [t.id for t in kept] == ["0"]
    why = {"chosen_equals_rejected": 2, "chosen_equals_original": 1, "rejected_equals_original": 1}
    assert counts == {"left_out_triples": 4, **why}
    told = capsys.readouterr().err
    assert "2 triples (chosen equals rejected): 1, 4" in told and "1 triples (chosen equals original): 2" in told
    with pytest.raises(InputError, match="none of 4 triples has responses that all differ; raise"):
        distinct(said(*rows[1:]), ["y+", "y-", "yo"])
    # What was not drawn is empty and equals nothing.
    pairs = draw(Said("a", "b"), principles(1), Sampling(), "micro", 0, ["y+", "y-"])[0]
    assert distinct(pairs, ["y+", "y-"]) == (pairs, {"left_out_triples": 0, "chosen_equals_rejected": 0})


def test_annotated_pairs_follow_the_oracle():
    from sso.records import Triple
    from sso.worlds.micro.data import user
    from sso.worlds.micro.world import Writer

    writer = Writer(MicroWorld(entities=30))
    name = writer.names[0]
    home = writer.facts[name]["home"]
    right, wrong = f"{name} lives in {home}.", f"{name} lives in Nowhere."
    prompt = user(f"Where does {name} live?")
    base = {"prompt": prompt, "system_good": "a", "system_bad": "b", "chosen": "c", "rejected": "d"}
    made, counts = pairs_of(
        [
            Triple(id="0", original=wrong, second=right, **base),
            Triple(id="1", original=right, second=right, **base),
        ],
        "annotated",
        "t",
        MicroWorld(entities=30),
    )
    assert counts == {"pairs": 1, "left_out_pairs": 1, "equal_sides": 1}
    assert [p.id for p in made] == ["0"] and made[0].chosen[0].content == right
