// The Vercel AI SDK's own chat, without a DOM, against a served door: node front_ai_sdk.mjs PACKAGE URL. Prints what it saw, as JSON.
const [, , name, url] = process.argv;
const { AbstractChat, DefaultChatTransport } = await import(name);

class State {
  status = "ready";
  error = undefined;
  constructor(messages) { this.messages = messages; }
  pushMessage = (message) => { this.messages = [...this.messages, message]; };
  popMessage = () => { this.messages = this.messages.slice(0, -1); };
  replaceMessage = (index, message) => { this.messages = this.messages.with(index, structuredClone(message)); };
  snapshot = (value) => structuredClone(value);
}
class Chat extends AbstractChat {
  constructor({ messages = [], ...more }) { super({ ...more, state: new State(messages) }); }
}

const post = async (path, body) => (await fetch(url + path, { method: "POST", body: JSON.stringify(body) })).json();
const ran = () => post("/gate/none");
const alice = { authorization: "Bearer alice" };
const transport = (headers = alice) => new DefaultChatTransport({ api: `${url}/api/chat`, headers });
const chat = (id, more = {}) => new Chat({ id, transport: transport(), ...more });
const text = (message) => (message?.parts ?? []).filter((part) => part.type === "text").map((part) => part.text).join("|");
const last = (chat) => chat.messages.at(-1);
const until = async (seen) => { while (!seen()) await new Promise((done) => setTimeout(done, 2)); };
const chunks = async (stream) => { const found = []; for await (const chunk of stream) found.push(chunk); return found; };
const user = (id, words) => ({ id, role: "user", parts: [{ type: "text", text: words }] });
const send = (id, messages, more = {}) =>
  transport().sendMessages({ chatId: id, messages, trigger: "submit-message", ...more }).then(chunks);
const seen = {};

{ // Seen before it is over: the handler waits until we have read its first words.
  const one = chat("live");
  const sending = one.sendMessage({ text: "stream live" });
  await until(() => text(last(one)).includes("Olá"));
  const early = text(last(one)), status = one.status;
  await post("/gate/live");
  await sending;
  seen.live = { early, status, text: text(last(one)), after: one.status, error: one.error?.message };
  await one.sendMessage({ text: "echo" });
  seen.second = { ...JSON.parse(text(last(one))), messages: one.messages.length };
  await one.regenerate();
  seen.regenerated = JSON.parse(text(last(one))).said.length;
}
{
  const one = chat("tools", { onToolCall: () => { throw new Error("not ours to call"); } });
  await one.sendMessage({ text: "tools" });
  seen.tools = last(one).parts.map(({ type, toolName, state, input, output, text, providerExecuted }) =>
    ({ type, toolName, state, input, output, text, providerExecuted }));
}
{
  const one = chat("files");
  const files = [
    { type: "file", mediaType: "image/png", url: "data:image/png;base64,iVBORw0KGgo=", filename: "a.png" },
    { type: "file", mediaType: "application/pdf", url: "data:application/pdf;base64,JVBERi0=", filename: "a.pdf" },
  ];
  await one.sendMessage({ text: "echo", files });
  seen.sent = JSON.parse(text(last(one))).content;
  await one.sendMessage({ text: "files" });
  seen.files = last(one).parts.filter((part) => part.type === "file");
  await one.sendMessage({ text: "files", files: [{ type: "file", mediaType: "image/png", url: "javascript:alert(1)" }] });
  seen.scripted = one.error?.message;
}
{
  const data = [];
  const one = chat("title", { onData: (part) => data.push(part) });
  await one.sendMessage({ text: "title" });
  seen.title = { data, text: text(last(one)) };
}
for (const word of ["fail", "refuse"]) {
  const one = chat(word);
  await one.sendMessage({ text: word });
  seen[word] = { text: text(last(one)), status: one.status, error: one.error?.message };
}
{
  const messages = [user("m1", "stream twice")];
  await post("/gate/twice");
  const first = await send("twice", messages);
  const again = await send("twice", messages);
  const edited = await send("twice", [user("m1", "echo edited")]);
  const words = (found) => found.filter((chunk) => chunk.type === "text-delta").map((chunk) => chunk.delta).join("");
  const ids = (found) => found.filter((chunk) => /^(start|text-start)$/.test(chunk.type)).map((chunk) => chunk.messageId ?? chunk.id);
  seen.twice = { first: words(first), again: words(again), same: String(ids(first)) === String(ids(again)),
    ran: (await ran()).filter((message) => message === "stream twice").length, edited: JSON.parse(words(edited)).said.length };
}
{ // Left in the middle, and found again by somebody with the same chat: the turn goes on.
  const one = chat("left");
  const sending = one.sendMessage({ text: "stream left" });
  await until(() => text(last(one)).includes("Olá"));
  await one.stop();
  await sending;
  const back = chat("left", { messages: [one.messages[0]] });
  const resuming = back.resumeStream();
  await until(() => text(last(back)).includes("Olá"));
  await post("/gate/left");
  await resuming;
  const over = await transport().reconnectToStream({ chatId: "left" });
  const stranger = await transport({ authorization: "Bearer bob" }).reconnectToStream({ chatId: "left" });
  seen.left = { text: text(one.messages[1]), back: text(last(back)), status: back.status, over, stranger };
}
{
  const sending = send("canceled", [user("m1", "stream canceled")]);
  await until.call(null, () => true);
  while (!(await ran()).includes("stream canceled"));
  await post("/cancel", { message: "stream canceled" });
  seen.canceled = (await sending).map((chunk) => chunk.type);
}
{
  const one = new Chat({ id: "stranger", transport: transport({}) });
  await one.sendMessage({ text: "echo" });
  seen.stranger = { status: one.status, error: one.error?.message };
  const bob = new Chat({ id: "live", transport: transport({ authorization: "Bearer bob" }) });
  await bob.sendMessage({ text: "echo" });
  seen.bob = JSON.parse(text(last(bob)));
}
console.log(JSON.stringify(seen));
