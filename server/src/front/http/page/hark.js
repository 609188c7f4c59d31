// A Hark client for browsers and Node.js 22: the protocol of docs/PROTOCOL.md over a
// WebSocket. docs/JAVASCRIPT.md describes it.
//
// Guarantees: a line given to `send` is stored once, whatever happens to the link; a
// message reaches `onmessage` once in the life of this object, and is acknowledged after
// `onmessage` has returned (or its promise is fulfilled).

/** Bytes before the payload: the id and the command. */
const HEAD_BYTES = 19;
const COMMAND_BYTES = 15;
/** Ids of sends increase; other requests use the upper half. */
const OTHER_IDS = 0x80000000;
/** The server remembers outcomes for ten minutes. */
const REPEAT_FOR_MS = 9 * 60_000;
/** Sends in flight: the server allows 1,024. */
const IN_FLIGHT_MAX = 512;
const ACK_LINGER_MS = 50;
const PING_AFTER_MS = 15_000;
const ANSWER_WITHIN_MS = 12_000;
const BACKOFF_MS = [300, 1000, 2000, 4000, 8000, 15_000];

const toUtf8 = new TextEncoder();
const fromUtf8 = new TextDecoder();

/** A refusal by the server (`code` of docs/PROTOCOL.md), or `lost`: the link broke before
 *  the answer came; or `unknown`: a send may or may not be stored. */
export class HarkError extends Error {
  constructor(code, explanation) {
    super(explanation || code);
    this.code = code;
  }
}

/** Returns a random token for a session or a device. */
export function randomToken(bytes = 16) {
  const random = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Returns the bytes of a frame. */
export function encode(id, command, payload) {
  const text = toUtf8.encode(payload);
  const bytes = new Uint8Array(HEAD_BYTES + text.length);
  new DataView(bytes.buffer).setUint32(0, id);
  bytes.set(toUtf8.encode(command).subarray(0, COMMAND_BYTES), 4);
  bytes.set(text, HEAD_BYTES);
  return bytes;
}

/** Returns the id, the command and the payload of a frame. */
export function decode(buffer) {
  const bytes = new Uint8Array(buffer);
  const command = fromUtf8.decode(bytes.subarray(4, HEAD_BYTES));
  return {
    id: new DataView(buffer).getUint32(0),
    command: command.replace(/\0+$/, ""),
    payload: fromUtf8.decode(bytes.subarray(HEAD_BYTES)),
  };
}

/** Splits a payload into so many fields; the last one takes the rest. */
export function fields(payload, count) {
  const found = [];
  let rest = payload;
  while (found.length + 1 < count) {
    const comma = rest.indexOf(",");
    if (comma < 0) break;
    found.push(rest.slice(0, comma));
    rest = rest.slice(comma + 1);
  }
  found.push(rest);
  return found;
}

function message(log, payload) {
  const [number, sender, time, text] = fields(payload, 4);
  return { log, number: Number(number), sender, time: Number(time), text };
}

/** Keeps a session and its unanswered lines in memory. A program that wants to survive its
 *  own end passes an object with the same two methods to [Hark]. A line is `{id, to, text,
 *  at}`: `at` is the time of the first attempt, or 0. */
export class MemoryOutbox {
  load() {
    return { session: randomToken(), next: 1, lines: [] };
  }
  save(session, next, lines) {}
}

/** A connection to a server that is opened again until it is closed. */
export class Hark {
  /** `url`: `ws://host:3000/v1/ws`. Handlers: `onmessage(message)`, `onnotice(command,
   *  fields)` for all other pushes, `onstate(state, error)` with the states
   *  `connecting`, `online`, `offline`, `denied`, `taken-over`, `deleted`, `closed`. */
  constructor({ url, outbox = new MemoryOutbox(), onmessage, onnotice, onstate }) {
    Object.assign(this, { url, outbox, onmessage, onnotice, onstate });
    const saved = outbox.load();
    this.session = saved.session;
    this.nextId = saved.next;
    this.lines = new Map(saved.lines.map((line) => [line.id, line]));
    this.unsent = [];
    this.inFlight = 0;
    this.identity = null;
    this.state = "closed";
    this.textBytesMax = 65_536 - 256;
    /** Whether the server has rooms and devices, as far as is known. */
    this.hasRooms = true;
    this.attempt = 0;
    this.waiting = new Map();
    this.deliveries = Promise.resolve();
    this.last = new Map();
    this.acks = new Map();
    this.nextOther = 0;
    this.settlers = new Map();
    for (const id of this.lines.keys()) this.settlers.set(id, settler());
  }

  /** Connects as a user and keeps the connection. `device` is the name of a device; without
   *  it, or if the server has no devices, it receives as `connect` does. Resolves to the
   *  fields of the `ok`. */
  attach(user, device, password) {
    this.identity = { user, device, password };
    const answered = settler();
    this.identified = answered;
    this.retry();
    return answered.promise;
  }

  /** Connects again without waiting. */
  retry() {
    this.drop();
    this.attempt = 0;
    this.open();
  }

  /** Closes the connection. Unanswered lines stay in the outbox. */
  close(state = "closed", error) {
    clearTimeout(this.retryTimer);
    this.identity = null;
    this.drop();
    this.become(state, error);
  }

  /** Sends a text to a user or a room. The promise is fulfilled with the number of the
   *  stored message, or rejected with a [HarkError]. */
  send(to, text) {
    const line = { id: this.nextId++, to, text, at: 0 };
    const answer = settler();
    this.lines.set(line.id, line);
    this.settlers.set(line.id, answer);
    this.save();
    this.unsent.push(line);
    this.flush();
    return Object.assign(answer.promise, { id: line.id });
  }

  /** Returns the lines that have no answer yet. */
  get unanswered() {
    return [...this.lines.values()];
  }

  /** Returns the promise of an unanswered line, also of one that was loaded. */
  answerTo(id) {
    return this.settlers.get(id)?.promise;
  }

  /** Sends a request. The promise is fulfilled with `{ok, parts}`: the payload of the `ok`
   *  and the messages before it. */
  request(command, ...parts) {
    if (this.state !== "online") {
      return Promise.reject(new HarkError("lost", "there is no connection"));
    }
    return this.ask(this.otherId(), command, parts.join(","));
  }

  // The connection.

  open() {
    clearTimeout(this.retryTimer);
    this.become("connecting");
    let socket;
    try {
      socket = new WebSocket(this.url, "hark.v1");
    } catch (error) {
      return this.close("closed", error);
    }
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => this.greet(socket);
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.heardAt = Date.now();
      this.pingedAt = 0;
      this.take(decode(event.data));
    };
    socket.onclose = () => {
      if (socket !== this.socket) return;
      this.drop();
      if (this.identity) this.retryLater();
    };
  }

  async greet(socket) {
    this.heardAt = Date.now();
    this.timer = setInterval(() => this.beat(), 5000);
    const isCurrent = () => socket === this.socket;
    try {
      const hello = await this.ask(this.otherId(), "hello", `1,${this.session}`);
      this.textBytesMax = Number(fields(hello.ok, 2)[1]) - 256;
      const entered = await this.identify();
      if (!isCurrent()) return;
      this.attempt = 0;
      this.unsent = [...this.lines.values()];
      this.inFlight = 0;
      this.become("online");
      this.identified?.resolve(fields(entered.ok, 2));
      this.identified = null;
      this.flush();
    } catch (error) {
      if (!isCurrent() || error.code === "lost") return;
      if (error.code === "unavailable" || error.code === "rate-limited") {
        this.drop();
        return this.retryLater();
      }
      this.identified?.reject(error);
      this.identified = null;
      this.close("denied", error);
    }
  }

  async identify() {
    const { user, device, password } = this.identity;
    const ask = (command, parts) =>
      this.ask(this.otherId(), command, [...parts, ...(password ? [password] : [])].join(","));
    if (device && this.hasRooms) {
      try {
        return await ask("attach", [user, device]);
      } catch (error) {
        if (error.code !== "unknown-command") throw error;
        this.hasRooms = false;
      }
    }
    return ask("connect", [user]);
  }

  retryLater() {
    const wait = BACKOFF_MS[Math.min(this.attempt++, BACKOFF_MS.length - 1)];
    this.become("offline");
    this.retryTimer = setTimeout(() => this.open(), wait * (0.75 + Math.random() / 2));
  }

  /** Forgets the socket. Requests without an answer are rejected; lines wait. */
  drop() {
    clearInterval(this.timer);
    clearTimeout(this.ackTimer);
    this.acks.clear();
    this.ackTimer = null;
    const socket = this.socket;
    this.socket = null;
    this.pingedAt = 0;
    socket?.close();
    const waiting = this.waiting;
    this.waiting = new Map();
    for (const { answer } of waiting.values()) {
      answer.reject(new HarkError("lost", "the connection was lost"));
    }
  }

  become(state, error) {
    if (state === this.state && !error) return;
    this.state = state;
    this.onstate?.(state, error);
  }

  /** A link that is silent is asked for a sign of life. */
  beat() {
    const now = Date.now();
    if (this.pingedAt && now - this.pingedAt > ANSWER_WITHIN_MS) {
      this.drop();
      if (this.identity) this.retryLater();
    } else if (!this.pingedAt && now - this.heardAt > PING_AFTER_MS) {
      this.pingedAt = now;
      this.ask(this.otherId(), "ping", "").catch(() => {});
    }
  }

  // Requests.

  otherId() {
    do {
      this.nextOther = (this.nextOther + 1) % (OTHER_IDS - 1);
    } while (this.waiting.has(OTHER_IDS + this.nextOther));
    return OTHER_IDS + this.nextOther;
  }

  ask(id, command, payload) {
    const answer = settler();
    this.waiting.set(id, { answer, parts: [] });
    this.write(id, command, payload);
    return answer.promise;
  }

  write(id, command, payload) {
    if (this.socket?.readyState === 1) this.socket.send(encode(id, command, payload));
  }

  /** Sends lines in the order of their ids, as many as may be in flight. */
  flush() {
    while (this.state === "online" && this.inFlight < IN_FLIGHT_MAX && this.unsent.length) {
      const line = this.unsent.shift();
      if (line.at && Date.now() - line.at > REPEAT_FOR_MS) {
        const explanation = "the answer was lost; the message may have been stored";
        this.settle(line.id, (answer) => answer.reject(new HarkError("unknown", explanation)));
        continue;
      }
      if (!line.at) {
        line.at = Date.now();
        this.save();
      }
      this.inFlight++;
      this.ask(line.id, "send", `${line.to},${line.text}`).then(
        ({ ok }) => this.answered(line.id, (answer) => answer.resolve(Number(ok))),
        (error) => {
          // The line stays, and is repeated over the next connection.
          if (error.code === "lost" || error.code === "unavailable") return;
          this.answered(line.id, (answer) => answer.reject(error));
        },
      );
    }
  }

  answered(id, how) {
    this.inFlight--;
    this.settle(id, how);
    this.flush();
  }

  settle(id, how) {
    this.lines.delete(id);
    this.save();
    const answer = this.settlers.get(id);
    this.settlers.delete(id);
    if (answer) how(answer);
  }

  save() {
    this.outbox.save(this.session, this.nextId, this.lines.values());
  }

  // What the server sends.

  take({ id, command, payload }) {
    if (id === 0) return this.takePush(command, payload);
    const waiting = this.waiting.get(id);
    if (!waiting) return;
    switch (command) {
      case "ok":
        this.waiting.delete(id);
        return waiting.answer.resolve({ ok: payload, parts: waiting.parts });
      case "notok":
      case "error":
        this.waiting.delete(id);
        return waiting.answer.reject(new HarkError(...fields(payload, 2)));
      default:
        waiting.parts.push({ command, payload });
    }
  }

  takePush(command, payload) {
    switch (command) {
      case "string":
        return this.deliver(message("", payload));
      case "said": {
        const [room, rest] = fields(payload, 2);
        return this.deliver(message(room, rest));
      }
      case "gap": {
        const [log, from, to, count] = fields(payload, 4);
        const gap = { from: Number(from), to: Number(to), count: Number(count) };
        return this.deliver({ log, number: gap.to, gap });
      }
      case "bye":
        if (payload === "taken-over" || payload === "deleted") this.close(payload);
        return;
      case "notok":
      case "error":
        // Refused before any request was read; the server closes the connection.
        return;
      default:
        this.onnotice?.(command, fields(payload, 8));
    }
  }

  /** Passes a message on, after all earlier ones, and acknowledges it. */
  deliver(message) {
    const socket = this.socket;
    this.deliveries = this.deliveries.then(async () => {
      // The server sends it again over the next connection.
      if (socket !== this.socket) return;
      if ((this.last.get(message.log) ?? -1) < message.number) {
        await this.onmessage?.(message);
        this.last.set(message.log, message.number);
      }
      if (socket !== this.socket) return;
      this.acks.set(message.log, message.number);
      this.ackTimer ??= setTimeout(() => this.acknowledge(), ACK_LINGER_MS);
    });
    this.deliveries = this.deliveries.catch((error) => {
      // Not acknowledged, and nothing behind it is passed on.
      this.close("closed", error);
    });
  }

  acknowledge() {
    this.ackTimer = null;
    for (const [log, number] of this.acks) {
      this.write(0, "ack", log ? `${number},${log}` : `${number}`);
    }
    this.acks.clear();
  }
}

function settler() {
  let settle;
  const promise = new Promise((resolve, reject) => {
    settle = { resolve, reject };
  });
  // A line that nobody waits for may be refused.
  promise.catch(() => {});
  return { promise, ...settle };
}
