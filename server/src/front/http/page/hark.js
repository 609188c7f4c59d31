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
/** A connection that has lasted so long ends the increase of the pauses. */
const STABLE_AFTER_MS = 5000;
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

/** Keeps no line beyond the end of the program. A program that wants to survive its own end
 *  passes an object with the same methods to [Hark]. A line is `{session, id, to, text, at,
 *  person}`: `at` is the time of the first attempt, or 0; `to` is null until the room of the
 *  conversation with `person` is known. `put` adds or replaces a line, or throws. */
export class MemoryOutbox {
  load() {
    return [];
  }
  put(line) {}
  remove(line) {}
}

/** A connection to a server that is opened again until it is closed. */
export class Hark {
  /** `url`: `ws://host:3000/v1/ws`. Handlers: `onmessage(message)`, `onnotice(command,
   *  fields)` for all other pushes, `ontalk(person, room)` for a conversation that `talk`
   *  has found, `onstate(state, error)` with the states `connecting`, `online`, `offline`,
   *  `denied`, `taken-over`, `deleted`, `closed`. `former` has the lines of an earlier
   *  session; an object with it only repeats them. */
  constructor(options, former = null) {
    const { url, outbox = new MemoryOutbox(), onmessage, onnotice, ontalk, onstate } = options;
    Object.assign(this, { url, outbox, onmessage, onnotice, ontalk, onstate });
    this.isFormer = Boolean(former);
    // Each object has a session of its own, so that ids of two programs never collide.
    // Sessions sort by their time.
    this.session = former?.[0].session ?? `${Date.now().toString(36)}-${randomToken()}`;
    this.nextId = 1;
    this.lines = new Map(former?.map((line) => [line.id, line]));
    /** Objects that repeat the lines of earlier sessions, one after the other. */
    this.formers = former ? [] : this.loadFormers({ url, outbox, ontalk });
    this.isFindingRoom = false;
    /** When the lines were sent first, by the clock that is never set. */
    this.startedAt = new Map();
    for (const { id, at } of former ?? []) {
      if (at) this.startedAt.set(id, performance.now() - Math.max(0, Date.now() - at));
    }
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

  loadFormers(options) {
    const sessions = new Map();
    for (const line of options.outbox.load().sort((one, other) => one.id - other.id)) {
      sessions.set(line.session, [...(sessions.get(line.session) ?? []), line]);
    }
    return [...sessions.keys()].sort().map((session) => {
      const former = new Hark(options, sessions.get(session));
      former.onidle = () => {
        former.close();
        this.formers.shift();
        this.startFormer();
        this.flush();
      };
      return former;
    });
  }

  startFormer() {
    if (!this.identity || !this.formers.length) return;
    const { user, password } = this.identity;
    // The state tells of a refusal, and this object gets the same.
    this.formers[0].attach(user, undefined, password).catch(() => {});
  }

  /** Connects as a user and keeps the connection. `device` is the name of a device; without
   *  it, or if the server has no devices, it receives as `connect` does. Resolves to the
   *  fields of the `ok`. */
  attach(user, device, password) {
    this.identity = { user, device, password };
    const answered = settler();
    this.identified = answered;
    this.retry();
    this.startFormer();
    return answered.promise;
  }

  /** Connects again without waiting. */
  retry() {
    this.drop();
    this.attempt = 0;
    this.open();
    if (this.formers[0]?.state === "offline") this.formers[0].retry();
  }

  /** Closes the connection. Unanswered lines stay in the outbox. */
  close(state = "closed", error) {
    clearTimeout(this.retryTimer);
    this.identity = null;
    for (const former of this.formers) former.close();
    this.drop();
    this.become(state, error);
  }

  /** Sends a text to a user or a room. The promise is fulfilled with the number of the
   *  stored message, or rejected with a [HarkError]. Its `line` has `isKept`: whether the
   *  outbox has it. */
  send(to, text) {
    return this.add({ to, text });
  }

  /** Sends a text to the conversation with a person, which begins with it if need be, or to
   *  the inbox of a person who has no conversations. */
  talk(person, text, room = null) {
    return this.add({ to: room, text, person });
  }

  add(parts) {
    const line = { session: this.session, id: this.nextId++, at: 0, ...parts };
    const answer = settler();
    this.lines.set(line.id, line);
    this.settlers.set(line.id, answer);
    this.keep(line);
    this.unsent.push(line);
    this.flush();
    return Object.assign(answer.promise, { line });
  }

  /** Returns the lines that have no answer yet. */
  get unanswered() {
    return [...this.formers.flatMap((former) => former.unanswered), ...this.lines.values()];
  }

  /** Returns the promise of an unanswered line, also of one that was loaded. */
  answerTo({ session, id }) {
    const all = [this, ...this.formers];
    return all.find((one) => one.session === session)?.settlers.get(id)?.promise;
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
    this.heardAt = performance.now();
    this.timer = setInterval(() => this.beat(), 1000);
    socket.onopen = () => this.greet(socket);
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.heardAt = performance.now();
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
    this.heardAt = performance.now();
    const isCurrent = () => socket === this.socket;
    try {
      const hello = await this.ask(this.otherId(), "hello", `1,${this.session}`);
      this.textBytesMax = Number(fields(hello.ok, 2)[1]) - 256;
      const entered = await this.identify();
      if (!isCurrent()) return;
      this.onlineAt = performance.now();
      this.unsent = [...this.lines.values()];
      this.inFlight = 0;
      this.become("online");
      this.identified?.resolve(fields(entered.ok, 2));
      this.identified = null;
      this.flush();
    } catch (error) {
      if (!isCurrent() || error.code === "lost") return;
      if (!isFinal(error)) {
        this.drop();
        return this.retryLater(error);
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
    if (this.isFormer) return ask("login", [user]);
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

  retryLater(error) {
    const wait = BACKOFF_MS[Math.min(this.attempt++, BACKOFF_MS.length - 1)];
    this.become("offline", error);
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
    this.onlineAt = 0;
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
    const now = performance.now();
    if (this.onlineAt && now - this.onlineAt > STABLE_AFTER_MS) this.attempt = 0;
    const isConnecting = this.socket?.readyState === 0;
    const waitsSince = isConnecting ? this.heardAt : this.pingedAt;
    if (waitsSince && now - waitsSince > ANSWER_WITHIN_MS) {
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

  get canSend() {
    const isFirst = !this.formers.some((former) => former.state !== "denied");
    return this.state === "online" && isFirst && this.inFlight < IN_FLIGHT_MAX;
  }

  /** Sends lines in the order of their ids, as many as may be in flight. */
  flush() {
    while (this.canSend && !this.isFindingRoom && this.unsent.length) {
      const [line] = this.unsent;
      if (line.to === null) return void this.findRoom(line);
      this.unsent.shift();
      if (line.at && this.ageOf(line) > REPEAT_FOR_MS) {
        const explanation = "the answer was lost; the message may have been stored";
        this.settle(line, (answer) => answer.reject(new HarkError("unknown", explanation)));
        continue;
      }
      if (!line.at) {
        line.at = Date.now();
        this.startedAt.set(line.id, performance.now());
        this.keep(line);
      }
      this.inFlight++;
      this.ask(line.id, "send", `${line.to},${line.text}`).then(
        ({ ok }) => this.answered(line, (answer) => answer.resolve(Number(ok))),
        (error) => {
          // The line stays, and is repeated over the next connection.
          if (error.code === "lost" || error.code === "unavailable") return;
          this.answered(line, (answer) => answer.reject(error));
        },
      );
    }
  }

  /** Returns the time since the first attempt: the clock may have been set back, and the
   *  other one stops while the machine sleeps. */
  ageOf({ id, at }) {
    const now = performance.now();
    return Math.max(Date.now() - at, now - (this.startedAt.get(id) ?? now));
  }

  /** Begins the conversation of the first line; the lines behind it wait. */
  async findRoom(line) {
    const { person } = line;
    const isSame = (one) => one.to === null && one.person === person;
    const direct = (to) => {
      for (const one of this.lines.values()) if (isSame(one)) one.to = to;
    };
    this.isFindingRoom = true;
    try {
      const { ok } = await this.ask(this.otherId(), "talk", person);
      direct(ok);
      this.ontalk?.(person, ok);
    } catch (error) {
      // Accounts without a password have no conversations, but an inbox.
      if (error.code === "denied" || error.code === "unknown-command") direct(person);
      else if (error.code === "unavailable") {
        this.drop();
        this.retryLater();
      } else if (error.code !== "lost") {
        this.unsent = this.unsent.filter((one) => one !== line);
        this.settle(line, (answer) => answer.reject(error));
      }
    }
    this.isFindingRoom = false;
    this.flush();
  }

  answered(line, how) {
    this.inFlight--;
    this.settle(line, how);
    this.flush();
  }

  settle(line, how) {
    const answer = this.settlers.get(line.id);
    this.lines.delete(line.id);
    this.settlers.delete(line.id);
    this.startedAt.delete(line.id);
    how(answer);
    this.outbox.remove(line);
    if (!this.lines.size) this.onidle?.();
  }

  /** A line that cannot be kept is sent all the same. */
  keep(line) {
    try {
      this.outbox.put(line);
      line.isKept = true;
    } catch {
      line.isKept = false;
    }
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
      // Not acknowledged, and nothing behind it is passed on: both come again.
      if (socket !== this.socket) return;
      this.drop();
      this.retryLater(error);
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

/** Tells whether trying again cannot help. */
function isFinal({ code = "" }) {
  return code === "denied" || code === "no-such-user" || code.startsWith("bad-");
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
