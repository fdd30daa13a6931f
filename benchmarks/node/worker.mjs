// A process of unstorage: what ../worker.py and ../workloads/stores.py are for Python, request by request and answer by answer.
import { promises as fs, readFileSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { createStorage } from "unstorage";

console.log = console.warn = console.error; // what a library prints is no answer
const PER_GROUP = 100;
let pool = "";

// Drivers

async function storageOf({ peer, folder, url, options }) {
  const storage = createStorage({ driver: await driverOf(peer.split(":")[1], folder, url, options) });
  for (let number = 0; number < (options.mounts ?? 0); number++)
    storage.mount(`m${number}`, await driverOf("memory", folder, url, options));
  return storage;
}

async function driverOf(name, folder, url, options) {
  const load = async (driver) => (await import(`unstorage/drivers/${driver}`)).default;
  if (name === "memory") return (await load("memory"))();
  if (name === "fs-lite") return (await load("fs-lite"))({ base: join(folder, "files") });
  if (name === "fs-lite-atomic") return atomic((await load("fs-lite"))({ base: join(folder, "files") }), join(folder, "files"));
  if (name === "redis") return (await load("redis"))({ url, scanCount: 1000 });
  const { createDatabase } = await import("db0");
  const database = createDatabase((await import("db0/connectors/better-sqlite3")).default({ path: join(folder, "db0.db") }));
  await database.exec("PRAGMA journal_mode=WAL");
  await database.exec(`PRAGMA synchronous=${options.synchronous}`);
  return (await load("db0"))({ database });
}

// fs-lite writes in place. This writes beside and renames, with the calls that it makes itself.
function atomic(driver, base) {
  const made = new Set();
  let next = 0;
  driver.setItem = async (key, value) => {
    const path = join(base, key.replace(/:/g, "/"));
    const folder = dirname(path);
    if (!made.has(folder)) made.add((await fs.mkdir(folder, { recursive: true }), folder));
    const beside = `${path}.${next++}.tmp`;
    await fs.writeFile(beside, value, "utf8");
    await fs.rename(beside, path);
  };
  const { clear } = driver;
  driver.clear = async (...given) => (made.clear(), clear(...given));
  return driver;
}

// Values

function textOf(number, length) {
  const start = (number * 7919) % (pool.length - length);
  return pool.slice(start, start + length);
}

const record = (number, size) => ({
  id: number,
  name: `user ${number}`,
  tags: ["a", "b", "c"],
  score: number / 8,
  note: textOf(number, Math.max(8, size - 80)),
});

function keyOf(number, keys, mounts) {
  number %= keys;
  return mounts ? `m${number % mounts}:items:${number}` : `items:${number}`;
}

const padded = (number, width) => String(number).padStart(width, "0");
const groupKey = (number) => `group${padded(Math.floor(number / PER_GROUP), 5)}:${padded(number, 7)}`;
const numbers = (start, end) => Array.from({ length: Math.max(0, end - start) }, (_, at) => start + at);

// Work

async function timed(work, calls, watch) {
  globalThis.gc();
  const before = performance.now();
  if (watch) {
    const pause = await longestPause(work);
    const taken = Math.min(300, performance.now() - before);
    return { pause, idle: await longestPause(() => new Promise((resolve) => setTimeout(resolve, taken))) };
  }
  await work();
  return { seconds: (performance.now() - before) / 1000, calls };
}

// The longest time in milliseconds between two passes of the event loop.
async function longestPause(work) {
  let longest = 0;
  let before = performance.now();
  let running = true;
  const tick = () => {
    const now = performance.now();
    longest = Math.max(longest, now - before);
    before = now;
    if (running) setImmediate(tick);
  };
  setImmediate(tick);
  await new Promise(setImmediate);
  before = performance.now();
  longest = 0;
  await work();
  longest = Math.max(longest, performance.now() - before);
  running = false;
  return longest;
}

const setAll = (storage, items) => storage.setItems(items.map(([key, value]) => ({ key, value })));

async function grow(storage, { start, count }) {
  for (let first = start; first < count; first += 1000)
    await setAll(storage, numbers(first, Math.min(first + 1000, count)).map((number) => [groupKey(number), { n: number }]));
}

function spread(some, tasks) {
  return tasks === 1 ? () => some(0) : () => Promise.all(numbers(0, tasks).map(some));
}

const WORK = {
  grow,
  async fill(storage, { keys, size, mounts = 0 }) {
    const step = size > 100_000 ? 4 : 500;
    for (let start = 0; start < keys; start += step)
      await setAll(
        storage,
        numbers(start, Math.min(start + step, keys)).map((number) => [keyOf(number, keys, mounts), record(number, size)]),
      );
  },
  async set(storage, { calls, tasks = 1, batch = 1, size, seed, keys, mounts = 0, watch = false }) {
    const names = numbers(seed, seed + calls).map((number) => keyOf(number, keys, mounts));
    const values = numbers(seed, seed + calls).map((number) => record(number, size));
    if (batch > 1)
      return timed(
        async () => {
          for (let at = 0; at < calls; at += batch)
            await storage.setItems(names.slice(at, at + batch).map((key, step) => ({ key, value: values[at + step] })));
        },
        calls,
        watch,
      );
    const some = async (first) => {
      for (let at = first; at < calls; at += tasks) await storage.setItem(names[at], values[at]);
    };
    return timed(spread(some, tasks), calls, watch);
  },
  async get(storage, { calls, tasks = 1, batch = 1, size, seed, keys, mounts = 0, watch = false }) {
    const names = numbers(seed, seed + calls).map((number) => keyOf(number, keys, mounts));
    let found = [];
    const inBatches = async () => {
      for (let at = 0; at < calls; at += batch) found = (await storage.getItems(names.slice(at, at + batch))).map(({ value }) => value);
    };
    const some = async (first) => {
      let value;
      for (let at = first; at < calls; at += tasks) value = await storage.getItem(names[at]);
      return value;
    };
    const oneByOne = async () => {
      found = tasks === 1 ? [await some(0)] : await Promise.all(numbers(0, tasks).map(some));
    };
    const taken = await timed(batch > 1 ? inBatches : oneByOne, calls, watch);
    found.forEach((value, at) => {
      const number = seed + calls - found.length + at;
      const right = value && (value.id - number) % keys === 0 && JSON.stringify(value) === JSON.stringify(record(value.id, size));
      if (!right) throw new Error(`a get of ${keyOf(number, keys, mounts)} returned ${JSON.stringify(value)?.slice(0, 200)}`);
    });
    return taken;
  },
  async list(storage, { calls, count, seed, watch = false }) {
    let found = 0;
    const taken = await timed(
      async () => {
        for (let call = 0; call < calls; call++)
          found += (await storage.getKeys(`group${padded(((seed + call) * 7919) % (count / PER_GROUP), 5)}`)).length;
      },
      calls,
      watch,
    );
    if (found !== calls * PER_GROUP) throw new Error(`${calls} listings gave ${found} keys, not ${calls * PER_GROUP}`);
    return taken;
  },
  async list_all(storage, { count, watch = false }) {
    let found = 0;
    const taken = await timed(async () => (found = (await storage.getKeys()).length), count, watch);
    if (found < count) throw new Error(`a listing gave ${found} of ${count} keys`);
    return taken;
  },
  async clear(storage, { count, watch = false }) {
    await grow(storage, { start: 0, count });
    return timed(() => storage.clear(), count, watch);
  },
  async footprint(storage, { count }) {
    await storage.setItem("warm:up", { n: 0 });
    globalThis.gc();
    const before = process.memoryUsage().rss;
    await grow(storage, { start: 0, count });
    globalThis.gc();
    return { bytes: process.memoryUsage().rss - before, count };
  },
};

const answer = (what) => writeSync(1, `${JSON.stringify(what)}\n`);
const describe = (error) => `${error?.name ?? "Error"}: ${String(error?.message ?? error).replace(/\s+/g, " ")}`.slice(0, 400);
let storage;
for await (const line of createInterface({ input: process.stdin })) {
  const { do: name, ...given } = JSON.parse(line);
  try {
    if (!storage) {
      storage = await storageOf(given);
      pool = readFileSync(given.pool, "latin1");
      answer({ ok: {} });
    } else answer({ ok: (await WORK[name](storage, given)) ?? {} });
  } catch (error) {
    answer({ error: describe(error) });
    if (!storage) break;
  }
}
await storage?.dispose();
process.exit(0);
