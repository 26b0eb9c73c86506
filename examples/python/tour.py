"""The official OpenAI SDK through tidegate: nothing changes but base_url.

    cargo run --release -- serve --sim          # in another terminal; no key, no network
    pip install openai
    python examples/python/tour.py              # or: … tour.py http://127.0.0.1:8080/v1
"""

import asyncio
import io
import sys

from openai import AsyncOpenAI, OpenAI, RateLimitError

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080/v1"
# `tidegate` counts as no key: the gateway uses its own.
client = OpenAI(base_url=BASE_URL, api_key="tidegate")
HELLO = [{"role": "user", "content": "Say hello to the tide."}]


def show(what, found):
    print(f"{what:<22} {found}")


def chat():
    reply = client.chat.completions.with_raw_response.create(model="gpt-4o-mini", messages=HELLO, max_tokens=20)
    completion = reply.parse()
    assert completion.choices[0].message.content
    assert completion.usage.total_tokens > 0
    show("chat", f"{completion.usage.total_tokens} tokens, call {reply.headers['x-tidegate-id']}")


def stream():
    words, usage = 0, None
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(
        model="gpt-4o-mini", messages=HELLO, max_tokens=20, stream=True, stream_options=options
    ):
        words += len(chunk.choices) and bool(chunk.choices[0].delta.content)
        usage = chunk.usage or usage
    assert words and usage.completion_tokens
    show("chat stream", f"{words} chunks, {usage.completion_tokens} tokens")


def tools():
    weather = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    completion = client.chat.completions.create(
        model="gpt-4o-mini", messages=HELLO, tools=[weather], tool_choice="required"
    )
    called = completion.choices[0].message.tool_calls[0].function
    assert called.name == "weather"
    show("tools", f"{called.name}({called.arguments})")


def responses():
    response = client.responses.create(model="gpt-4o-mini", input="Say hello.", max_output_tokens=20)
    assert response.output_text and response.usage.total_tokens
    kinds = [event.type for event in client.responses.create(model="gpt-4o-mini", input="Hello.", stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    show("responses", f"{len(response.output_text.split())} words, {len(kinds)} events streamed")


def embeddings():
    result = client.embeddings.create(model="text-embedding-3-small", input=["high tide", "low tide"])
    assert len(result.data) == 2 and len(result.data[0].embedding) > 100
    show("embeddings", f"{len(result.data)} of {len(result.data[0].embedding)} dimensions")


def uploads():
    lines = b'{"messages": []}\n' * 1000
    stored = client.files.create(file=("train.jsonl", io.BytesIO(lines)), purpose="fine-tune")
    assert client.files.content(stored.id).content == lines, "bytes come back as they went"
    text = client.audio.transcriptions.create(model="whisper-1", file=("a.wav", io.BytesIO(b"RIFF" * 100)))
    show("uploads", f"{stored.bytes} bytes stored, transcribed {len(text.text)} characters")


def images():
    image = client.images.generate(model="gpt-image-2", prompt="a tide gate", n=1)
    assert image.data[0].b64_json
    show("images", f"{len(image.data[0].b64_json)} characters of base64")


def models():
    names = [model.id for model in client.models.list()]
    assert "gpt-4o-mini" in names
    show("models", f"{len(names)} listed")


def cancel():
    with client.chat.completions.create(model="gpt-4o-mini", messages=HELLO, stream=True) as flow:
        for _ in flow:
            break
    show("cancel", "left a stream after its first chunk")


def errors():
    try:
        client.with_options(max_retries=0).chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x" * 400_000}])
    except RateLimitError as error:
        show("too large", str(error)[:110])
    else:
        raise AssertionError("a request above the limit must be refused")


async def hundred_streams():
    async with AsyncOpenAI(base_url=BASE_URL, api_key="tidegate", max_retries=0) as many:

        async def one(number):
            chunks = 0
            # Half of them go to another model: each has limits of its own.
            model = "gpt-4o-mini" if number % 2 else "gpt-4.1"
            async for _ in await many.chat.completions.create(model=model, messages=HELLO, max_tokens=20, stream=True):
                chunks += 1
            return chunks

        counts = await asyncio.gather(*(one(number) for number in range(100)))
        assert all(counts)
        show("100 streams at once", f"{sum(counts)} chunks, no 429")


if __name__ == "__main__":
    for step in (chat, stream, tools, responses, embeddings, uploads, images, models, cancel, errors):
        step()
    asyncio.run(hundred_streams())
    print("all good")
