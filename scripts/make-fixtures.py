"""Makes test/parity/fixtures: tiny random models and what Hugging Face transformers computes with them in float32.

    python3 -m venv venv && venv/bin/pip install torch transformers safetensors
    venv/bin/python scripts/make-fixtures.py

Each folder is a Hugging Face model (config.json, safetensors) with expected.json:
    prompts: token ids; tokens: the greedy continuation of each; logits: those of the last prompt position;
    logprobs: under teacher forcing, of each generated token; gaps: between the best and second logit at each step.
The model CHANGED has changed.json too: greedy continuations of changed logits, with the logprobs that the model's own
logits give each token and the TOP most probable ones, and those of the prompt's tokens from the second on.
"""

import json
import pathlib
import shutil

import torch
import transformers

ROOT = pathlib.Path(__file__).parent.parent / "test" / "parity" / "fixtures"
NEW_TOKENS = 24
PROMPT_LENGTHS = (1, 7, 40, 150)
TOP = 5
CHANGED = "llama-tied-llama3"
# Fields of GenerationParameters. With minTokens, `ends` are ids that end the answer.
CHANGES = (
    dict(),
    dict(repetitionPenalty=1.3),
    dict(repetitionPenalty=0.8),
    dict(presencePenalty=1.5, frequencyPenalty=0.5),
    dict(presencePenalty=-0.5, frequencyPenalty=-0.2),
    dict(logitBias={"5": 1.0, "24": -2.0, "60": 1.25}),
    dict(minTokens=9),
    dict(repetitionPenalty=1.15, presencePenalty=0.4, frequencyPenalty=0.3, logitBias={"17": 2.0, "3": -4.0}, minTokens=6),
)

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


class AnswerPenalties(transformers.LogitsProcessor):
    """OpenAI's presence and frequency penalties, which transformers does not have."""

    def __init__(self, prompt_length: int, presence: float, frequency: float):
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids, scores):
        counts = torch.bincount(input_ids[0, self.prompt_length:], minlength=scores.shape[-1]).float()
        return scores - self.presence * (counts > 0) - self.frequency * counts


def processors(change: dict, prompt_length: int, ends: list[int]) -> transformers.LogitsProcessorList:
    bias = {(int(token),): value for token, value in change.get("logitBias", {}).items()}
    chain = [transformers.SequenceBiasLogitsProcessor(bias)] if bias else []
    if "minTokens" in change:
        chain.append(transformers.MinNewTokensLengthLogitsProcessor(prompt_length, change["minTokens"], ends, device="cpu"))
    if "repetitionPenalty" in change:
        chain.append(transformers.RepetitionPenaltyLogitsProcessor(change["repetitionPenalty"]))
    chain.append(AnswerPenalties(prompt_length, change.get("presencePenalty", 0), change.get("frequencyPenalty", 0)))
    return transformers.LogitsProcessorList(chain)


def rows(logprobs: torch.Tensor, tokens: list[int]) -> dict:
    """Logprobs [tokens, vocabulary] as the engine reports them."""
    top = logprobs.topk(TOP, -1)
    own = logprobs[range(len(tokens)), tokens]
    shorten = lambda values: [[round(value, 6) for value in row] for row in values]
    return dict(logprobs=shorten([own.tolist()])[0], topIds=top.indices.tolist(), topLogprobs=shorten(top.values.tolist()))


def expect_changed(model, prompt: list[int], ends: list[int]) -> dict:
    with torch.no_grad():
        of_prompt = model(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)
    result = dict(prompt=prompt, ends=ends, top=TOP, promptLogprobs=rows(of_prompt, prompt[1:]), cases=[])
    for change in CHANGES:
        ids, logprobs = list(prompt), []
        stops = ends if "minTokens" in change else []
        change_logits = processors(change, len(prompt), ends)
        while len(ids) < len(prompt) + NEW_TOKENS and (len(ids) == len(prompt) or ids[-1] not in stops):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[:, -1].float()
            logprobs.append(logits[0].log_softmax(-1))
            ids.append(int(change_logits(torch.tensor([ids]), logits)[0].argmax()))
        tokens = ids[len(prompt):]
        result["cases"].append(dict(parameters=change, tokens=tokens, **rows(torch.stack(logprobs), tokens)))
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
        if name == CHANGED:
            # The plain continuation's third token ends it, so that min_tokens has something to do.
            ends = [expect(model, prompts[2:3])["tokens"][0][2]]
            (folder / "changed.json").write_text(json.dumps(expect_changed(model, prompts[2], ends)) + "\n")
        print(name, sum(p.numel() for p in model.parameters()), "parameters")


main()
