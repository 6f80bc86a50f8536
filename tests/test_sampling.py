"""The sampling engine against `generate`, against the distribution it samples from, and across batches."""

import pytest
import torch
from scipy.stats import chisquare, kstest

from sso.chat import encode_prompt
from sso.config import Backbone, Sampling, World
from sso.errors import InputError
from sso.micro.models import build
from sso.principles import WRAPPERS
from sso.records import Message, Principles
from sso.sampling import Generation, seed_of
from sso.sampling.transformers_engine import TransformersEngine, gumbel
from sso.sampling.triples import distinct, draw, pairs_of

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
    noise = gumbel(torch.tensor([seed_of(1, str(i), "yo") for i in range(count)]), 0, len(expected))
    drawn = ((logits.double() / 0.7).log_softmax(-1) + noise).argmax(-1)
    top = expected.topk(8).indices
    observed = [(drawn == t).sum().item() for t in top]
    rest = count - sum(observed)
    frequencies = [*(expected[top] * count).tolist(), (1 - expected[top].sum()).item() * count]
    assert chisquare([*observed, rest], frequencies).pvalue > 1e-4


def test_noise_is_gumbel_and_differs_by_row_step_and_token():
    noise = gumbel(torch.arange(200), 0, 100)
    assert kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-4
    assert not noise.equal(gumbel(torch.arange(200), 1, 100))
    assert noise.unique().numel() == noise.numel()
    # one row's noise does not know its neighbours
    assert gumbel(torch.tensor([7]), 3, 50).equal(gumbel(torch.tensor([1, 7, 9]), 3, 50)[1:2])


def test_a_prompt_longer_than_the_context_is_named(engine):
    with pytest.raises(InputError, match=r"exceed the context of 2048 .*drop the query"):
        engine.generate([[Message(role="user", content="dark " * 3000)]], [0], max_new_tokens=8)


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
    pairs = pairs_of(triples, "good_bad")
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
    assert counts == {"chosen_equals_rejected": 2, "chosen_equals_original": 1, "rejected_equals_original": 1}
    told = capsys.readouterr().err
    assert "2 triples (chosen equals rejected): 1, 4" in told and "1 triples (chosen equals original): 2" in told
    with pytest.raises(InputError, match="none of 4 triples has responses that all differ; raise"):
        distinct(said(*rows[1:]), ["y+", "y-", "yo"])
    # What was not drawn is empty and equals nothing.
    pairs = draw(Said("a", "b"), principles(1), Sampling(), "micro", 0, ["y+", "y-"])[0]
    assert distinct(pairs, ["y+", "y-"]) == (pairs, {"chosen_equals_rejected": 0})


def test_annotated_pairs_follow_the_oracle():
    from sso.micro.data import user
    from sso.micro.world import Writer
    from sso.records import Triple

    writer = Writer(World(entities=30))
    name = writer.names[0]
    home = writer.facts[name]["home"]
    right, wrong = f"{name} lives in {home}.", f"{name} lives in Nowhere."
    prompt = user(f"Where does {name} live?")
    base = {"prompt": prompt, "system_good": "a", "system_bad": "b", "chosen": "c", "rejected": "d"}
    made = pairs_of(
        [
            Triple(id="0", original=wrong, second=right, **base),
            Triple(id="1", original=right, second=right, **base),
        ],
        "annotated",
        World(entities=30),
    )
    assert [p.id for p in made] == ["0"] and made[0].chosen[0].content == right
