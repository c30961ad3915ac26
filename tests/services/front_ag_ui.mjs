// AG-UI's own HttpAgent against a served door: node front_ag_ui.mjs PACKAGE URL. Prints what it saw, as JSON.
const [, , name, url] = process.argv;
const { HttpAgent } = await import(name);

const post = async (path, body) => (await fetch(url + path, { method: "POST", body: JSON.stringify(body) })).json();
const ran = () => post("/gate/none");
const alice = { authorization: "Bearer alice" };
const seen = {};
let made = 0;

class Seeing extends HttpAgent {
  events = [];
  constructor(threadId, headers = alice, initialMessages = []) {
    super({ url: `${url}/ag-ui`, threadId, headers, initialMessages });
    this.subscribe({ onEvent: ({ event }) => { this.events.push(event); } });
  }
  get types() { return this.events.map((event) => event.type); }
  get last() { return this.messages.at(-1); }
  async ask(content, parameters = {}) {
    this.events.length = 0;
    this.addMessage({ id: parameters.id ?? `m${++made}`, role: "user", content });
    return this.again(parameters);
  }
  async again(parameters = {}) {
    try {
      return await this.runAgent({ runId: parameters.runId });
    } catch (error) {
      return { error: error.message };
    }
  }
}
const until = async (seen) => { while (!seen()) await new Promise((done) => setTimeout(done, 2)); };
const quiet = console.error;
console.error = () => {};  // the client reports failures there, too

{ // Seen before it is over: the handler waits until we have read its first words.
  const agent = new Seeing("live");
  const asking = agent.ask("stream live");
  await until(() => agent.types.includes("TEXT_MESSAGE_CONTENT"));
  const early = agent.events.at(-1).delta;
  await post("/gate/live");
  await asking;
  seen.live = { early, text: agent.last.content, types: agent.types, role: agent.last.role };
  await agent.ask("echo");
  seen.second = { ...JSON.parse(agent.last.content), messages: agent.messages.map((message) => message.role) };
}
{
  const agent = new Seeing("tools");
  await agent.ask("tools");
  seen.tools = { types: agent.types, outcome: agent.events.at(-1).outcome, messages: agent.messages.slice(1).map((message) => (
    { role: message.role, content: message.content, calls: message.toolCalls?.map((call) => [call.function.name, call.function.arguments]) })) };
}
{
  const agent = new Seeing("files");
  await agent.ask([
    { type: "text", text: "echo" },
    { type: "image", source: { type: "data", value: "iVBORw0KGgo=", mimeType: "image/png" } },
    { type: "document", source: { type: "url", value: "https://example.com/a.pdf", mimeType: "application/pdf" } },
  ]);
  seen.sent = JSON.parse(agent.last.content).content;
  await agent.ask("files");
  seen.files = agent.messages.slice(-2).map((message) => message.content);
  const scripted = [{ type: "image", source: { type: "url", value: "javascript:alert(1)", mimeType: "image/png" } }];
  seen.scripted = (await agent.ask(scripted)).error;
}
{
  const agent = new Seeing("title");
  await agent.ask("title");
  seen.title = agent.events.filter((event) => event.type === "CUSTOM").map(({ name, value }) => ({ name, value }));
}
for (const word of ["fail", "refuse"]) {
  const agent = new Seeing(word);
  const { error } = await agent.ask(word);
  seen[word] = { text: agent.last.content, types: agent.types, told: agent.events.at(-1).message, error };
}
{
  await post("/gate/twice");
  const one = new Seeing("twice"), other = new Seeing("twice");
  await one.ask("stream twice", { id: "same", runId: "run-1" });
  await other.ask("stream twice", { id: "same", runId: "run-1" });
  const times = async () => (await ran()).filter((message) => message === "stream twice").length;
  seen.twice = { first: one.last, again: other.last, ran: await times() };
  await other.again();
  seen.twice.more = await times();
}
{
  const agent = new Seeing("left");
  const asking = agent.ask("stream left", { id: "left", runId: "left" });
  await until(() => agent.types.includes("TEXT_MESSAGE_CONTENT"));
  agent.abortRun();
  await asking;
  // The same request again finds the turn that is still running, from its beginning.
  const back = new Seeing("left");
  const coming = back.ask("stream left", { id: "left", runId: "left" });
  await until(() => back.types.includes("TEXT_MESSAGE_CONTENT"));
  await post("/gate/left");
  await coming;
  seen.left = { text: agent.last.content, back: back.last.content, ran: (await ran()).filter((message) => message === "stream left").length };
}
{
  const agent = new Seeing("canceled");
  const asking = agent.ask("stream canceled");
  await until(() => agent.types.includes("TEXT_MESSAGE_CONTENT"));
  await post("/cancel", { message: "stream canceled" });
  await asking;
  seen.canceled = { types: agent.types, outcome: agent.events.at(-1).outcome };
}
{
  seen.stranger = (await new Seeing("live", {}).ask("echo")).error;
  const bob = new Seeing("live", { authorization: "Bearer bob" });
  await bob.ask("echo");
  seen.bob = JSON.parse(bob.last.content);
}
console.error = quiet;
console.log(JSON.stringify(seen));
