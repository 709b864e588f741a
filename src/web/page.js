// The development server's page: a camera and a viewer, each a client socket with its sibling, moving from the moment
// it opens. It uses the public contract and nothing else, so it also serves as an example of a client without an SDK.

const TICK = 1000 / 30; // ms between two frames
const root = document.documentElement;
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const byId = (id) => document.getElementById(id);
const short = (text, limit) => (text.length > limit ? `${text.slice(0, limit - 1)}…` : text);
const say = (value) => (value === undefined ? '' : short(JSON.stringify(value), 160));
const ms = (n) => (Number.isFinite(n) ? `${n < 10 ? n.toFixed(1) : Math.round(n)} ms` : '–');
const size = (n) => (n < 1024 ? `${n} B` : n < 1 << 20 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / (1 << 20)).toFixed(1)} MiB`);
// All data reaches the document as text nodes through here; nothing is ever parsed as HTML.
function node(name, ...children) { const made = document.createElement(name); made.append(...children); return made; }

// --- The picture -----------------------------------------------------------------------------------------------------
// 64 × 36 dots of four levels; two dots, one above the other, make one character. A frame is thus bytes to the gateway,
// a picture to the canvas, and an animation in a terminal that prints it: it starts at the home position (ESC [H).
const COLS = 64, ROWS = 36;
const GLYPHS = ' .,_`:;i\'!+x"?*#'; // index = 4 × upper level + lower level
const HOME = '\x1b[H', END_OF_LINE = '\x1b[K\n', CLEAR_BELOW = '\x1b[J';
const STRIDE = COLS + END_OF_LINE.length, STATUS = HOME.length + (ROWS / 2) * STRIDE;

function encode(dots, kind, number) {
  let text = HOME;
  for (let y = 0; y < ROWS; y += 2) {
    for (let x = 0; x < COLS; x++) text += GLYPHS[4 * dots[y * COLS + x] + dots[(y + 1) * COLS + x]];
    text += END_OF_LINE;
  }
  return new TextEncoder().encode(`${text}${kind} #${number} @${performance.now().toFixed(1)}${CLEAR_BELOW}`);
}

// Null for whatever is not one of our frames: anyone may send anything into a room.
function decode(bytes) {
  const text = new TextDecoder().decode(bytes);
  const status = text.startsWith(HOME) && /^(camera|pushed) #(\d+) @([\d.]+)/.exec(text.slice(STATUS));
  if (!status) return null;
  const dots = Uint8Array.from({ length: COLS * ROWS }, (_, i) => {
    const y = Math.floor(i / COLS), glyph = Math.max(0, GLYPHS.indexOf(text[HOME.length + (y >> 1) * STRIDE + (i % COLS)]));
    return y % 2 ? glyph & 3 : glyph >> 2;
  });
  return { kind: status[1], number: Number(status[2]), sentAt: Number(status[3]), bytes: bytes.length, dots };
}

// A point on a slowly turning Lissajous curve, with its trail.
function curve(seconds) {
  const dots = new Uint8Array(COLS * ROWS);
  for (let i = 259; i >= 0; i--) { // from the tail to the head, which goes on top
    const p = 0.9 * seconds - 0.009 * i;
    const x = 31.5 + 28 * Math.sin(3 * p + 0.15 * seconds), y = 17.5 + 14 * Math.sin(2 * p);
    const at = Math.round(y) * COLS + Math.round(x);
    dots[at] = i < 60 ? 3 : i < 150 ? 2 : 1;
    if (i === 0) for (const row of [-COLS, 0, COLS]) dots.fill(3, at + row - 1, at + row + 2);
  }
  return dots;
}

// What “Push a frame” sends: rings, so that nobody takes them for the camera's picture.
function rings() {
  const dots = new Uint8Array(COLS * ROWS), cx = 12 + 40 * Math.random(), cy = 10 + 16 * Math.random();
  return dots.map((_, i) => {
    const r = Math.hypot((i % COLS) - cx, Math.floor(i / COLS) - cy);
    return r > 12 || r % 4 > 1.6 ? 0 : r < 5 ? 3 : 2;
  });
}

// The grid and the background are CSS; the dots take the canvas's `color`, and so follow light and dark by themselves.
class Screen {
  constructor(canvas) { Object.assign(this, { canvas, context: canvas.getContext('2d'), dots: [], over: [] }); }
  show(dots) { this.dots = dots; this.paint(); }

  // One frame in thirty a second would be gone before it is seen: a pushed one stays on top for a while.
  pushed(dots) {
    this.over = dots;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.over = []; this.paint(); }, 1500);
    this.paint();
  }

  paint() {
    const { canvas, context } = this, pitch = canvas.width / COLS;
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (const [dots, colour, scale] of [[this.dots, getComputedStyle(canvas).color, 1], [this.over, '#e2702a', 1.3]]) {
      context.fillStyle = colour;
      context.beginPath();
      dots.forEach((level, i) => {
        if (!level) return;
        const x = ((i % COLS) + 0.5) * pitch, y = (Math.floor(i / COLS) + 0.5) * pitch, radius = (0.1 + 0.12 * level) * pitch * scale;
        context.moveTo(x + radius, y);
        context.arc(x, y, radius, 0, 2 * Math.PI);
      });
      context.fill();
    }
  }
}

// --- Connections -----------------------------------------------------------------------------------------------------
// Close codes in plain words; like all longer text, they stand in index.html.
const meaning = (code) => byId('reasons').content.querySelector(`[data-code="${code}"]`)?.textContent ?? '';
// The code says whether to come back. 1001, 1011 and 1013 (leaving, failed, overloaded) are nobody's last word either.
const comesBack = (code) => (code >= 3000 && code < 3500) || [1001, 1005, 1006, 1011, 1012, 1013].includes(code);

// A WebSocket that comes back: the same for both kinds of socket, which differ in where they dial and what they hear.
class Link {
  state = 'closed'; attempts = 0; spread = 5;
  constructor(parts) { Object.assign(this, parts); } // dial, hear, changed
  became(state, why = {}) { this.state = state; this.changed(state, why); }

  async open() {
    clearTimeout(this.timer);
    this.became('connecting');
    const { url, protocol, ticket } = await this.dial();
    // Behind a proxy that ends TLS the server may not know that this page came by https, which forbids plain ws.
    const at = location.protocol === 'https:' ? url.replace(/^ws:/, 'wss:') : url;
    // A browser can't set headers here, so the ticket travels as a subprotocol; the server never echoes it.
    const socket = this.socket = new WebSocket(at, [protocol, `bearer.${ticket}`]);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => { this.since = performance.now(); this.became('open'); };
    socket.onmessage = (message) => this.hear(message.data);
    socket.onclose = (event) => this.socket === socket && this.lost(event);
  }

  lost({ code, reason }) {
    // A refusal also looks like an opening that closes at once, so only a socket that lasted proves that all is well.
    if (this.since && performance.now() - this.since > 5000) this.attempts = 0;
    this.since = 0;
    if (!comesBack(code)) return this.became('closed', { code, reason });
    // Jitter, so that everybody whom a restart threw out does not come back in the same instant.
    const ceiling = code === 1012 ? 1000 * this.spread : Math.min(15_000, 500 * 2 ** this.attempts++);
    const delay = 100 + ceiling * (code === 1012 ? Math.random() : 0.5 + Math.random() / 2);
    this.became('waiting', { code, reason, delay });
    this.timer = setTimeout(() => this.open(), delay);
  }
}

// --- One panel: a pair, its client socket, its sibling ---------------------------------------------------------------
const COMMANDS = {
  pause: (side) => ['client.pause', { direction: side.direction, policy: side.f.policy.value }],
  resume: (side) => ['client.resume', { direction: side.direction }],
  push: (side) => ['client.push', { base64: btoa(String.fromCharCode(...encode(rings(), 'pushed', ++side.pushes))) }],
  ping: () => ['client.ping'],
  move: (side) => ['client.move', { room: side.room === side.home ? `${side.home}-away` : side.home }],
  close: () => ['client.close', { code: 4000, reason: 'closed from the page' }],
};

class Side {
  f = {}; calls = new Map(); lastId = 0; pushes = 0; count = 0; cursor = 'start'; lastFrame = 0;

  constructor(name, pair) {
    Object.assign(this, { name, pair, home: pair.room, room: pair.room });
    this.direction = name === 'camera' ? 'in' : 'out'; // as the gateway sees it: from the client, to the client
    this.tickets = { client: pair.client, sibling: pair.sibling };
    this.panel = byId('side').content.firstElementChild.cloneNode(true);
    for (const field of this.panel.querySelectorAll('[data-f]')) this.f[field.dataset.f] = field;
    this.f.title.textContent = name === 'camera' ? 'What the camera sends' : 'What arrives through the pipe';
    this.panel.setAttribute('aria-label', this.f.title.textContent);
    this.panel.addEventListener('click', (event) => this.clicked(event.target.closest('[data-do]')));
    byId('sides').append(this.panel);
    this.screen = new Screen(this.f.canvas);
    this.sibling = new Link({
      dial: async () => {
        const url = new URL(this.tickets.sibling.url);
        url.searchParams.set('cursor', this.cursor);
        return { url: url.href, protocol: 'siblings.v1.json', ticket: this.tickets.sibling.ticket };
      },
      hear: (data) => {
        const message = JSON.parse(data);
        if (message.method === 'event') this.event(message.params); else this.calls.get(message.id)?.(message);
      },
      changed: (state, why) => this.linkChanged('sibling', state, why),
    });
    this.pipe = new Link({
      dial: async () => {
        // Tickets expire, so a reopening takes a fresh one from the sibling; after a switch it has to.
        if (this.pipe.socket && this.ready) await this.renew('client').catch(() => {});
        return { url: pair.client.url, protocol: 'siblings.binary', ticket: this.tickets.client.ticket };
      },
      hear: (data) => this.arrived(typeof data === 'string' ? new TextEncoder().encode(data) : new Uint8Array(data)),
      changed: (state, why) => this.linkChanged('pipe', state, why),
    });
    // Neither waits for the other: the pipe works without a sibling, and cursor=start tells what was missed.
    for (const link of [this.sibling, this.pipe]) link.open();
    setInterval(() => this.eachSecond(), 1000);
  }

  async renew(side) {
    this.tickets[side] = { ...this.tickets[side], renewing: false, ...await this.call('pair.ticket', { side }) };
    this.renewed?.();
  }

  // --- the sibling: requests, replies, events
  call(method, params) {
    const id = ++this.lastId, from = performance.now();
    this.sibling.socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params })); // the caller saw `ready`
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => settle({ error: { message: 'no reply within 10 s; whether it took effect is unknown' } }), 10_000);
      const settle = ({ result, error }) => {
        clearTimeout(timer);
        this.calls.delete(id);
        this.trip = performance.now() - from;
        if (error) reject(error); else resolve(result);
      };
      this.calls.set(id, settle);
    });
  }

  event(event) {
    const { type, cursor, data = {} } = event;
    // What is about the connection is not kept and must not move our place: a connection lost between `ready` and
    // the replay that follows it would skip that replay.
    if (cursor && !/^(ready|gap)$|^(broker|node)\./.test(type)) this.cursor = cursor;
    if (type === 'ready') {
      this.ready = true;
      this.f.controls.disabled = false;
      this.call('room.watch', { joins: true, marks: true, signals: true }).catch(() => {});
    }
    // So that pair.get has a ping time before the server's own first ping.
    if (type === 'client.opened' && this.ready) this.call('client.ping').catch(() => {});
    if (type === 'client.moved' && data.to) this.inRoom(data.to);
    if (type === 'node.draining') this.sibling.spread = this.pipe.spread = data.reconnect_within ?? 5;
    if (type === 'gap') this.log('alert', type, `${data.lost ?? 'an unknown number of'} events were lost`, event.at);
    else this.log('event', type, say(data), event.at, JSON.stringify(event));
  }

  log(kind, type, text, at = new Date().toISOString(), title = text) {
    const line = node('li', node('time', at.slice(11, 23)), node('b', type), node('span', text));
    this.f.log.prepend(Object.assign(line, { className: kind, title }));
    while (this.f.log.childElementCount > 80) this.f.log.lastElementChild.remove();
  }

  async clicked(button) {
    if (!button) return;
    if (button.dataset.do === 'reopen') {
      if (root.dataset.state === 'error') become('starting', 'Starting…');
      return this.pipe.open();
    }
    const [method, params] = COMMANDS[button.dataset.do](this);
    const asked = params ? `${method} ${short(JSON.stringify(params), 48)}` : method, from = performance.now();
    const [is, text] = await this.call(method, params).then(
      (result) => ['ok', say(result)],
      (error) => ['failed', `${error.message}${error.data?.code ? ` (${error.data.code})` : ''}`],
    );
    this.f.reply.dataset.is = is;
    this.f.reply.textContent = `${asked} → ${text} · ${ms(performance.now() - from)}`;
  }

  inRoom(room) {
    this.f.room.textContent = this.room = room;
    this.panel.querySelector('[data-do="move"]').textContent = room === this.home ? 'Move to another room' : 'Move back';
  }

  async eachSecond() {
    const quiet = this.lastFrame ? performance.now() - this.lastFrame : 0;
    this.panel.toggleAttribute('data-quiet', quiet > 1000);
    if (quiet > 1000) this.f.measure.textContent = `nothing for ${Math.round(quiet / 1000)} s`;
    if (!this.ready) return;
    const ticket = this.tickets.sibling;
    if (!ticket.renewing && Date.parse(ticket.expires_at) - Date.now() < 30_000) {
      ticket.renewing = true; // once per ticket: if it is refused, it is refused
      this.renew('sibling').catch(() => {});
    }
    try { this.counters(await this.call('pair.get')); } catch { /* the line about the sibling tells why */ }
  }

  counters(state) {
    // The contract names what is counted, not how it nests: {frames: {in}} and {frames_in} are read alike.
    const flat = (object, prefix = '') => Object.entries(object ?? {})
      .flatMap(([name, value]) => (typeof value === 'object' ? flat(value, `${prefix}${name}_`) : [[prefix + name, value]]));
    const counts = flat(state.counters), count = Object.fromEntries(counts);
    const both = (what, write) => ['in', 'out'].map((way) => write(count[`${what}_${way}`] ?? 0)).join(' / ');
    const all = (what) => counts.filter(([name]) => name.startsWith(what))
      .map(([name, n]) => (name.endsWith('bytes') ? size(n) : `${n}${name.slice(what.length).replaceAll('_', ' ')}`)).join(', ');
    const shown = {
      frames: both('frames', (n) => n.toLocaleString('en')), bytes: both('bytes', size), queued: all('queued'), dropped: all('dropped'),
      rtt: ms(state.rtt_ms), trip: ms(this.trip), epoch: state.epoch,
      paused: flat({ '': state.paused }).filter(([, how]) => how).map(([way, how]) => `${way.slice(1)} ${how}`).join(', ') || 'no',
    };
    for (const [name, text] of Object.entries(shown)) this.f[name].textContent = text ?? '–';
    if (state.room) this.inRoom(state.room);
  }

  // --- the client socket: what arrives in it
  arrived(bytes) {
    const frame = decode(bytes);
    if (frame?.kind === 'pushed') return this.screen.pushed(frame.dots);
    const text = () => short(new TextDecoder().decode(bytes).trim(), 80);
    if (!frame || this.name === 'camera') return this.remark(`${bytes.length} bytes from someone else in the room: “${text()}”`);
    this.show(frame, `${ms(performance.now() - frame.sentAt)} through the pipe`);
    root.dataset.frames = ++this.count;
    if (root.dataset.state === 'starting') become('moving', 'Moving');
  }

  show(frame, measure) {
    this.screen.show(frame.dots);
    this.lastFrame = performance.now();
    [this.f.caption.textContent, this.f.measure.textContent] = [`frame ${frame.number}, ${frame.bytes} bytes`, measure];
  }

  remark(text) { Object.assign(this.f.note, { textContent: text, hidden: !text }); }

  // --- what became of either connection
  linkChanged(which, state, { code, reason, delay }) {
    const closed = `${code} ${reason}`.trim(), back = `${(delay / 1000).toFixed(1)} s`;
    const words = { connecting: 'connecting…', closed: `closed ${closed}`, waiting: `lost (${closed}), back in ${back}` };
    this.f[which].dataset.is = state;
    this.f[which].querySelector('b').textContent = words[state] ?? state;
    if (code) this.log('alert', which, words[state]);
    if (which === 'sibling' && state !== 'open') {
      this.ready = false; // until `ready` is heard again
      this.f.controls.disabled = true;
      for (const settle of [...this.calls.values()]) settle({ error: { message: 'the connection was lost before the reply' } });
    } else if (which === 'pipe') {
      // The same button, so that the keyboard's focus stays where it is.
      const button = this.panel.querySelector('[data-do="close"], [data-do="reopen"]');
      [button.dataset.do, button.textContent] = state === 'closed' ? ['reopen', 'Reopen'] : ['close', 'Close'];
    }
    if (state === 'open') this.remark('');
    if (!(code >= 3500 && code < 4000)) return;
    const said = `The server said: ${code} ${reason}.`;
    // A sibling that is refused stops nothing, a client socket does.
    if (which === 'pipe') fail(`The ${this.name}’s client socket is closed for good`, meaning(code), said);
    else this.remark(`The sibling is closed for good. ${meaning(code)} ${said} Reload the page for new pairs.`);
  }
}

// --- The page --------------------------------------------------------------------------------------------------------
function become(state, text) {
  root.dataset.state = state;
  byId('state').textContent = text;
  byId('problem').hidden = state !== 'error';
}

function fail(title, ...parts) {
  byId('problem').firstElementChild.replaceChildren(node('h2', title),
    ...parts.map((part) => (part instanceof Node ? part : node('p', part))));
  become('error', 'Stopped');
}

async function makePair(room) {
  for (;;) {
    // The linger is the time in which “Reopen” works after “Close”.
    const body = JSON.stringify({ room, format: 'binary', linger: 120 });
    const response = await fetch('/v1/pairs', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    const { status } = response, wait = Number(response.headers.get('Retry-After')) || 2;
    if (status !== 429 && status !== 503) throw Object.assign(new Error(answer.detail ?? answer.title), { status, answer });
    become('starting', `The server is busy, trying again in ${wait} s…`);
    await new Promise((done) => setTimeout(done, 1000 * wait));
  }
}

function refused({ status, message, answer = {} }) {
  if (!status) return fail('The page could not start', `POST /v1/pairs on this origin came to nothing: ${message}.`);
  const said = `The server said: ${message || 'nothing'} (${[status, answer.code, answer.trace_id].filter(Boolean).join(', ')}).`;
  if (status !== 401 && status !== 403) fail('No pair was made', said);
  else fail('This server gives no tickets to anonymous visitors', said, byId('anonymous').content.cloneNode(true));
}

function terminal(viewer) {
  const box = byId('terminal');
  (viewer.renewed = () => {
    const { home: room, pair: { pair }, tickets: { sibling: { ticket, expires_at: until } } } = viewer;
    const values = { room, pair, ticket, origin: location.origin };
    const fill = (line) => line.replace(/{(\w+)}/g, (_, name) => values[name]);
    for (const code of box.querySelectorAll('[data-line]')) code.textContent = fill(code.dataset.line);
    byId('until').textContent = new Date(until).toLocaleTimeString();
  })();
  box.addEventListener('click', async ({ target }) => {
    const code = target.closest('button')?.previousElementSibling;
    if (!code) return;
    // Without https or localhost there is no clipboard: then the line is selected, one key from being copied.
    getSelection().selectAllChildren(code);
    await navigator.clipboard?.writeText(code.textContent).then(() => { target.dataset.copied = ''; }, () => {});
    setTimeout(() => delete target.dataset.copied, 1500);
  });
  box.hidden = false;
}

async function start() {
  // getRandomValues and not randomUUID: the latter is missing on plain http from another machine.
  const room = `demo-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  const pairs = await Promise.all([makePair(room), makePair(room)]);
  const camera = new Side('camera', pairs[0]), viewer = new Side('viewer', pairs[1]);
  terminal(viewer);
  let number = 0;
  setInterval(() => {
    if (!byId('run').checked) return;
    const now = performance.now() / 1000;
    // Who asked for less motion gets one step a second in the picture; the pipe carries thirty frames all the same.
    const frame = encode(curve(calm.matches ? Math.floor(now) / 2 : now), 'camera', ++number);
    const { state, socket } = camera.pipe;
    // `hold` stops reading, TCP passes it on, and it shows here: a camera skips frames then, and does not hoard them.
    const why = state !== 'open' ? 'the client socket is not open' : socket.bufferedAmount > 1 << 18 ? 'the gateway is not reading' : '';
    if (!why) socket.send(frame);
    camera.show(decode(frame), why ? `not sent: ${why}` : `${Math.round(1000 / TICK)} a second`);
  }, TICK);
}

start().catch(refused);
