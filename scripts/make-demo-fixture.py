"""Makes test/parity/demo-model.json: what Hugging Face transformers computes with the demo model in float32.

    venv/bin/pip install torch transformers gguf accelerate
    venv/bin/python scripts/make-demo-fixture.py models/SmolLM2-135M-Instruct.Q4_1.gguf

Prompts are token ids, since transformers reads this file's tokenizer wrongly. The file has the fields of the
fixtures' expected.json (see make-fixtures.py) but the logits, of which only the ten largest are kept.
"""

import json
import pathlib
import sys

import torch
import transformers

TARGET = pathlib.Path(__file__).parent.parent / "test" / "parity" / "demo-model.json"
NEW_TOKENS = 32

# "The capital of France is", a chat, a number sequence, code, and a long run of varied ids.
PROMPTS = [
    [504, 3575, 282, 4649, 314],
    [1, 4093, 198, 19556, 28, 638, 359, 346, 47, 2, 198, 1, 520, 9531, 198],
    [33, 28, 216, 34, 28, 216, 35, 28, 216, 36, 28],
    [1604, 19243, 24, 94, 727],
    [(i * 7919 + 31) % 40000 + 20 for i in range(400)],
]


def main() -> None:
    path = pathlib.Path(sys.argv[1])
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.eval()
    result = dict(prompts=PROMPTS, tokens=[], top=[], logprobs=[], gaps=[])
    for prompt in PROMPTS:
        ids, cache, tokens, logprobs, gaps = list(prompt), None, [], [], []
        for step in range(NEW_TOKENS):
            with torch.no_grad():
                output = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = output.logits[0, -1], output.past_key_values
            best = logits.topk(10)
            if step == 0:
                result["top"].append([[int(i), float(v)] for i, v in zip(best.indices, best.values)])
            tokens.append(int(best.indices[0]))
            logprobs.append(round(float(logits.log_softmax(-1)[tokens[-1]]), 6))
            gaps.append(round(float(best.values[0] - best.values[1]), 6))
            ids = tokens[-1:]
        result["tokens"].append(tokens)
        result["logprobs"].append(logprobs)
        result["gaps"].append(gaps)
    TARGET.write_text(json.dumps(result) + "\n")


main()
