// The official OpenAI SDK through tidegate: nothing changes but baseURL.
//
//   cargo run --release -- serve --sim        # in another terminal; no key, no network
//   cd examples/node && npm install && node tour.mjs [http://127.0.0.1:8080/v1]
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const baseURL = process.argv[2] ?? "http://127.0.0.1:8080/v1";
// `tidegate` counts as no key: the gateway uses its own.
const client = new OpenAI({ baseURL, apiKey: "tidegate" });
const messages = [{ role: "user", content: "Say hello to the tide." }];
const model = "gpt-4o-mini";
const show = (what, found) => console.log(what.padEnd(22), found);

async function chat() {
  const { data, response } = await client.chat.completions.create({ model, messages, max_tokens: 20 }).withResponse();
  assert.ok(data.choices[0].message.content && data.usage.total_tokens > 0);
  show("chat", `${data.usage.total_tokens} tokens, call ${response.headers.get("x-tidegate-id")}`);
}

async function stream() {
  let chunks = 0;
  for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 20, stream: true })) {
    chunks += chunk.choices.length;
  }
  assert.ok(chunks > 1);
  show("chat stream", `${chunks} chunks`);
}

async function tools() {
  const weather = { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } };
  const reply = await client.chat.completions.create({
    model,
    messages,
    tools: [{ type: "function", function: weather }],
    tool_choice: "required",
  });
  assert.equal(reply.choices[0].message.tool_calls[0].function.name, "weather");
  show("tools", "weather was called");
}

async function responses() {
  const reply = await client.responses.create({ model, input: "Say hello.", max_output_tokens: 20 });
  assert.ok(reply.output_text);
  const kinds = [];
  for await (const event of await client.responses.create({ model, input: "Hello.", stream: true })) kinds.push(event.type);
  assert.equal(kinds.at(0), "response.created");
  assert.equal(kinds.at(-1), "response.completed");
  show("responses", `${kinds.length} events streamed`);
}

async function embeddings() {
  const reply = await client.embeddings.create({ model: "text-embedding-3-small", input: ["high tide", "low tide"] });
  assert.equal(reply.data.length, 2);
  show("embeddings", `${reply.data.length} of ${reply.data[0].embedding.length} dimensions`);
}

async function uploads() {
  const bytes = Buffer.from('{"messages": []}\n'.repeat(1000));
  const stored = await client.files.create({ file: await toFile(bytes, "train.jsonl"), purpose: "fine-tune" });
  const back = Buffer.from(await (await client.files.content(stored.id)).arrayBuffer());
  assert.ok(back.equals(bytes), "bytes come back as they went");
  show("uploads", `${stored.bytes} bytes stored`);
}

async function images() {
  const reply = await client.images.generate({ model: "gpt-image-2", prompt: "a tide gate", n: 1 });
  assert.ok(reply.data[0].b64_json);
  show("images", `${reply.data[0].b64_json.length} characters of base64`);
}

async function models() {
  const names = [];
  for await (const found of client.models.list()) names.push(found.id);
  assert.ok(names.includes(model));
  show("models", `${names.length} listed`);
}

async function cancel() {
  const flow = await client.chat.completions.create({ model, messages, stream: true });
  for await (const _ of flow) break;
  show("cancel", "left a stream after its first chunk");
}

async function hundredStreams() {
  const once = new OpenAI({ baseURL, apiKey: "tidegate", maxRetries: 0 });
  const one = async (number) => {
    let chunks = 0;
    const which = number % 2 ? model : "gpt-4.1";
    const flow = await once.chat.completions.create({ model: which, messages, max_tokens: 20, stream: true });
    for await (const _ of flow) chunks += 1;
    return chunks;
  };
  const counts = await Promise.all(Array.from({ length: 100 }, (_, number) => one(number)));
  assert.ok(counts.every(Boolean));
  show("100 streams at once", `${counts.reduce((a, b) => a + b)} chunks, no 429`);
}

for (const step of [chat, stream, tools, responses, embeddings, uploads, images, models, cancel, hundredStreams]) {
  await step();
}
console.log("all good");
