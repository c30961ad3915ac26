// Serves an in-memory Cosmos DB for the tests and prints its port. Some answers of the package are replaced by those of the
// real service: a document that is not there is 404 (the package throws), a batch is atomic and within the service's limits
// (the package keeps the first half of one that fails, and does not know the partition of its operations).
"use strict";

const lib = "@vercel/cosmosdb-server/lib";
const operations = require(`${lib}/handler/_document-operations`);
const reading = require(`${lib}/handler/read-document`);
const batching = require(`${lib}/handler/batch-documents`);

const partitionOf = (req) => req.headers["x-ms-documentdb-partitionkey"];
const collectionOf = (account, where) => account.database(where.dbId).collection(where.collId);

const read = reading.default;
reading.default = (account, req, res, where) => {
  const collection = collectionOf(account, where);
  const [key] = JSON.parse(partitionOf(req) || "[null]");
  if (collection.read() && key !== null && !collection.document(where.docId, key).read()) {
    res.statusCode = 404;
    return { code: "NotFound", message: "Entity with the specified id does not exist in the system." };
  }
  return read(account, req, res, where);
};

const doers = {
  Create: operations.createOperation,
  Upsert: operations.upsertOperation,
  Replace: operations.replaceOperation,
  Delete: operations.deleteOperation,
  Read: operations.readOperation,
};

function refuse(res, statusCode, message) {
  res.statusCode = statusCode;
  return { message };
}

batching.default = async (account, req, res, where) => {
  const pieces = [];
  for await (const piece of req) pieces.push(piece);
  const body = Buffer.concat(pieces);
  if (body.length > 2 * 1024 * 1024) return refuse(res, 413, "Request size is too large");
  const batch = JSON.parse(body);
  if (batch.length > 100) return refuse(res, 400, "Batch request has more operations than what is supported.");
  const collection = collectionOf(account, where);
  if (!collection.read()) return refuse(res, 404, "there is no such container");
  // Nothing is awaited from here on: nobody else writes in between.
  const { documents } = collection;
  const before = { _data: new Map(documents._data), _index: new Map(documents._index) };
  const results = [];
  for (const operation of batch) {
    const { statusCode, body: document } = doers[operation.operationType](collection, {
      ...operation,
      partitionKey: partitionOf(req),
    });
    results.push({ statusCode, requestCharge: 1, eTag: document && document._etag, resourceBody: document });
    if (statusCode >= 400) break;
  }
  if (results[results.length - 1].statusCode < 400) return results;
  Object.assign(documents, before);
  res.statusCode = 207;
  const failed = results.length - 1;
  return batch.map((_, index) => ({ statusCode: index === failed ? results[failed].statusCode : 424, requestCharge: 0 }));
};

// The service's composite indexes serve the opposite direction as well; the package wants each direction declared.
const items = require(`${lib}/account/items`).default.prototype;
const create = items.create;
const opposite = ({ path, order }) => ({ path, order: order === "descending" ? "ascending" : "descending" });
items.create = function (data) {
  const composites = data.indexingPolicy && data.indexingPolicy.compositeIndexes;
  if (composites) composites.push(...composites.map((index) => index.map(opposite)));
  return create.call(this, data);
};

// Parsing a query takes longer than answering it, and the package parses one at each request.
const language = require("@zeit/cosmosdb-query");
const parse = language.default;
const parsed = new Map();
language.default = (text) => {
  if (!parsed.has(text)) parsed.set(text, parse(text));
  return parsed.get(text);
};

// After the above: these read the handlers when they are loaded.
const server = require(lib).createHttpServer({ keepAlive: true });
server.keepAliveTimeout = 60_000;
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => process.exit()).resume(); // never outlives the tests that started it
