"""A tokenizer is its tokenizer.json, templates are told one day and refuse by name, tokens and weights belong together.

Checkpoints here are untrained and tiny, with a byte-level tokenizer whose splitting no class of transformers knows.
"""

import json
from datetime import datetime
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval.answer import answer
from eval.cli import main as sso_eval
from eval.settings import Evaluation
from rewardbench.cli import main as rewardbench
from sso import chat
from sso.cli import main
from sso.errors import InputError
from sso.packing import tokenize
from sso.records import Message, Pair, Principles, Triple, write
from sso.reference import make_key
from sso.settings import read_yaml
from sso.train.run import save
from sso.train.settings import Training
from tests.conftest import REPOSITORY
from workflow import experiment as experiments
from workflow.check import check, guided

CLASSES = [
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "NoSuchTokenizer",
    None,
]
TEXT = "The lamp in the hall.\n\nIt is green: 12345.\n\n\n  e\u0301 \u00e9 \U0001f600"
SPECIAL = ["<s>", "</s>", "<|endoftext|>", "<|turn|>", "<|end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)
DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') + '.\n' }}" + TEMPLATE
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}"
) + TEMPLATE


def core() -> Tokenizer:
    made = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\p{L}+|\n+|\s+|."), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT] * 20, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))])
    return made


def checkpoint(folder: Path, template: str = TEMPLATE, rows: int | None = None, **tokens) -> Path:
    """A Llama with this template; ``rows``: of its embeddings; ``tokens``: further special ones."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>", **tokens}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core(), chat_template=template, **tokens)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=rows or len(tokenizer), max_position_embeddings=512, **shape)
    for part in (LlamaForCausalLM(config), tokenizer):
        part.save_pretrained(folder)
    return folder


def declare(folder: Path, **settings) -> None:
    """Set keys of tokenizer_config.json; None takes one away."""
    file = folder / "tokenizer_config.json"
    values = {**json.loads(file.read_text()), **settings}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def ids(tokenizer) -> list[int]:
    return tokenizer(TEXT, add_special_tokens=False).input_ids


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


# One tokenizer everywhere.


@pytest.mark.parametrize("name", CLASSES)
def test_whatever_class_is_named_the_ids_are_those_of_tokenizer_json(tmp_path, name):
    folder = checkpoint(tmp_path / "m")
    declare(folder, tokenizer_class=name, backend=None, add_bos_token=True)
    expected = Tokenizer.from_file(str(folder / "tokenizer.json"))
    read = chat.load_tokenizer(folder)
    assert ids(read) == expected.encode(TEXT, add_special_tokens=False).ids
    assert read.decode(ids(read)) == TEXT
    assert read(TEXT).input_ids == expected.encode(TEXT).ids  # with the beginning that its settings ask for
    save(chat.load_model(folder), read, tmp_path / "saved")
    # What is saved needs nothing of this suite.
    again = [chat.load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")]
    for tokenizer in again:
        assert ids(tokenizer) == ids(read) and tokenizer(TEXT).input_ids == read(TEXT).input_ids
        assert tokenizer.special_tokens_map == read.special_tokens_map
        assert tokenizer.chat_template == TEMPLATE
    files = [json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("m", "saved")]
    for part in ("model", "pre_tokenizer", "normalizer", "decoder", "added_tokens"):
        assert files[0][part] == files[1][part], part


def test_a_class_of_transformers_would_give_other_ids(tmp_path):
    """Else the test above could not fail."""
    folder = checkpoint(tmp_path / "m")
    declare(folder, tokenizer_class="GPT2Tokenizer", backend=None)
    assert ids(AutoTokenizer.from_pretrained(folder)) != ids(chat.load_tokenizer(folder))


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "PreTrainedTokenizerFast"])
def test_where_a_model_type_forces_its_class_a_folder_without_its_config_does_not(tmp_path, name):
    """How vLLM is given the tokenizer: it asks AutoTokenizer, which rebuilds whatever lies beside a Qwen2."""
    folder = checkpoint(tmp_path / "m")
    declare(folder, tokenizer_class=name, backend=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    read = chat.load_tokenizer(folder)
    assert ids(AutoTokenizer.from_pretrained(folder)) != ids(read)
    (tmp_path / "alone").mkdir()
    for saved in (tmp_path / "alone", folder):  # the one that is saved beside its config.json does not, either
        chat.save_tokenizer(read, saved)
        again = AutoTokenizer.from_pretrained(saved)
        assert ids(again) == ids(read) == ids(chat.load_tokenizer(saved))
        assert again.special_tokens_map == read.special_tokens_map and again.chat_template == TEMPLATE


def test_special_tokens_that_are_left_to_a_class_are_found_and_none_is_told(tmp_path):
    folder = checkpoint(tmp_path / "m")
    declare(folder, tokenizer_class="GPT2Tokenizer", eos_token=None, backend=None)
    read = chat.load_tokenizer(folder)
    assert read.eos_token == "<|endoftext|>" and read.bos_token == "<s>"  # GPT-2's own, and the folder's
    declare(folder, tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(InputError, match=r"m: the tokenizer has no eos_token; name it in tokenizer_config.json"):
        chat.load_tokenizer(folder)


# One day.


class Tomorrow(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 6)


SCORED = Training(max_length=256, dtype="float32")


def test_another_day_changes_no_prompt_no_key_and_no_prompt_of_lm_eval(tmp_path, monkeypatch):
    from eval.harness import local

    folder = checkpoint(tmp_path / "m", DATED)
    pair = Pair(id="a", prompt="Which?", chosen="The lamp.", rejected="Two.")
    plain = [{"role": "user", "content": "Which?"}]

    def seen() -> tuple:
        tokenizer = chat.load_tokenizer(folder)
        samples = tokenize([pair], tokenizer, 256).samples
        lm = local(chat.load_model(folder), tokenizer, 1)
        key = make_key(folder, tokenizer, [pair], samples, SCORED)
        return samples, key, lm.apply_chat_template(plain), chat.describe(tokenizer)

    today, naive = seen(), AutoTokenizer.from_pretrained(folder)
    before = naive.apply_chat_template(plain, tokenize=False)
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert naive.apply_chat_template(plain, tokenize=False) != before  # the clock was moved
    assert seen() == today and "Today is 26 Jul 2024." in today[2]


def test_the_day_is_formatted_as_python_does_and_changes_nothing_else(tmp_path):
    forms = ["%d %b %Y", "%Y-%m-%d", "%A, %-d. %B %y", "%H:%M:%S", "%j", "%e %D %F"]
    for start in ("", "\n", "  {% if true %}x{% endif %}\n"):
        text = start + "|".join(f"{{{{ strftime_now('{form}') }}}}" for form in forms)
        tokenizer = chat.load_tokenizer(checkpoint(tmp_path / "m", text + TEMPLATE))
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
        said = "|".join(chat.TODAY.strftime(form) for form in forms)
        bare = PreTrainedTokenizerFast.from_pretrained(tmp_path / "m", chat_template=start + said + TEMPLATE)
        assert rendered == bare.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)


def test_scores_of_other_ids_are_told_by_their_key(tmp_path):
    folder = checkpoint(tmp_path / "m", DATED)
    pair = Pair(id="a", prompt="Which?", chosen="The lamp.", rejected="Two.")
    tokenizer = chat.load_tokenizer(folder)
    samples = tokenize([pair], tokenizer, 256).samples
    one = make_key(folder, tokenizer, [pair], samples, SCORED)
    samples[0].contexts["x"][-1] += 1
    other = make_key(folder, tokenizer, [pair], samples, SCORED)
    assert {name for name in one if one[name] != other[name]} == {"tokens"}


# What a template refuses.


@pytest.fixture
def strict(tmp_path, monkeypatch):
    """A checkpoint whose template takes no system turn, and that no model may be loaded from."""
    folder = checkpoint(tmp_path / "strict", STRICT)
    monkeypatch.setattr(chat, "pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("sso.sampling.transformers_engine.load_model", lambda *_: pytest.fail("a model was loaded"))
    return folder


SYSTEM = "the chat template refuses the conversation: System role not supported"
ALTERNATE = "the chat template refuses the conversation: Roles must alternate"
TWICE = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("sample", f"query 'q1': {SYSTEM}"),
        ("train", f"record 't1': {SYSTEM}"),
        ("reference", f"record 't1': {SYSTEM}"),
        ("loss", f"record 't1': {SYSTEM}"),
        ("pairs", f"record 'p1': {ALTERNATE}"),
        ("reward", f"pair 'p1': {ALTERNATE}"),
        ("score", f"pair 'p1': {ALTERNATE}"),
        ("implicit", f"pair 'p1': {ALTERNATE}"),
    ],
)
def test_a_refusal_is_told_with_its_record_before_a_model_is_loaded(strict, tmp_path, capsys, what, expected):
    given = {"principles": Principles(id="q1", prompt="a", good="b", bad="c", writer="t")}
    texts = {"chosen": "y", "rejected": "z"}
    given["triples"] = Triple(id="t1", prompt="a", system_good="b", system_bad="c", original="o", **texts)
    given["pairs"] = Pair(id="p1", prompt=TWICE, **texts)
    for name, record in given.items():
        write(tmp_path / f"{name}.jsonl", [record])
    row = {"id": "p1", "subset": "micro-chat", "prompt": TWICE, **texts}
    write(tmp_path / "bench.jsonl", [row])
    out = ["--out", str(tmp_path / "out")]
    settings = ["--settings", json.dumps({"objective": "sso_v2", "dtype": "float32"})]
    pairs = ["--settings", json.dumps({"objective": "pairs", "dtype": "float32"})]

    def data(name: str, model: str = "--model", flag: str = "--data") -> list[str]:
        return [model, str(strict), flag, str(tmp_path / f"{name}.jsonl")]

    run, arguments = {
        "sample": (main, ["sample", *data("principles", flag="--principles"), "--settings", "{}", *out]),
        "train": (main, ["train", *data("triples"), *settings, *out]),
        "reference": (main, ["reference", *data("triples"), "--objectives", "sso_v2", *settings, *out]),
        "loss": (
            main,
            ["loss", *data("triples", "--policy", "--triples"), "--reference", str(strict), "--objective", "sso_v2"],
        ),
        "pairs": (main, ["train", *data("pairs"), *pairs, *out]),
        "reward": (
            rewardbench,
            ["train", *data("pairs", flag="--pairs"), "--settings", '{"arm": "x", "dtype": "float32"}', *out],
        ),
        "score": (rewardbench, ["score", *data("bench"), *out]),
        "implicit": (rewardbench, ["score", *data("bench", "--policy"), *out]),
    }[what]
    assert run(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {expected}"
    assert not (tmp_path / "out").exists()


def test_an_evaluation_names_the_prompt_that_the_template_refuses(strict, tmp_path):
    data = tmp_path / "data"
    write(data / "eval.jsonl", [{"id": "e1", "prompt": "a"}, {"id": "e2", "prompt": TWICE}])
    settings = Evaluation(tasks=[], judged=["alpaca_eval"])
    with pytest.raises(InputError, match=rf"eval: prompt 'e2': {ALTERNATE}"):
        answer(str(strict), data, settings, 0, tmp_path / "answers", None, tmp_path / "cache")
    assert not (tmp_path / "answers").exists()


def test_plain_pairs_are_trained_with_a_template_without_a_system_turn(tmp_path):
    folder = checkpoint(tmp_path / "m", STRICT)
    write(tmp_path / "pairs.jsonl", [Pair(id=n, prompt="a", chosen="yes", rejected="no") for n in "ab"])
    settings = json.dumps({"objective": "pairs", "dtype": "float32", "batch_size": 2, "max_length": 64})
    files = ["--model", str(folder), "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out")]
    assert main(["train", *files, "--settings", settings]) == 0
    told = json.loads((tmp_path / "out" / "tuning.json").read_text())["template"]
    assert told["x_with_principle"] is None and told["refused"] == SYSTEM and "QUERY" in told["x"]
    assert json.loads((tmp_path / "out.run.json").read_text())["status"] != "failed"


def test_an_experiment_under_principles_asks_for_a_system_turn(tmp_path, strict):
    values = read_yaml(REPOSITORY / "config" / "local_model.yaml")
    write(tmp_path / "queries.jsonl", [{"id": "a", "prompt": "a"}])
    for template, message in ((STRICT, f"strict: .*{SYSTEM} .*in which arms"), (TEMPLATE, None)):
        (strict / "chat_template.jinja").write_text(template)
        given = {"model": str(strict), "queries": str(tmp_path / "queries.jsonl")}
        experiment = experiments.load([REPOSITORY / "config" / "local_model.yaml"], given)
        assert values["arms"] and list(guided(experiment))
        if message:
            with pytest.raises(InputError, match=message):
                check(experiment)
        else:
            check(experiment)


# Tokens without embeddings, adapters, no records.


def test_a_padding_token_without_an_embedding_gives_way_to_the_end_of_sequence(tmp_path):
    whole = len(chat.load_tokenizer(checkpoint(tmp_path / "m")))
    folder = checkpoint(tmp_path / "padded", rows=whole, pad_token="[PAD]")
    tokenizer = chat.load_tokenizer(folder)
    assert tokenizer.outside == {whole: "[PAD]"} and tokenizer.pad_token == "</s>"
    write(
        tmp_path / "pairs.jsonl",
        [Pair(id=n, prompt="a", chosen="yes " * i, rejected="no") for i, n in enumerate("abc", 1)],
    )
    files = ["--model", str(folder), "--out"]
    for layout in ("forest", "padded"):
        settings = {"objective": "pairs", "dtype": "float32", "batch_size": 3, "max_length": 64, "layout": layout}
        data = ["--data", str(tmp_path / "pairs.jsonl"), "--settings", json.dumps(settings)]
        assert main(["train", *files, str(tmp_path / layout), *data]) == 0
    losses = [
        json.loads((tmp_path / f"{name}.run.json").read_text())["metrics"][-1][1]["loss"]
        for name in ("forest", "padded")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    pairs = [
        "--pairs",
        str(tmp_path / "pairs.jsonl"),
        "--settings",
        '{"arm": "x", "batch_size": 3, "dtype": "float32"}',
    ]
    assert rewardbench(["train", *files, str(tmp_path / "rm"), *pairs]) == 0
    write(
        tmp_path / "p.jsonl",
        [Principles(id=n, prompt="a" * i, good="b", bad="c", writer="t") for i, n in enumerate("ab", 1)],
    )
    sampling = ["--principles", str(tmp_path / "p.jsonl"), "--settings", '{"max_new_tokens": 2, "dtype": "float32"}']
    assert main(["sample", "--model", str(tmp_path / "padded"), "--out", str(tmp_path / "t.jsonl"), *sampling]) == 0


def test_any_other_token_without_an_embedding_is_told_where_it_would_be_used(tmp_path):
    whole = len(chat.load_tokenizer(checkpoint(tmp_path / "m")))
    marked = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token + ('<|new|>' if messages | length > 1 else '') }}")
    tokenizer = chat.load_tokenizer(checkpoint(tmp_path / "late", marked, rows=whole, extra_special_tokens=["<|new|>"]))
    assert tokenizer.outside == {whole: "<|new|>"}
    fine = Pair(id="fine", prompt="a <|new|>", chosen="y", rejected="z")  # as text it is no token
    assert tokenize([fine], tokenizer, 256).samples
    bad = fine.model_copy(
        update={"id": "bad", "prompt": [*user("a"), Message(role="assistant", content="b"), *user("c")]}
    )
    with pytest.raises(InputError, match=rf"record 'bad': token '<\|new\|>' has id {whole}, which is beyond"):
        tokenize([fine, bad], tokenizer, 256)
    with pytest.raises(InputError, match=r"early: token '<\|turn\|>' has id .* beyond the model's embeddings"):
        chat.load_tokenizer(checkpoint(tmp_path / "early", rows=whole - 2))


@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_is_told_whoever_is_given_it(tmp_path, capsys, beside):
    """``beside``: in one folder with the model, where transformers would take the adapter and its base."""
    folder = checkpoint(tmp_path / "adapter")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "OWNER/BASE", "peft_type": "LORA"}')
    if not beside:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    for call in (chat.load_tokenizer, chat.load_model, chat.check_checkpoint):
        with pytest.raises(InputError, match=r"adapter: an adapter, not a whole model; merge it into its base first"):
            call(folder)
    write(tmp_path / "eval.jsonl", [{"id": "a", "prompt": "a"}])
    where = ["--model", str(folder), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert sso_eval(["answer", *where, "--settings", '{"judged": ["alpaca_eval"]}']) == 2
    write(tmp_path / "pairs.jsonl", [Pair(id="a", prompt="a", chosen="y", rejected="z")])
    where[3] = str(tmp_path / "pairs.jsonl")
    assert main(["train", *where, "--settings", '{"objective": "pairs"}']) == 2
    assert capsys.readouterr().err.count("an adapter, not a whole model") == 2


def test_no_records_are_told(tmp_path):
    with pytest.raises(InputError, match="there are no records to tokenize"):
        tokenize([], chat.load_tokenizer(checkpoint(tmp_path / "m")), 64)
