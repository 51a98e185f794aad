// The API of this very origin: models, answers as they come, votes.

const key = {
  get: () => sessionStorage.getItem("key") ?? "",
  set: (value) => sessionStorage.setItem("key", value),
};
export { key };

function headers() {
  const made = { "content-type": "application/json" };
  if (key.get()) made.authorization = `Bearer ${key.get()}`;
  return made;
}

async function checked(reply) {
  if (reply.ok) return reply;
  const said = await reply.json().catch(() => null);
  const error = new Error(said?.error?.message ?? `the server answered ${reply.status}`);
  error.status = reply.status;
  throw error;
}

export async function models() {
  const reply = await checked(await fetch("/v1/models", { headers: headers() }));
  return (await reply.json()).data.map((model) => model.id);
}

export async function vote(body) {
  await checked(await fetch("/votes", { method: "POST", headers: headers(), body: JSON.stringify(body) }));
}

// Yields pieces of text; ends when the answer does, throws when it breaks off.
export async function* answer(request, signal) {
  const body = JSON.stringify({ ...request, stream: true });
  const reply = await checked(
    await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body, signal }),
  );
  let rest = "";
  for await (const piece of pieces(reply.body)) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      for (const choice of event.choices) yield choice.delta?.content ?? "";
    }
  }
  throw new Error("the answer broke off");
}

async function* pieces(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
