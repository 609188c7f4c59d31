// The page: conversations over a [Hark] connection. Texts are only ever set as text.

const PAGE_MESSAGES = 50;
/** Messages of a conversation in memory; the server has the rest. */
const LOADED_MAX = 2000;
/** Inbox messages that this browser keeps: the server deletes them once acknowledged. */
const MAIL_MAX = 500;
const MAIL_CHARS_MAX = 1_000_000;
/** How long another tab may take to stop. */
const HANDOVER_MS = 3000;
/** How long the last writes of this tab may take to reach other tabs. */
const SETTLE_MS = 100;
const GROUP_MS = 5 * 60_000;
const SEEN_LINGER_MS = 400;

const $ = (id) => document.getElementById(id);

// What this browser keeps, by account: no log-in touches what belongs to another one. Each
// line and each message has a key of its own, so that no tab overwrites those of another.
// No name has a comma.

const kept = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(`hark.${key}`));
    } catch {
      return null;
    }
  },
  /** Returns whether the storage has room for it. */
  set(key, value) {
    return this.setText(`hark.${key}`, JSON.stringify(value));
  },
  setText(key, text) {
    try {
      localStorage.setItem(key, text);
      return true;
    } catch {
      return false;
    }
  },
  keys(prefix) {
    return Object.keys(localStorage).filter((key) => key.startsWith(prefix));
  },
  /** Forgets an account. */
  wipe(user) {
    const own = [...this.keys(`hark.mail.${user},`), ...this.keys(`hark.line.${user},`)];
    for (const key of [...own, `hark.device.${user}`, "hark.account", "hark.notify"]) {
      localStorage.removeItem(key);
    }
  },
};

/** Unanswered lines, so that they survive a reload and are sent once. */
class Outbox {
  constructor(user) {
    this.prefix = `hark.line.${user},`;
  }
  load() {
    return kept.keys(this.prefix).map((key) => JSON.parse(localStorage.getItem(key)));
  }
  put({ session, id, to, text, at, person }) {
    const key = `${this.prefix}${session},${id}`;
    if (kept.setText(key, JSON.stringify({ session, id, to, text, at, person }))) return;
    // A former state without the time of the first attempt would be repeated too late.
    localStorage.removeItem(key);
    throw new Error("the storage of this browser is full");
  }
  remove({ session, id }) {
    localStorage.removeItem(`${this.prefix}${session},${id}`);
  }
}

/** The latest messages of the inbox, and those sent to one. A value is not JSON, which
 *  needs six characters for a control character. */
class Mail {
  constructor(user) {
    this.prefix = `hark.mail.${user},`;
    this.chars = 0;
    this.messages = kept.keys(this.prefix).map((key) => {
      const value = localStorage.getItem(key);
      const [to, number] = fields(key.slice(this.prefix.length), 2);
      const [sender, time, text] = fields(value, 3);
      this.chars += value.length;
      const log = to ? `to ${to}` : "";
      return { key, size: value.length, log, to: to || undefined, number: Number(number), sender, time: Number(time), text };
    });
    this.messages.sort((one, other) => one.time - other.time || one.number - other.number);
  }
  keyOf({ to, number }) {
    return `${this.prefix}${to ?? ""},${number}`;
  }
  has(message) {
    return localStorage.getItem(this.keyOf(message)) !== null;
  }
  /** Keeps a message in place of the oldest ones. Returns false if the storage, which other
   *  pages may share, has no room for it even so. */
  keep(message) {
    const key = this.keyOf(message);
    const value = `${message.sender},${message.time},${message.text}`;
    const isFull = () => this.messages.length >= MAIL_MAX || this.chars + value.length > MAIL_CHARS_MAX;
    while (this.messages.length && isFull()) this.dropOldest();
    while (!kept.setText(key, value)) {
      if (this.chars < value.length) return false;
      this.dropOldest();
    }
    this.messages.push({ ...message, key, size: value.length });
    this.chars += value.length;
    return true;
  }
  dropOldest() {
    const { key, size } = this.messages.shift();
    localStorage.removeItem(key);
    this.chars -= size;
  }
}

// The state of the page.

let account = kept.get("account");
let hark = null;
let current = null;
/** Conversations by key: the name of a room, `@` and the name of a person, or `@`. */
const conversations = new Map();
/** Keys of conversations by the name of their room. */
const keys = new Map();
/** Open rooms of which the user is no member. */
let openRooms = [];
let mail = null;

class Conversation {
  constructor(key) {
    this.key = key;
    this.room = key.startsWith("#") ? key : null;
    this.messages = [];
    this.known = new Map();
    this.lines = [];
    this.unread = 0;
    this.last = 0;
    this.oldest = 0;
    this.hasMore = Boolean(this.room);
    this.newAfter = null;
    this.draft = "";
    this.activity = 0;
  }

  get title() {
    if (this.key === "@") return "(anonymous)";
    return this.key.startsWith("@") ? this.key.slice(1) : this.key;
  }

  /** Adds a message in its place. Returns `known`, `last` or `earlier`. */
  add(message) {
    const id = `${message.log} ${message.number}`;
    const known = this.known.get(id);
    if (known) {
      Object.assign(known, message);
      return "known";
    }
    this.known.set(id, message);
    this.activity = Math.max(this.activity, message.time || 0);
    let at = this.messages.length;
    while (at > 0 && isBefore(message, this.messages[at - 1])) at--;
    this.messages.splice(at, 0, message);
    return at === this.messages.length - 1 ? "last" : "earlier";
  }

  /** Forgets the oldest messages, which can be loaded again. */
  trim() {
    while (this.room && this.messages.length > LOADED_MAX) {
      const message = this.messages.shift();
      this.known.delete(`${message.log} ${message.number}`);
      this.hasMore = true;
      if (message.log === this.room) this.oldest = message.number + 1;
    }
  }
}

function isBefore(one, other) {
  if (one.log === other.log) return one.number < other.number;
  return one.time < other.time;
}

function conversation(key) {
  let found = conversations.get(key);
  if (!found) {
    found = new Conversation(key);
    conversations.set(key, found);
  }
  return found;
}

function ofRoom(room) {
  return conversation(keys.get(room) ?? room);
}

function ofPerson(name) {
  return conversation(`@${name}`);
}

// Entering. One tab at a time has the connection and what this browser keeps.

const tabs = new BroadcastChannel("hark");
/** This tab's claim to the page; its signal is aborted at its end. */
let claim = null;

tabs.onmessage = () => {
  if (claim) yieldPage();
};

function yieldPage() {
  leavePage();
  showElsewhere("Another tab of this browser has taken over.");
}

/** Waits until no other tab writes. Returns false if a later one has taken over. */
async function takeOver() {
  const { signal } = (claim = new AbortController());
  tabs.postMessage("taken");
  // Only a secure context has locks.
  if (navigator.locks) await hold(signal, { signal: AbortSignal.timeout(HANDOVER_MS) });
  else await pause(2 * SETTLE_MS);
  return !signal.aborted;
}

/** Resolves when this tab has the lock, which it holds until its claim ends. */
function hold(signal, options) {
  return new Promise((resolve) => {
    const held = navigator.locks.request("hark", options, async () => {
      resolve();
      if (!signal.aborted) await new Promise((end) => (signal.onabort = end));
      await pause(SETTLE_MS);
    });
    held.catch(({ name }) => {
      // A frozen tab does not answer; when it goes on, it learns that its lock is stolen.
      if (signal.aborted) resolve();
      else if (name === "TimeoutError") resolve(hold(signal, { steal: true }));
      else yieldPage();
    });
  });
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function enter(password, isNew) {
  leavePage();
  if (!(await takeOver())) return;
  mail = new Mail(account.user);
  const isSocketSafe = location.protocol === "https:";
  const mine = new Hark({
    url: `${isSocketSafe ? "wss" : "ws"}://${location.host}/v1/ws`,
    outbox: new Outbox(account.user),
    onmessage: takeMessage,
    onnotice: takeNotice,
    ontalk: learnRoom,
    onstate: (state, error) => mine === hark && showState(state, error),
  });
  hark = mine;
  const attached = mine.attach(account.user, account.device, password);
  // What this browser keeps is shown even without a connection.
  if (!isNew) showApp();
  try {
    await attached;
    if (isNew && password) {
      account.hasPassword = true;
      const token = await mine.request("token", account.device, "all").catch(() => null);
      if (token) account.token = token.ok;
    }
    if (mine !== hark) return;
    kept.set("account", account);
    kept.set(`device.${account.user}`, account.device);
    if (isNew) showApp();
  } catch (error) {
    if (mine !== hark) return;
    leavePage();
    showLogin(explain(error));
  }
}

/** Ends the connection and forgets what is on screen. */
function leavePage() {
  const former = hark;
  hark = null;
  former?.close();
  claim?.abort();
  claim = null;
  conversations.clear();
  keys.clear();
  items.clear();
  openRooms = [];
  current = null;
}

function showLogin(error = "") {
  $("app").hidden = true;
  $("entry").hidden = false;
  $("server").textContent = location.host;
  $("entry-error").textContent = error;
  if (account) $("user").value = account.user;
  (account ? $("password") : $("user")).focus();
}

$("login").onsubmit = (event) => {
  event.preventDefault();
  const user = $("user").value;
  account = { user, device: kept.get(`device.${user}`) ?? `web-${randomToken(4)}` };
  enter($("password").value, true);
};

$("create").onclick = async () => {
  if (!$("login").reportValidity()) return;
  const name = encodeURIComponent($("user").value);
  try {
    const answer = await fetch(`/v1/users/${name}`, { method: "PUT", body: $("password").value });
    if (!answer.ok) {
      const { explanation } = await answer.json();
      $("entry-error").textContent = explanation;
      return;
    }
  } catch {
    $("entry-error").textContent = "The server cannot be reached.";
    return;
  }
  $("login").requestSubmit();
};

function showElsewhere(text) {
  $("elsewhere-text").textContent = text;
  if (!$("elsewhere-dialog").open) $("elsewhere-dialog").showModal();
}

$("elsewhere-dialog").oncancel = (event) => event.preventDefault();
$("use-here").onclick = () => location.reload();

async function showApp() {
  $("entry").hidden = true;
  $("app").hidden = false;
  $("password").value = "";
  $("me").textContent = account.user;
  for (const message of mail.messages) ofPerson(message.to ?? message.sender).add(message);
  for (const line of hark.unanswered) addLine(line);
  await refresh();
  if (!current && matchMedia("(min-width: 641px)").matches) {
    const first = sorted()[0];
    if (first) open(first.key);
  }
}

// What the server sends.

function takeMessage(message) {
  if (message.gap) return takeGap(message);
  const isMine = message.sender === account.user;
  if (message.log) {
    // Joined elsewhere a moment ago.
    if (!keys.has(message.log) && !conversations.has(message.log)) refreshSoon();
    const chat = ofRoom(message.log);
    chat.last = Math.max(chat.last, message.number);
    show(chat, message, isMine);
  } else if (!mail.has(message)) {
    // Kept before it is acknowledged.
    const chat = ofPerson(message.sender);
    keep(chat, message);
    show(chat, message, false);
  }
}

function keep(chat, message) {
  if (mail.keep(message)) return;
  const text = "The storage of this browser is full: the next message is gone after a reload";
  const { number, time } = message;
  showAdded(chat, { log: "note", number, time, text, isGap: true });
}

function takeGap({ log, number, gap }) {
  const chat = log ? ofRoom(log) : conversation("@");
  const count = gap.count === 1 ? "One message was" : `${gap.count} messages were`;
  const text = `${count} removed by the server before this browser got them`;
  showAdded(chat, { log: `${log} gap`, number, time: Date.now(), text, isGap: true });
}

/** Adds a message, and draws it if its conversation is open. Returns whether it is new. */
function showAdded(chat, message) {
  const place = chat.add(message);
  if (chat === current && place === "last") append(message);
  if (chat === current && place === "earlier") draw();
  return place !== "known";
}

function show(chat, message, isMine) {
  if (!showAdded(chat, message)) return;
  const isRead = chat === current && !document.hidden;
  if (isMine || isRead) {
    if (chat.room && isRead) markSeen(chat);
  } else {
    chat.unread++;
    notify(chat, message);
  }
  chat.trim();
  drawList();
}

function takeNotice(command, [room]) {
  switch (command) {
    case "left": {
      const chat = conversations.get(keys.get(room) ?? room);
      if (!chat) return;
      chat.room = chat.key.startsWith("@") ? null : chat.room;
      keys.delete(room);
      if (chat.key.startsWith("#")) conversations.delete(chat.key);
      if (chat === current) close();
      return drawList();
    }
    case "joined":
    case "seen":
      return refreshSoon();
  }
}

let refreshTimer = null;
function refreshSoon() {
  refreshTimer ??= setTimeout(() => {
    refreshTimer = null;
    refresh();
  }, 300);
}

/** Asks for the rooms and their unread counts. */
async function refresh() {
  if (!hark?.hasRooms || hark.state !== "online") return drawList();
  try {
    const { parts } = await hark.request("rooms");
    openRooms = [];
    for (const { payload } of parts) {
      const [name, mode, members, unread, last] = fields(payload, 5);
      if (unread === "") {
        openRooms.push(name);
        continue;
      }
      if (name.startsWith("#=")) await learnPartner(name);
      const chat = ofRoom(name);
      Object.assign(chat, { room: name, mode, members: Number(members), last: Number(last) });
      if (!chat.messages.length) chat.hasMore = true;
      chat.unread = chat === current && !document.hidden ? 0 : Number(unread);
    }
  } catch (error) {
    if (error.code !== "lost") $("state").textContent = explain(error);
  }
  drawList();
}

/** The name of a conversation of two does not tell the other person. */
async function learnPartner(room) {
  if (keys.has(room)) return;
  const { parts } = await hark.request("members", room);
  const names = parts.flatMap(({ payload }) => payload.split(","));
  const other = names.find((name) => name && name !== account.user);
  if (other) learnRoom(other, room);
}

function learnRoom(person, room) {
  if (keys.has(room)) return;
  keys.set(room, `@${person}`);
  const stray = conversations.get(room);
  const chat = ofPerson(person);
  chat.room = room;
  chat.hasMore = true;
  if (stray) {
    conversations.delete(room);
    for (const message of stray.messages) chat.add(message);
    if (current === stray) open(chat.key);
  }
}

// Sending.

function addLine(line) {
  const { text, person } = line;
  if (person && line.to?.startsWith("#")) learnRoom(person, line.to);
  const chat = person || !line.to.startsWith("#") ? ofPerson(person ?? line.to) : ofRoom(line.to);
  const shown = { line, text, fate: "pending" };
  chat.lines.push(shown);
  if (chat === current) draw();
  hark.answerTo(line)?.then(
    (number) => {
      const { to } = line;
      chat.lines = chat.lines.filter((one) => one !== shown);
      const message = { log: to, number, sender: account.user, time: Date.now(), text };
      if (!to.startsWith("#")) {
        message.log = `to ${to}`;
        message.to = to;
        keep(chat, message);
      }
      chat.add(message);
      if (chat === current) draw();
      drawList();
    },
    (error) => {
      shown.fate = error.code === "unknown" ? "unknown" : "refused";
      shown.reason = explain(error);
      if (chat === current) draw();
    },
  );
}

/** Gives a text to the outbox. Returns the reason if it is too long. */
function sendText(chat, text) {
  if (new TextEncoder().encode(text).length > hark.textBytesMax) {
    return `A message may have at most ${hark.textBytesMax} bytes on this server.`;
  }
  const person = chat.key.startsWith("@") ? chat.key.slice(1) : null;
  const isTalk = person && hark.hasRooms;
  const sent = isTalk ? hark.talk(person, text, chat.room) : hark.send(chat.room ?? person, text);
  addLine(sent.line);
  return "";
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  const input = $("text");
  if (!current || !input.value.trim()) return;
  const error = sendText(current, input.value);
  $("composer-error").textContent = error;
  if (error) return;
  input.value = "";
  current.newAfter = null;
  scrollDown();
};

$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
};

let seenTimer = null;
function markSeen(chat) {
  clearTimeout(seenTimer);
  chat.unread = 0;
  seenTimer = setTimeout(() => {
    if (chat.last) hark?.request("seen", chat.room, chat.last).catch(() => {});
  }, SEEN_LINGER_MS);
}

// Conversations.

async function open(key) {
  const chat = conversation(key);
  if (current) {
    current.draft = $("text").value;
    current.newAfter = null;
  }
  current = chat;
  $("text").value = chat.draft;
  $("composer-error").textContent = "";
  $("title").textContent = chat.title;
  $("details").hidden = !key.startsWith("#");
  $("composer").hidden = key === "@";
  $("app").classList.add("open");
  const unread = chat.unread;
  if (chat.room && chat.messages.filter((one) => one.log === chat.room).length < PAGE_MESSAGES) {
    await loadOlder(chat);
  }
  if (chat !== current) return;
  if (unread) chat.newAfter = chat.messages.at(-unread - 1) ?? "start";
  chat.unread = 0;
  if (chat.room) markSeen(chat);
  draw();
  drawList();
  scrollDown();
  if (matchMedia("(pointer: fine)").matches) $("text").focus();
}

function close() {
  current = null;
  $("app").classList.remove("open");
  $("title").textContent = "";
  $("messages").replaceChildren();
  $("composer").hidden = true;
  $("details").hidden = true;
  drawList();
}

async function loadOlder(chat) {
  if (!chat.hasMore || chat.isLoading || hark?.state !== "online") return;
  chat.isLoading = true;
  try {
    const { ok, parts } = await hark.request("history", chat.room, chat.oldest, PAGE_MESSAGES);
    for (const { payload } of parts) {
      const [number, sender, time, text] = fields(payload, 4);
      chat.add({ log: chat.room, number: Number(number), sender, time: Number(time), text });
      chat.oldest = chat.oldest ? Math.min(chat.oldest, Number(number)) : Number(number);
    }
    const oldestHeld = Number(fields(ok, 2)[1]);
    chat.hasMore = parts.length > 0 && chat.oldest > oldestHeld;
  } catch (error) {
    if (error.code !== "lost") chat.hasMore = false;
  }
  chat.isLoading = false;
}

$("messages").onscroll = async () => {
  const pane = $("messages");
  $("newer").hidden = isAtEnd();
  const chat = current;
  if (!chat || pane.scrollTop > 80 || !chat.hasMore || chat.isLoading) return;
  const fromEnd = pane.scrollHeight - pane.scrollTop;
  await loadOlder(chat);
  if (chat !== current) return;
  draw();
  pane.scrollTop = pane.scrollHeight - fromEnd;
};

$("newer").onclick = scrollDown;

function isAtEnd() {
  const pane = $("messages");
  return pane.scrollHeight - pane.scrollTop - pane.clientHeight < 60;
}

function scrollDown() {
  const pane = $("messages");
  pane.scrollTop = pane.scrollHeight;
  $("newer").hidden = true;
}

function sorted() {
  const all = [...conversations.values()];
  const when = (chat) => Math.max(chat.activity, chat.lines.length ? Date.now() : 0);
  return all.sort((one, other) => when(other) - when(one) || one.title.localeCompare(other.title));
}

// Drawing.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

let isListDue = false;

/** Draws the list before the next frame of the screen. */
function drawList() {
  if (isListDue) return;
  isListDue = true;
  requestAnimationFrame(() => {
    isListDue = false;
    drawListNow();
  });
  const unread = [...conversations.values()].reduce((sum, chat) => sum + chat.unread, 0);
  document.title = unread ? `(${unread}) Hark` : "Hark";
}

/** Items are kept, so that a click or the focus on one is not lost. */
const items = new Map();
const openHeading = element("li", "heading", "Open rooms");

function drawListNow() {
  const list = sorted().map((chat) => listItem(chat.key, chat));
  if (openRooms.length) list.push(openHeading);
  for (const room of openRooms) list.push(listItem(room));
  const drawn = $("conversations").children;
  if (drawn.length === list.length && list.every((item, at) => item === drawn[at])) return;
  const focused = document.activeElement;
  $("conversations").replaceChildren(...list);
  if (focused?.isConnected) focused.focus();
}

/** Returns the item of a conversation, or of a room that may be joined. */
function listItem(key, chat) {
  let item = items.get(key);
  if (!item) {
    item = element("li");
    const button = element("button");
    button.append(element("span"), element("span", "count"));
    button.onclick = () => (conversations.has(key) ? open(key) : joinRoom(key));
    item.append(button);
    items.set(key, item);
  }
  const button = item.firstChild;
  const [title, count] = button.children;
  title.textContent = chat?.title ?? key;
  const unread = chat?.unread ?? 0;
  count.hidden = !unread;
  count.textContent = unread > 999 ? "999+" : unread;
  count.setAttribute("aria-label", `${unread} unread`);
  button.setAttribute("aria-current", String(Boolean(chat) && chat === current));
  return item;
}

function draw() {
  const pane = $("messages");
  const stick = isAtEnd();
  pane.replaceChildren();
  lastDrawn = null;
  if (!current) return;
  if (current.newAfter === "start") pane.append(element("div", "new", "New"));
  for (const message of current.messages) {
    drawMessage(message);
    if (message === current.newAfter) pane.append(element("div", "new", "New"));
  }
  for (const line of current.lines) drawLine(line);
  if (!current.messages.length && !current.lines.length) {
    pane.append(element("p", "quiet", "No messages yet."));
  }
  if (stick) scrollDown();
}

function append(message) {
  if (current.lines.length || current.messages.length === 1) return draw();
  const stick = isAtEnd();
  drawMessage(message);
  if (stick) scrollDown();
  else $("newer").hidden = false;
}

let lastDrawn = null;

function drawMessage(message) {
  const pane = $("messages");
  if (message.isGap) {
    pane.append(element("div", "gap", message.text));
    lastDrawn = null;
    return;
  }
  const date = new Date(message.time);
  const day = date.toLocaleDateString(undefined, { dateStyle: "full" });
  if (lastDrawn?.day !== day) pane.append(element("div", "day", day));
  const isGrouped =
    lastDrawn?.day === day &&
    lastDrawn.sender === message.sender &&
    message.time - lastDrawn.time < GROUP_MS;
  const isMine = message.sender === account.user;
  const block = element("div", isMine ? "message mine" : "message");
  if (!isGrouped) {
    const name = element("span", "name", message.sender || "(anonymous)");
    name.style.setProperty("--hue", hue(message.sender));
    const time = element("time", "", date.toLocaleTimeString(undefined, { timeStyle: "short" }));
    time.dateTime = date.toISOString();
    block.append(name, time);
  }
  block.append(textElement(message.text));
  pane.append(block);
  lastDrawn = { day, sender: message.sender, time: message.time };
}

function drawLine(line) {
  const block = element("div", `message mine ${line.fate}`);
  block.append(textElement(line.text));
  const fate = element("div", "fate");
  if (line.fate === "pending") {
    fate.textContent = hark?.state === "online" ? "sending…" : "waits for the connection";
    if (line.line.isKept === false) fate.append("; the storage is full: lost in a reload");
  } else {
    fate.textContent = line.fate === "refused" ? `not sent: ${line.reason} ` : `${line.reason} `;
    const edit = element("button", "", "Edit");
    edit.onclick = () => {
      current.lines = current.lines.filter((one) => one !== line);
      $("text").value = line.text;
      draw();
      $("text").focus();
    };
    fate.append(edit);
  }
  block.append(fate);
  $("messages").append(block);
  lastDrawn = null;
}

/** Returns a text with its web addresses as links. */
function textElement(text) {
  const whole = element("div", "text");
  let from = 0;
  for (const match of text.matchAll(/https?:\/\/[^\s<>"]+[^\s<>".,;:!?)\]}']/g)) {
    whole.append(text.slice(from, match.index));
    const link = element("a", "", match[0]);
    link.href = match[0];
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    whole.append(link);
    from = match.index + match[0].length;
  }
  whole.append(text.slice(from));
  return whole;
}

function hue(name) {
  let hash = 0;
  for (const char of name) hash = (hash * 31 + char.codePointAt(0)) % 360;
  return hash;
}

function showState(state, error) {
  const lines = hark?.unanswered.length ?? 0;
  const waiting = lines ? ` ${lines} unsent.` : "";
  const offline = `${error ? explain(error) : "Offline"}, trying again.${waiting}`;
  const texts = { connecting: "Connecting…", offline };
  $("state").textContent = texts[state] ?? "";
  $("state").classList.toggle("trouble", state === "offline");
  if (state === "offline" && !$("entry").hidden) $("entry-error").textContent = offline;
  if (state === "online") refresh();
  if (state === "taken-over") showElsewhere("This device has been attached elsewhere.");
  if (state === "deleted") {
    leavePage();
    kept.wipe(account.user);
    account = null;
    showLogin("The account was deleted.");
  }
  if (state === "denied" && !$("app").hidden) {
    leavePage();
    showLogin(explain(error));
  }
  if (state === "closed" && error) $("state").textContent = `Stopped: ${error.message}`;
  if (current?.lines.length) draw();
}

function explain(error) {
  const text = error.message || error.code || "failed";
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function notify(chat, message) {
  if (!kept.get("notify") || !document.hidden || Notification.permission !== "granted") return;
  const body = chat.key.startsWith("#") ? `${message.sender}: ${message.text}` : message.text;
  const shown = new Notification(chat.title, { body: body.slice(0, 200), tag: chat.key });
  shown.onclick = () => {
    window.focus();
    open(chat.key);
  };
}

document.onvisibilitychange = () => {
  if (document.hidden || !current || !hark) return;
  current.unread = 0;
  if (current.room) markSeen(current);
  drawList();
};

window.addEventListener("online", () => {
  if (hark?.state === "offline") hark.retry();
});

// Dialogs.

for (const button of document.querySelectorAll("[data-close]")) {
  button.onclick = () => button.closest("dialog").close();
}

$("back").onclick = close;
$("start").onclick = async () => {
  $("start-error").textContent = "";
  $("start-dialog").showModal();
  $("target").select();
  const { parts } = await hark.request("list").catch(() => ({ parts: [] }));
  const names = parts.flatMap(({ payload }) => payload.split(",")).concat(openRooms);
  $("known").replaceChildren(
    ...names.slice(0, 1000).map((name) => Object.assign(element("option"), { value: name })),
  );
};

$("start-form").onsubmit = async (event) => {
  event.preventDefault();
  const target = $("target").value.trim();
  try {
    if (target.startsWith("#")) await openRoom(target, $("mode").value);
    else if (target === account.user) throw new Error("That is you.");
    else await openPerson(target);
    $("start-dialog").close();
  } catch (error) {
    $("start-error").textContent = explain(error);
  }
};

async function openPerson(name) {
  if (hark.hasRooms) {
    try {
      const { ok } = await hark.request("talk", name);
      keys.set(ok, `@${name}`);
      Object.assign(ofPerson(name), { room: ok, hasMore: true });
    } catch (error) {
      if (error.code !== "denied") throw error;
    }
  }
  await open(`@${name}`);
}

/** Joins a room, and creates it if there is none. */
async function openRoom(name, mode) {
  try {
    await hark.request("join", name);
  } catch (error) {
    if (error.code !== "no-such-user") throw error;
    await hark.request("room", name, mode);
  }
  await refresh();
  await open(name);
}

async function joinRoom(room) {
  try {
    await openRoom(room, "open");
  } catch (error) {
    $("state").textContent = explain(error);
  }
}

$("details").onclick = showRoom;

async function showRoom() {
  const { room } = current;
  $("room-title").textContent = room;
  $("room-error").textContent = "";
  if (!$("room-dialog").open) $("room-dialog").showModal();
  try {
    const names = [];
    for (let after = ""; after !== null; ) {
      const { ok, parts } = await hark.request("members", ...(after ? [room, after] : [room]));
      names.push(...parts.flatMap(({ payload }) => payload.split(",")).filter(Boolean));
      after = ok.endsWith("truncated") && names.length < 1000 ? names.at(-1) : null;
    }
    $("members").replaceChildren(...names.map((name) => memberItem(room, name)));
  } catch (error) {
    $("room-error").textContent = explain(error);
  }
}

function memberItem(room, name) {
  const item = element("li");
  item.append(element("span", "", name));
  if (name !== account.user) {
    item.append(
      roomButton("Make owner", `Make ${name} an owner`, "own", room, name),
      roomButton("Expel", `Expel ${name}`, "expel", room, name),
    );
  }
  return item;
}

function roomButton(text, label, command, room, name) {
  const button = element("button", "", text);
  button.setAttribute("aria-label", label);
  button.onclick = () => inRoom(command, room, name);
  return button;
}

async function inRoom(...request) {
  try {
    await hark.request(...request);
    await showRoom();
  } catch (error) {
    $("room-error").textContent = explain(error);
  }
}

$("invite-form").onsubmit = async (event) => {
  event.preventDefault();
  const { room } = current;
  const invitee = $("invitee").value.trim();
  try {
    await hark.request("invite", room, invitee);
    const text = `${account.user} has invited you to ${room}`;
    sendText(ofPerson(invitee), text);
    $("invitee").value = "";
    $("room-error").textContent = "";
  } catch (error) {
    $("room-error").textContent = explain(error);
  }
};

$("leave").onclick = async () => {
  const { room, key } = current;
  try {
    await hark.request("leave", room);
  } catch (error) {
    // After a repeat, the room may be gone or hidden.
    if (error.code !== "no-such-user") return void ($("room-error").textContent = explain(error));
  }
  $("room-dialog").close();
  conversations.delete(key);
  close();
  refresh();
};

$("browser").onclick = () => {
  const facts = [
    `your name, ${account.user}, and the name of this device, ${account.device}`,
    account.token ? "a token that logs you in, not your password" : "no password",
    `${hark.unanswered.length} lines that are not sent yet`,
    `the latest ${mail.messages.length} direct messages without a conversation: the only copies`,
  ];
  const others = kept.keys("hark.mail.").concat(kept.keys("hark.line."));
  const names = new Set(others.map((key) => key.split(",")[0].slice("hark.mail.".length)));
  names.delete(account.user);
  if (names.size) facts.push(`messages and lines of ${[...names].join(", ")}, until their log-out here`);
  $("kept").replaceChildren(...facts.map((fact) => element("li", "", fact)));
  $("notify").checked = Boolean(kept.get("notify"));
  $("logout-user").value = account.user;
  $("logout-password-part").hidden = !account.token;
  $("browser-error").textContent = "";
  $("browser-dialog").showModal();
};

$("notify").onchange = async () => {
  const isWanted = $("notify").checked && (await Notification.requestPermission()) === "granted";
  $("notify").checked = isWanted;
  kept.set("notify", isWanted);
};

$("logout-form").onsubmit = async (event) => {
  event.preventDefault();
  const password = $("logout-password").value;
  try {
    if (password) await hark.request("login", account.user, password);
    if (password || !account.token) {
      await hark.request("forget", account.device);
      if (account.token) await hark.request("revoke", account.device);
    }
  } catch (error) {
    if (error.code === "denied" && password) {
      $("browser-error").textContent = explain(error);
      return;
    }
  }
  leavePage();
  kept.wipe(account.user);
  location.reload();
};

document.addEventListener("keydown", (event) => {
  if ($("app").hidden || document.querySelector("dialog[open]")) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "k") {
    event.preventDefault();
    $("start").click();
  } else if (event.altKey && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    event.preventDefault();
    const all = sorted();
    if (!all.length) return;
    const step = event.key === "ArrowDown" ? 1 : -1;
    const at = all.indexOf(current) + step;
    open(all[(at + all.length) % all.length].key);
  } else if (event.key === "Escape" && $("app").classList.contains("open")) {
    close();
  }
});

if (account && (account.token || !account.hasPassword)) {
  enter(account.token, false);
} else {
  showLogin();
}
