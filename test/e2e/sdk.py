"""What users of PyPI's openai package do, against the server named first; prints what came back as JSON."""

import json
import sys

import openai

base_url, model = sys.argv[1:3]
client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
messages = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]
chat = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0}


def streamed():
    text, usage, pieces = "", None, 0
    for chunk in client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}):
        pieces += 1
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
    return text, usage.model_dump(), pieces


def refused():
    try:
        client.chat.completions.create(**{**chat, "temperature": -1})
    except openai.BadRequestError as error:
        return {"status": error.status_code, "param": error.param, "message": error.message}


whole = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
text, usage, pieces = streamed()
continued = client.completions.create(model=model, prompt="The capital of France is", max_tokens=3, temperature=0)
answer = {
    "text": whole.choices[0].message.content,
    "usage": whole.usage.model_dump(),
    "logprobs": [token.model_dump() for token in whole.choices[0].logprobs.content],
    "streamed": text,
    "pieces": pieces,
    "streamed_usage": usage,
    "completion": continued.choices[0].text,
    "models": [card.id for card in client.models.list()],
    "refused": refused(),
}
print(json.dumps(answer))
