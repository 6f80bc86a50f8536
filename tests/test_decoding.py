"""How models are asked: the same ids, the same stops and nothing inherited, in sampling, training and lm-eval."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from eval import answer, harness, stock
from eval.settings import Evaluation, Task
from eval.sources import find
from sso.chat import encode_prompt, load_tokenizer
from sso.cli import main
from sso.errors import InputError
from sso.packing import tokenize
from sso.records import Message, Pair
from sso.sampling.transformers_engine import TransformersEngine
from tests.conftest import REPOSITORY
from workflow import experiment as experiments
from workflow.check import check
from workflow.costs import Costs, unpriced
from workflow.experiment import Grid
from workflow.hub_names import hub_names
from workflow.plan import show

SPECIAL = ["<s>", "<doc_end>", "<turn>", "<turn_end>"]
TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }}: {{ m['content'] }}<turn_end>{% endfor %}"
    "{% if add_generation_prompt %}<turn>{% endif %}"
)
ROW = {"question": "Which lamp is green?", "answer": "The first. #### 1"}


def tokenizer(eos: str = "<turn_end>", adds_bos: bool = False, writes_bos: bool = False) -> PreTrainedTokenizerFast:
    """Bytes and four control tokens; the tokenizer may add <s> to any text, and the template may write it."""
    made = Tokenizer(
        models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    made.add_tokens([AddedToken("#### ", normalized=False)])
    if adds_bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=eos, pad_token="<doc_end>")
    fast.chat_template = ("{{ bos_token }}" if writes_bos else "") + TEMPLATE
    return fast


def parrot(folder: Path, tok: PreTrainedTokenizerFast, says: Sequence[str] = "Ok", **decoding) -> Path:
    """A checkpoint that says these tokens, ends its turn and, not stopped there, goes on with x for ever."""
    known = len(tok)
    config = LlamaConfig(
        vocab_size=known, hidden_size=512, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=False, eos_token_id=tok.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    chain = [tok.convert_tokens_to_ids(token) for token in ("<turn>", *says, "<turn_end>", "x", "x")]
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(known, 512))
        for before, after in pairwise(chain):
            model.lm_head.weight[after] += model.model.embed_tokens.weight[before].clone()
    model.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, **decoding)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def lm_eval_replies(folder: Path, data: Path, room: int = 12) -> list[str]:
    engine = TransformersEngine(folder)
    settings = Evaluation(tasks=[Task(name="real_gsm8k", file=str(data), num_fewshot=0, max_new_tokens=room)])
    ready = [stock.build(source, room) for source in find(settings, None)]
    result = harness.run(ready, harness.local(engine.model, engine.tokenizer, 2))["real_gsm8k"]
    return [item["reply"] for item in result["items"]]


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "question": "And now?"}) + "\n")
    return tmp_path / "test.jsonl"


@pytest.mark.parametrize("eos", ["<turn_end>", "<doc_end>"])
def test_all_engines_stop_at_the_end_of_a_turn(eos, gsm8k, tmp_path):
    folder = parrot(tmp_path / "model", tokenizer(eos), says=["#### ", "1"])
    (drawn,) = TransformersEngine(folder).generate([[Message(role="user", content="a")]], [0], 0.0, 1.0, 12)
    assert (drawn.text, drawn.tokens, drawn.finished) == ("#### 1", 3, True)
    assert lm_eval_replies(folder, gsm8k) == ["1", "1"]


def test_a_model_that_never_ends_its_turn_is_cut_alike(gsm8k, tmp_path):
    tok = tokenizer()
    folder = parrot(tmp_path / "model", tok, says=["#### ", *"1234"])
    (drawn,) = TransformersEngine(folder).generate([[Message(role="user", content="a")]], [0], 0.0, 1.0, 3)
    assert (drawn.text, drawn.finished) == ("#### 12", False)
    assert lm_eval_replies(folder, gsm8k, 3) == ["12", "12"]


INHERITED = {
    "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 9, "top_k": 1, "do_sample": True,
    "temperature": 0.1, "suppress_tokens": [80], "num_beams": 2,
}  # fmt: skip


def test_nothing_of_a_checkpoints_generation_config_is_inherited(tiny_checkpoint, gsm8k, tmp_path):
    model, tok = Qwen2ForCausalLM.from_pretrained(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    for name, extra in (("plain", {}), ("loaded", INHERITED)):
        model.generation_config = GenerationConfig(eos_token_id=tok.eos_token_id, **extra)
        model.save_pretrained(tmp_path / name)
        tok.save_pretrained(tmp_path / name)
    asked = [[Message(role="user", content="tell me about Tova .")]] * 3
    for temperature in (0.0, 1.0):
        plain, loaded = (
            TransformersEngine(tmp_path / name).generate(asked, [1, 2, 3], temperature, 0.9, 16)
            for name in ("plain", "loaded")
        )
        assert plain == loaded
    ids = torch.tensor([encode_prompt(tok, asked[0])])
    as_stored = [
        Qwen2ForCausalLM.from_pretrained(tmp_path / name).generate(ids, max_new_tokens=16, do_sample=False).tolist()
        for name in ("plain", "loaded")
    ]
    assert as_stored[0] != as_stored[1]  # what is not inherited would have shown
    items = [lm_eval_items(tmp_path / name, gsm8k) for name in ("plain", "loaded")]
    assert items[0] == items[1]
    after = Qwen2ForCausalLM.from_pretrained(tmp_path / "loaded").generation_config
    assert after.repetition_penalty == 1.5  # the checkpoint's own config is left alone


def lm_eval_items(folder: Path, data: Path) -> list[list[int]]:
    """Ids that lm-eval's model makes, prompts included."""
    engine, made = TransformersEngine(folder), []
    lm = harness.local(engine.model, engine.tokenizer, 1)
    generate = lm._model_generate
    lm._model_generate = lambda **given: made.append(generate(**given)) or made[-1]
    settings = Evaluation(tasks=[Task(name="real_gsm8k", file=str(data), num_fewshot=0, max_new_tokens=8)])
    harness.run([stock.build(source, 8) for source in find(settings, None)], lm)
    return [ids.tolist() for ids in made]


@pytest.mark.parametrize("adds_bos", [False, True], ids=["", "tokenizer adds bos"])
@pytest.mark.parametrize("writes_bos", [False, True], ids=["", "template writes bos"])
def test_the_ids_that_reach_a_model_are_the_rendered_ones(adds_bos, writes_bos, gsm8k, tmp_path, monkeypatch):
    tok = tokenizer(adds_bos=adds_bos, writes_bos=writes_bos)
    folder = parrot(tmp_path / "model", tok)
    engine = TransformersEngine(folder)
    turn = [Message(role="user", content="Which lamp?")]
    expected = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(
        ("<s>" if writes_bos else "") + "<turn>user: Which lamp?<turn_end><turn>", add_special_tokens=False
    )
    assert encode_prompt(engine.tokenizer, turn) == expected.ids
    pair = Pair(id="a", prompt=turn, chosen="Ok", rejected="No")
    assert tokenize([pair], engine.tokenizer, 64).samples[0].contexts["x"] == expected.ids
    seen: list[list[int]] = []
    generate = engine.model.generate
    monkeypatch.setattr(
        engine.model, "generate", lambda **given: seen.append(given["input_ids"][0].tolist()) or generate(**given)
    )
    engine.generate([turn], [0], 0.0, 1.0, 4)
    lm = harness.local(engine.model, engine.tokenizer, 1)
    rendered = lm.apply_chat_template([{"role": "user", "content": "Which lamp?"}])
    from lm_eval.api.instance import Instance

    def ask(kind: str, *arguments) -> list:
        request = Instance(kind, {}, arguments, 0)
        request.metadata = ("task", 0, 1)
        return getattr(lm, kind)([request])

    ask("generate_until", rendered, {"until": [], "max_gen_toks": 4, "do_sample": False})
    call = lm._model_call
    lm._model_call = lambda inps, **given: seen.append(inps[0].tolist()) or call(inps, **given)
    ask("loglikelihood", rendered, "Ok")
    assert seen == [expected.ids, expected.ids, expected.ids + tok.convert_tokens_to_ids(["O"])]


def test_a_fine_tuned_base_model_says_where_its_turns_end(tmp_path):
    """What is saved stops any engine: the base's eos ends documents, not answers."""
    base, template = tokenizer("<doc_end>"), tokenizer()
    base.chat_template = None
    parrot(tmp_path / "base", base)
    parrot(tmp_path / "template", template)
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Ok"}]}] * 4
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": str(tmp_path / "sft.jsonl"), "chat_template": str(tmp_path / "template"), "steps": 1}
    settings |= {"batch_size": 2, "max_length": 64, "dtype": "float32", "learning_rate": 1e-9}
    command = ["--backbone", json.dumps({"path": str(tmp_path / "base"), "sft": True}), "--out", str(tmp_path / "sft")]
    assert main(["sft", "--data", settings["data"], *command, "--settings", json.dumps(settings)]) == 0
    tok, model = load_tokenizer(tmp_path / "sft"), LlamaForCausalLM.from_pretrained(tmp_path / "sft")
    end, document = tok.convert_tokens_to_ids(["<turn_end>", "<doc_end>"])
    assert tok.eos_token_id == model.config.eos_token_id == end
    assert model.generation_config.eos_token_id == [end, document]
    prompt = torch.tensor([encode_prompt(tok, [Message(role="user", content="a")])])
    made = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert tok.decode(made) == "Ok<turn_end>"


# Which benchmarks, and how each is asked and judged.


@pytest.mark.parametrize(("version", "table"), [("v1", "v1_table1"), ("v2", "v2_table1")])
def test_no_benchmark_of_a_paper_config_is_dropped(version, table, capsys):
    import yaml

    file = REPOSITORY / "config" / f"paper_{version}.yaml"
    named = [task["name"] for task in yaml.safe_load(file.read_text())["evaluation"]["tasks"]]
    assert len(named) == 4 and "real_gsm8k" in named
    grid = Grid(experiments.load([file], {}))
    jobs = [job for job in grid if job.rule == "answer" and "/base/" in job.output]
    assert len(jobs) == len(grid.experiment.backbones)
    full = [job for job in jobs if json.loads(job.params["settings"])["tasks"]]
    assert full and all([t["name"] for t in json.loads(j.params["settings"])["tasks"]] == named for j in full)
    columns = yaml.safe_load((REPOSITORY / "report" / "tables.yaml").read_text())["tables"][table]["columns"]
    assert {name.removeprefix("real_") for name in named} <= set(columns)
    assert unpriced(grid.experiment) == []
    cost = Costs(grid.experiment).of(full[0])
    without = json.loads(full[0].params["settings"])
    assert cost.tokens > 0 and len(without["tasks"]) == 4
    assert capsys.readouterr().err == ""


def test_a_benchmark_that_is_not_known_stops_the_run_before_it_starts():
    for tasks, sentence in (
        ([{"name": "real_gsm9k"}], r"unknown task 'real_gsm9k'; did you mean `real_gsm8k`\?"),
        ([{"name": "real_gsm8k"}, {"name": "real_gsm8k"}], "real_gsm8k is named twice"),
        ([{"name": "real_gsm8k"}, {"name": "micro_gsm8k"}], "micro_gsm8k and real_gsm8k would give the same figure"),
    ):
        experiment = experiments.load([REPOSITORY / "config" / "paper_v2.yaml"], {"evaluation": {"tasks": tasks}})
        with pytest.raises(InputError, match=sentence):
            check(experiment)
    one_arm = {"arms": {"sso": {"evaluation": {"tasks": [{"name": "real_nothing"}]}}}}
    with pytest.raises(InputError, match="unknown task 'real_nothing'"):
        check(experiments.load([REPOSITORY / "config" / "paper_v2.yaml"], one_arm))
    # The plan would have no price for it.
    with pytest.raises(InputError, match="unknown task 'real_nothing'"):
        show(Grid(experiments.load([REPOSITORY / "config" / "paper_v2.yaml"], one_arm)))


class Echo:
    """An engine that keeps what it was asked with."""

    def __init__(self):
        self.asked = []

    def generate(self, conversations, seeds, temperature, top_p, max_new_tokens, progress=None, keep=None):
        from sso.sampling.engine import Generation

        self.asked.append((temperature, top_p, max_new_tokens))
        return [Generation("said", 1, True) for _ in conversations]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_open_benchmarks_are_asked_and_judged_as_their_owners_do(version, tmp_path):
    settings = experiments.load([REPOSITORY / "config" / f"paper_{version}.yaml"], {}).evaluation
    settings = settings.model_copy(update={"judged": ["alpaca_eval", "mt_bench", "arena_hard"]})
    (tmp_path / "reference.json").write_text('[{"instruction": "a", "output": "b", "generator": "g"}]')
    turns = [{"question_id": i, "category": c, "turns": ["a", "b"]} for i, c in enumerate(("writing", "math", "stem"))]
    (tmp_path / "mt_bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    (tmp_path / "arena_hard.jsonl").write_text('{"uid": "u", "prompt": "a"}\n')
    asked = {}
    for one in answer._open(settings, tmp_path):
        engine = Echo()
        one.benchmark.answer(engine, one.prompts, one.decoding, 0, "m")
        asked[one.benchmark.answers] = set(engine.asked)
    assert asked == {
        "answers": {(0.7, 0.8, 2048)},
        "mt_bench_answers": {(0.0, 1.0, 1024), (0.1, 1.0, 1024), (0.7, 1.0, 1024)},
        "arena_hard_answers": {(0.0, 1.0, 4096)},
    }
    judges = {name: settings.judge_of(name).model for name in settings.judged}
    assert judges == {
        "alpaca_eval": "gpt-4-1106-preview",
        "mt_bench": "gpt-4",
        "arena_hard": "gpt-4-1106-preview",
    }
    assert settings.judge_of("mt_bench").concurrency == settings.judge.concurrency


def test_a_judge_of_one_benchmark_is_no_setting_of_answers_and_has_its_price():
    def build(judges: dict) -> Grid:
        given = {"evaluation": {"judges": judges}}
        return Grid(experiments.load([REPOSITORY / "config" / "paper_v2.yaml"], given))

    dear, other = build({"mt_bench": {"price_output": 600}}), build({"mt_bench": {"model": "another"}})
    for rule, same in (("answer", True), ("data_quality", True), ("judge", False)):
        jobs = [[job.params["settings"] for job in grid if job.rule == rule] for grid in (dear, other)]
        assert (jobs[0] == jobs[1]) is same, rule
    money = [sum(Costs(grid.experiment).of(job).money for job in grid if job.rule == "judge") for grid in (dear, other)]
    assert money[0] > money[1] > 0


def test_a_misspelt_judge_of_one_benchmark_is_told_at_once():
    file = [REPOSITORY / "config" / "paper_v2.yaml"]
    for own, said in (
        ({"judges": {"mt_bench": {"modle": "x"}}}, "judges.mt_bench: unknown key `modle`; did you mean `model`?"),
        (
            {"decoding": {"mt_bench": {"max_tokens": 4}}},
            "unknown key `evaluation.decoding.mt_bench.max_tokens`; did you",
        ),
        ({"mirrors": {"gsm8k": {"tets": "f"}}}, "unknown key `evaluation.mirrors.gsm8k.tets`; did you mean `test`?"),
        ({"tasks": [{"nmae": "f"}]}, "unknown key `evaluation.tasks.0.nmae`; did you mean `name`?"),
    ):
        with pytest.raises(InputError) as told:
            experiments.load(file, {"evaluation": own})
        assert said in str(told.value)


def test_llama_bases_have_the_llama3_template():
    grid = Grid(experiments.load([REPOSITORY / "config" / "paper_v1.yaml"], {}))
    templates = {
        job.wildcards["backbone"]: json.loads(job.params["settings"])["chat_template"].partition("@")[0]
        for job in grid
        if job.rule == "sft"
    }
    llama = "meta-llama/Meta-Llama-3-8B-Instruct"
    assert templates == {"llama31_sft": llama, "llama3_sft": llama, "qwen2_sft": "Qwen/Qwen2-7B-Instruct"}
    assert llama in {name.partition("@")[0] for name in hub_names(grid.experiment)}
