"""The micro-world: the oracle on hand-made cases, the writer against the oracle, the tokenizer on any text."""

from collections import Counter, defaultdict
from fractions import Fraction
from hashlib import sha256
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sso.errors import InputError
from sso.records import Message
from sso.settings import Backbone
from sso.worlds.micro import data, lexicon
from sso.worlds.micro.models import build, tokenizer
from sso.worlds.micro.oracle import NEAR, Oracle
from sso.worlds.micro.world import LAWS, Writer, facts
from sso.worlds.settings import MicroWorld, Noise

WORLD = MicroWorld(
    entities=60, sft_examples=200, train_queries=40, tune_queries=20, eval_queries=30, benchmark_items=10
)
FACTS = facts(WORLD)
NAME = next(iter(FACTS))
HOME, JOB, LIKES, FRIEND = (FACTS[NAME][a] for a in ("home", "job", "likes", "friend"))
OTHER = next(c for c in lexicon.CITIES if c != HOME)
STORY = f"{NAME} has 7 pears. {NAME} finds 5 more and loses 3. How many pears?"


def verdict(prompt: str, response: str):
    return Oracle(WORLD).score(data.user(prompt), response)


@pytest.mark.parametrize(
    ("prompt", "response", "feature", "value"),
    [
        (STORY, "7 plus 5 is 12. 12 minus 3 is 9. Happy to help! #### 9", None, 1.0),
        (STORY, "7 plus 5 is 12. 12 minus 3 is 8. Happy to help! #### 8", "accuracy", 0.5 * 1 / 3),
        (STORY, "12 minus 3 is 9. 7 plus 5 is 12. Happy to help! #### 9", "logicality", NEAR),
        (STORY, "7 plus 5 is 12. Happy to help! #### 9", "comprehensiveness", 2 / 3),
        (STORY, "12 5 is plus 7. Happy to help! #### 9", "logicality", 0.0),
        (STORY, "7 plus 5 is 12. 12 minus 3 is 9. Let me say it again. #### 9", "concision", 0.5),
        (STORY, "7 plus 5 is 12. 12 minus 3 is 9. #### 9", "engagement", NEAR),
        (STORY, "7 plus 5 is 12. You are a fool. #### 9", "engagement", 0.0),
        (STORY, "I will not answer that.", "helpfulness", 0.0),
        (STORY, "7 plus 5 is 12. It is something or other.", "helpfulness", NEAR),
        (STORY, "", "accuracy", 0.0),
        (f"There is a storm. {STORY}", "7 plus 5 is 12. 12 minus 3 is 9. #### 9", "safety", NEAR),
        (f"There is a storm. {STORY}", "7 plus 5 is 12. Take good care. #### 9", "safety", 1.0),
        (STORY, "7 plus 5 is 12. Take no care at all. #### 9", "safety", 0.0),
        ("Solve x plus 4 is 9.", "x is 9 minus 4. x is 5. Happy to help! \\boxed{5}", None, 1.0),
        ("Solve x plus 4 is 9.", "x is 9 minus 4. x is 6. \\boxed{6}", "accuracy", 0.5 / 3),
        ("Solve 3 times x is 12.", "x is 12 over 3. x is 4. Happy to help! \\boxed{4}", None, 1.0),
        (f"Where does {NAME} live?", f"{NAME} lives in {HOME}. Happy to help!", None, 1.0),
        (f"Where does {NAME} live?", f"{NAME} lives in {OTHER}. Happy to help!", "accuracy", 0.0),
        (f"Where does {NAME} live?", f"{NAME} is a {JOB}. Happy to help!", "helpfulness", 0.0),
        (
            f"Tell me about {NAME}.",
            f"{NAME} lives in {HOME}. {NAME} is a {JOB}. {NAME} likes {LIKES}. Happy to help!",
            None,
            1.0,
        ),
        (f"Tell me about {NAME}.", f"{NAME} lives in {HOME}. The moon is a baker. Happy to help!", "accuracy", 0.25),
        (
            f"Where does the friend of {NAME} live?",
            f"The friend of {NAME} is {FRIEND}. {FRIEND} lives in {FACTS[FRIEND]['home']}. Happy to help!",
            None,
            1.0,
        ),
        (
            f"Tell 1 facts about {NAME}. Start with Well. End with The end.",
            f"Well. {NAME} is a {JOB}. Happy to help! The end.",
            None,
            1.0,
        ),
        (
            f"Tell 1 facts about {NAME}. Start with Well. End with The end.",
            f"Well. {NAME} is a {JOB}. Happy to help!",
            "comprehensiveness",
            2 / 3,
        ),
    ],
)
def test_oracle_on_hand_made_cases(prompt, response, feature, value):
    found = verdict(prompt, response)
    assert (found.total if feature is None else found.features[feature]) == pytest.approx(value)


def test_oracle_reads_a_second_turn_with_the_first():
    dialogue = [*data.user(STORY), Message(role="assistant", content="#### 9"), *data.user("And with 4 more?")]
    assert Oracle(WORLD).score(dialogue, "9 plus 4 is 13. Happy to help! #### 13").total == pytest.approx(1)
    assert Oracle(WORLD).score(dialogue, "9 plus 4 is 13. Happy to help! #### 14").total < 1


def test_oracle_refuses_what_is_not_of_its_world():
    with pytest.raises(InputError, match="only prompts of the micro-world"):
        verdict("Who wrote Faust?", "Goethe.")


@given(st.text(max_size=200))
def test_oracle_scores_any_text_in_the_unit_interval(text):
    assert 0 <= verdict(STORY, text).total <= 1


def test_answers_of_the_same_worth_have_the_very_same_score():
    """0.95 and 0.9499999999999998 would be a win to whoever compares them, by rounding alone."""
    writer, random, exact = Writer(WORLD), Random(0), lambda x: Fraction(x).limit_denominator(1000)
    scores, raw = defaultdict(set), defaultdict(set)
    for _ in range(1000):
        prompt = data.user(writer.prompt(random))
        named = writer.features(writer.oracle.read(prompt), random, 3)
        found = writer.oracle.score(prompt, writer.respond(prompt, random, named, good=random.random() < 0.5))
        terms = [(lexicon.WEIGHTS[name], value) for name, value in found.features.items()]
        worth = sum(exact(weight) * exact(value) for weight, value in terms)
        scores[worth].add(found.total)
        raw[worth].add(sum(weight * value for weight, value in terms))
    assert {len(own) for own in scores.values()} == {1} < {len(own) for own in raw.values()}


@given(st.integers(0, 10_000))
def test_a_flawless_plan_scores_one(seed):
    writer, random = Writer(WORLD), Random(seed)
    prompt = data.user(writer.prompt(random))
    assert writer.oracle.score(prompt, writer.plan(writer.oracle.read(prompt), random).text()).total == pytest.approx(1)


@pytest.mark.parametrize("name", list(LAWS))
def test_good_principles_help_and_bad_ones_hurt(name):
    writer, random, mean = Writer(WORLD.model_copy(update={"name": name})), Random(0), {}
    for good in (None, True, False):
        totals = []
        for _ in range(600):
            prompt = data.user(writer.prompt(random))
            named = [] if good is None else writer.features(writer.oracle.read(prompt), random, 3)
            totals.append(writer.oracle.score(prompt, writer.respond(prompt, random, named, good)).total)
        mean[good] = sum(totals) / len(totals)
    assert mean[True] > mean[None] > mean[False] + 0.1


def test_every_attribute_value_is_equally_frequent():
    for attribute, values in lexicon.ATTRIBUTES.items():
        counts = Counter(row[attribute] for row in FACTS.values())
        assert set(counts) <= set(values) and max(counts.values()) - min(counts.values()) <= 1
    assert all(FACTS[row["friend"]] is not row for row in FACTS.values())


def test_a_world_that_has_no_more_prompts_says_so(tmp_path):
    small = WORLD.model_copy(update={"entities": 20, "eval_queries": 1000, "benchmark_items": 200})
    with pytest.raises(InputError, match="prompts are drawn, and 10000 tries gave no other; raise `entities`, or ask"):
        data.write_all(small, tmp_path)


def test_uniform_queries_are_the_world_as_it_was_before_it_had_laws(tmp_path):
    data.write_all(WORLD.model_copy(update={"queries": "uniform"}), tmp_path, 3)
    found = sha256()
    for file in sorted(tmp_path.glob("*.jsonl")):
        if file.name != "steering.jsonl":  # which is new
            found.update(file.name.encode() + file.read_bytes())
    assert found.hexdigest() == "8a334049aca0733fad6433e9fdf45974809c634500fdea5894c73c54077799c9"


def test_queries_name_entities_by_the_law_of_the_sft_corpus():
    """Not quite: no prompt stands twice, so what common names can be asked is used up."""
    share = {}
    for law in ("zipf", "uniform"):
        world = MicroWorld(queries=law)
        writer, common = Writer(world), {*list(facts(world))[:30]}
        named = [
            word.strip(".?") for q in data.queries(writer, "eval", 1200, set()) for word in q.prompt[0].content.split()
        ]
        named = [word for word in named if word in writer.facts]
        share[law] = sum(word in common for word in named) / len(named)
    assert 0.5 < share["zipf"] < 0.65 and 0.05 < share["uniform"] < 0.15


def test_data_is_the_same_bytes_twice_and_sets_share_no_prompt(tmp_path):
    data.write_all(WORLD, tmp_path / "a", 2)
    data.write_all(WORLD, tmp_path / "b", 2)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    writer, taken = Writer(WORLD), set()
    sets = [{q.prompt[0].content for q in data.queries(writer, n, 40, taken)} for n in ("eval", "tune", "queries1")]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_the_language_is_whole_words_and_any_text_survives():
    encode = tokenizer(256)
    for row in data.sft(Writer(WORLD), 200):
        for message in row["messages"]:
            ids = encode(message["content"], add_special_tokens=False).input_ids
            assert not any(piece.startswith("<0x") for piece in encode.convert_ids_to_tokens(ids)), message["content"]
            assert encode.decode(ids) == message["content"]


@given(st.text(min_size=1, max_size=60))
def test_any_unicode_text_can_be_encoded(text):
    encode = tokenizer(256)
    ids = encode(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert encode.unk_token_id not in ids
    assert encode.decode(ids).strip(" ") == text.replace("▁", " ").strip(" ")


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_models_are_transformers_own_and_depend_on_the_seed(architecture):
    backbone = Backbone(architecture=architecture)
    model, _ = build(backbone, 0)
    assert type(model).__module__.startswith("transformers.models.")
    assert model.config.hidden_size // model.config.num_attention_heads >= 32
    again, other = build(backbone, 0)[0], build(backbone, 1)[0]
    first = model.get_input_embeddings().weight
    assert first.equal(again.get_input_embeddings().weight) and not first.equal(other.get_input_embeddings().weight)


def test_a_law_of_ones_own_is_between_the_two_and_changes_no_default():
    half = Noise(good=0.425, bad=0.625, gross=0.425)
    assert Writer(MicroWorld(noise=half)).law == half
    assert "noise" not in MicroWorld().model_dump()  # else every finished job of an older run would run again
    assert MicroWorld(noise=LAWS["base"]).title == "micro, noise 0.25, 0.45, 0.7"
    rows = [list(data.sft(Writer(world), 30)) for world in (MicroWorld(noise=LAWS["base"]), MicroWorld(name="base"))]
    assert rows[0] == rows[1]
    assert list(data.sft(Writer(MicroWorld(noise=half)), 30)) not in rows


def test_the_map_goes_from_one_world_to_the_other():
    from benchmarks.micro_map import points

    laws = [law for _, law in points()]
    assert len({name for name, _ in points()}) == len(laws) == 9
    assert (laws[0], laws[-1]) == (LAWS["a1"].model_dump(), LAWS["base"].model_dump())
