"""Makes test/parity/fixtures: tiny random models and what Hugging Face transformers computes with them in float32.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python scripts/make-fixtures.py

Each folder is a Hugging Face model (config.json, safetensors) with expected.json:
    prompts: token ids; tokens: the greedy continuation of each; logits: those of the last prompt position;
    logprobs: under teacher forcing, of each generated token; gaps: between the best and second logit at each step.
"""

import json
import pathlib
import shutil

import torch
import transformers

ROOT = pathlib.Path(__file__).parent.parent / "test" / "parity" / "fixtures"
NEW_TOKENS = 24
PROMPT_LENGTHS = (1, 7, 40, 150)

COMMON = dict(num_hidden_layers=2, max_position_embeddings=512, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)

LLAMA3_SCALING = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
YARN_SCALING = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)

# name: (transformers' configuration class, its fields, options). Sizes are multiples of nothing on purpose.
MODELS = {
    "llama-tied-llama3": ("LlamaConfig", dict(vocab_size=131, hidden_size=60, intermediate_size=101,
        num_attention_heads=3, num_key_value_heads=1, head_dim=64, tie_word_embeddings=True,
        rope_parameters=dict(rope_theta=500000.0, **LLAMA3_SCALING)), {}),
    "llama-untied": ("LlamaConfig", dict(vocab_size=97, hidden_size=64, intermediate_size=67,
        num_attention_heads=1, num_key_value_heads=1, head_dim=64, tie_word_embeddings=False), {}),
    "llama-yarn": ("LlamaConfig", dict(vocab_size=97, hidden_size=36, intermediate_size=67,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True,
        rope_parameters=dict(rope_theta=10000.0, **YARN_SCALING)), {}),
    "llama-linear": ("LlamaConfig", dict(vocab_size=97, hidden_size=36, intermediate_size=67,
        num_attention_heads=2, num_key_value_heads=1, head_dim=80, tie_word_embeddings=True,
        rope_parameters=dict(rope_theta=10000.0, rope_type="linear", factor=2.0)), {}),
    "qwen2": ("Qwen2Config", dict(vocab_size=131, hidden_size=128, intermediate_size=77,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True), dict(dtype="bfloat16")),
    "qwen3": ("Qwen3Config", dict(vocab_size=113, hidden_size=44, intermediate_size=91,
        num_attention_heads=8, num_key_value_heads=1, head_dim=128, tie_word_embeddings=False), dict(dtype="bfloat16")),
    "qwen3-wide": ("Qwen3Config", dict(vocab_size=113, hidden_size=44, intermediate_size=51,
        num_attention_heads=5, num_key_value_heads=1, head_dim=256, tie_word_embeddings=True,
        num_hidden_layers=1), dict(dtype="float16")),
    "mistral-sharded": ("MistralConfig", dict(vocab_size=131, hidden_size=52, intermediate_size=101,
        num_attention_heads=6, num_key_value_heads=1, head_dim=64, sliding_window=None), dict(shards="60KB")),
    "llama-bfloat16": ("LlamaConfig", dict(vocab_size=131, hidden_size=64, intermediate_size=96,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True), dict(dtype="bfloat16")),
    "llama-attention-bias": ("LlamaConfig", dict(vocab_size=97, hidden_size=40, intermediate_size=67,
        num_attention_heads=2, num_key_value_heads=2, head_dim=64, attention_bias=True), dict(dtype="float16")),
}


def randomize(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Weights that make logits differ clearly and keep activations of order one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed" in name:
                # A tied head would only repeat the last token if the residual stream were mostly its embedding.
                parameter.copy_(0.1 * noise if model.config.tie_word_embeddings else noise)
            else:
                parameter.copy_(1.2 * noise / parameter.shape[1] ** 0.5)


def expect(model, prompts: list[list[int]]) -> dict:
    result = dict(prompts=prompts, tokens=[], logits=[], logprobs=[], gaps=[])
    for prompt in prompts:
        ids = list(prompt)
        tokens, logprobs, gaps = [], [], []
        for step in range(NEW_TOKENS):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].float()
            if step == 0:
                result["logits"].append([float(f"{value:.7g}") for value in logits.tolist()])
            best = logits.topk(2).values
            token = int(logits.argmax())
            tokens.append(token)
            logprobs.append(round(float(logits.log_softmax(-1)[token]), 6))
            gaps.append(round(float(best[0] - best[1]), 6))
            ids.append(token)
        result["tokens"].append(tokens)
        result["logprobs"].append(logprobs)
        result["gaps"].append(gaps)
    return result


def main() -> None:
    shutil.rmtree(ROOT, ignore_errors=True)
    for index, (name, (config_class, fields, options)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(index)
        config = getattr(transformers, config_class)(**{**COMMON, **fields})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        randomize(model, generator)
        if "dtype" in options:
            model = model.to(getattr(torch, options["dtype"]))
        folder = ROOT / name
        model.save_pretrained(folder, max_shard_size=options.get("shards", "5GB"))
        # Read back: converting the module would leave its rotary frequencies rounded to half precision.
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        prompts = [torch.randint(3, config.vocab_size, (length,), generator=generator).tolist()
                   for length in PROMPT_LENGTHS]
        (folder / "expected.json").write_text(json.dumps(expect(model, prompts)) + "\n")
        print(name, sum(p.numel() for p in model.parameters()), "parameters")


main()
