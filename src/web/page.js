// The development server's page: a camera and a viewer, each a client socket with its sibling, moving from the moment
// it opens. It uses the public contract and nothing else, so it also serves as an example of a client without an SDK.

const root = document.documentElement;
const TICK = 1000 / 30;
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const short = (text, limit) => (text.length > limit ? `${text.slice(0, limit - 1)}…` : text);
const say = (value) => (value === undefined ? '' : short(JSON.stringify(value), 160));
const ms = (n) => (Number.isFinite(n) ? `${n < 10 ? n.toFixed(1) : Math.round(n)} ms` : '–');
const size = (n) => (n < 1024 ? `${n} B` : n < 1 << 20 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / (1 << 20)).toFixed(1)} MiB`);
// All data reaches the document as text nodes through here; nothing is ever parsed as HTML.
function node(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

// --- The picture -----------------------------------------------------------------------------------------------------
// 64 × 36 dots of four levels; two dots, one above the other, make one character. A frame is thus bytes to the gateway,
// a picture to the canvas, and an animation in a terminal that prints it: it starts at the home position (ESC [H).
const COLS = 64, ROWS = 36;
const GLYPHS = ' .,_`:;i\'!+x"?*#'; // index = 4 × upper level + lower level
const HOME = '\x1b[H', END_OF_LINE = '\x1b[K\n', CLEAR_BELOW = '\x1b[J';
const STRIDE = COLS + END_OF_LINE.length;
const STATUS = HOME.length + (ROWS / 2) * STRIDE;

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
  const dots = new Uint8Array(COLS * ROWS);
  for (let i = 0; i < dots.length / 2; i++) {
    const x = i % COLS, row = Math.floor(i / COLS);
    const glyph = Math.max(0, GLYPHS.indexOf(text[HOME.length + row * STRIDE + x]));
    dots[2 * row * COLS + x] = glyph >> 2;
    dots[(2 * row + 1) * COLS + x] = glyph & 3;
  }
  return { kind: status[1], number: Number(status[2]), sentAt: Number(status[3]), bytes: bytes.length, dots };
}

function plot(dots, x, y, level) {
  const at = Math.round(y) * COLS + Math.round(x);
  dots[at] = Math.max(dots[at], level);
}

// A point on a slowly turning Lissajous curve, with its trail.
function curve(seconds) {
  const dots = new Uint8Array(COLS * ROWS);
  for (let i = 0; i < 260; i++) {
    const p = 0.9 * seconds - 0.009 * i;
    const x = 31.5 + 28 * Math.sin(3 * p + 0.15 * seconds), y = 17.5 + 14 * Math.sin(2 * p);
    plot(dots, x, y, i < 60 ? 3 : i < 150 ? 2 : 1);
    if (i === 0) for (const dx of [-1, 0, 1]) for (const dy of [-1, 0, 1]) plot(dots, x + dx, y + dy, 3);
  }
  return dots;
}

// What “Push a frame” sends: rings, so that nobody takes them for the camera's picture.
function rings() {
  const dots = new Uint8Array(COLS * ROWS), cx = 12 + 40 * Math.random(), cy = 10 + 16 * Math.random();
  for (let y = 0; y < ROWS; y++) for (let x = 0; x < COLS; x++) {
    const r = Math.hypot(x - cx, y - cy);
    if (r < 12 && r % 4 < 1.6) plot(dots, x, y, r < 5 ? 3 : 2);
  }
  return dots;
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
const REFUSALS = {
  3501: 'The ticket was refused: missing, changed or expired. A server that restarts without SIBLING_SECRET signs with a new key, and the tickets of before open nothing.',
  3503: `Not allowed. If the server limits origins, SIBLING_ALLOWED_ORIGINS has to list ${location.origin}.`,
  3504: 'The server does not know this pair, room or cursor. With the memory broker, a restart forgets them all.',
  3509: 'A newer client socket of this pair took over.',
  3510: 'The pair was ended.',
  3511: 'The room was closed.',
  3516: 'The room speaks no format that this page offered (binary).',
};
// The code says whether to come back. 1001, 1011 and 1013 (leaving, failed, overloaded) are nobody's last word either.
const comesBack = (code) => (code >= 3000 && code < 3500) || [1001, 1005, 1006, 1011, 1012, 1013].includes(code);

// A WebSocket that comes back: the same for both kinds of socket, which differ in where they dial and what they hear.
class Link {
  state = 'closed'; attempts = 0; spread = 5;

  constructor({ dial, hear, changed }) { Object.assign(this, { dial, hear, changed }); }

  async open() {
    clearTimeout(this.timer);
    this.became('connecting');
    const { url, protocol, ticket } = await this.dial();
    const at = new URL(url);
    // Behind a proxy that ends TLS the server may not know that this page came by https, which forbids plain ws.
    if (location.protocol === 'https:') at.protocol = 'wss:';
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
    const ceiling = code === 1012 ? 1000 * this.spread : Math.min(15_000, 500 * 2 ** this.attempts);
    const delay = 100 + ceiling * (code === 1012 ? Math.random() : 0.5 + Math.random() / 2);
    this.attempts += 1;
    this.became('waiting', { code, reason, delay });
    this.timer = setTimeout(() => this.open(), delay);
  }

  became(state, why = {}) { this.state = state; this.changed(state, why); }
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
  f = {}; calls = new Map(); lastId = 0; pushes = 0; count = 0; cursor = 'start'; lastFrame = 0; watching = false;

  constructor(name, pair) {
    Object.assign(this, { name, pair, home: pair.room, room: pair.room });
    this.direction = name === 'camera' ? 'in' : 'out'; // as the gateway sees it: from the client, to the client
    this.tickets = { client: pair.client, sibling: pair.sibling };
    const panel = document.getElementById('side').content.cloneNode(true);
    this.panel = panel.firstElementChild;
    for (const field of panel.querySelectorAll('[data-f]')) this.f[field.dataset.f] = field;
    this.f.title.textContent = name === 'camera' ? 'What the camera sends' : 'What arrives through the pipe';
    this.f.title.id = `${name}-title`;
    this.panel.setAttribute('aria-labelledby', `${name}-title`);
    this.f.canvas.setAttribute('aria-label', `${this.f.title.textContent}: a point with a trail, moving along a curve`);
    this.f.log.setAttribute('aria-label', `Events of the ${name}’s sibling`);
    this.panel.addEventListener('click', (event) => this.clicked(event.target.closest('[data-do]')));
    document.getElementById('sides').append(panel);
    this.screen = new Screen(this.f.canvas);

    this.sibling = new Link({
      dial: async () => {
        const url = new URL(this.tickets.sibling.url);
        url.searchParams.set('cursor', this.cursor);
        return { url, protocol: 'siblings.v1.json', ticket: this.tickets.sibling.ticket };
      },
      hear: (data) => this.heard(JSON.parse(data)),
      changed: (state, why) => this.linkChanged('sibling', state, why),
    });
    this.pipe = new Link({
      dial: async () => ({ url: pair.client.url, protocol: 'siblings.binary', ticket: await this.clientTicket() }),
      hear: (data) => this.arrived(typeof data === 'string' ? new TextEncoder().encode(data) : new Uint8Array(data)),
      changed: (state, why) => this.linkChanged('pipe', state, why),
    });
    // Neither waits for the other: the pipe works without a sibling, and cursor=start tells what was missed.
    this.sibling.open();
    this.pipe.open();
    setInterval(() => this.eachSecond(), 1000);
  }

  // A ticket lives for some minutes; the sibling gets a fresh one for a reopening, and after a switch it has to.
  async clientTicket() {
    if (this.opened && this.ready) await this.renew('client').catch(() => {});
    this.opened = true;
    return this.tickets.client.ticket;
  }

  async renew(side) {
    const got = await this.call('pair.ticket', { side });
    this.tickets[side] = { ...this.tickets[side], ...got, renewing: false };
    if (this.onTicket) this.onTicket();
  }

  // --- the sibling: requests, replies, events
  call(method, params) {
    if (!this.ready) return Promise.reject(new Error('the sibling is not connected'));
    const id = ++this.lastId, from = performance.now();
    this.sibling.socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }));
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => settle({ error: { message: 'no reply within 10 s; whether it took effect is unknown' } }), 10_000);
      const settle = ({ result, error }) => {
        clearTimeout(timer);
        this.calls.delete(id);
        this.trip = performance.now() - from;
        if (error) reject(Object.assign(new Error(error.message), error)); else resolve(result);
      };
      this.calls.set(id, settle);
    });
  }

  heard(message) {
    if (message.method === 'event') this.event(message.params);
    else this.calls.get(message.id)?.(message);
  }

  event(event) {
    const { type, cursor, data = {} } = event;
    // What is about the connection is not kept and must not move our place: a connection lost between `ready` and
    // the replay that follows it would skip that replay.
    if (cursor && !/^(ready|gap)$|^(broker|node)\./.test(type)) this.cursor = cursor;
    if (type === 'ready') {
      this.ready = true;
      this.f.controls.disabled = false;
      if (!this.watching) this.call('room.watch', { joins: true, marks: true, signals: true }).then(() => { this.watching = true; }, () => {});
    }
    // So that the ping time is there before the server's own first ping.
    if (type === 'client.opened' && this.ready) this.call('client.ping').then((got) => { this.rtt = got.rtt_ms; }, () => {});
    if (type === 'client.moved' && data.to) this.inRoom(data.to);
    if (type === 'node.draining') this.sibling.spread = this.pipe.spread = data.reconnect_within ?? 5;
    const text = type === 'gap' ? `${data.lost ?? 'an unknown number of'} events were lost` : say(data);
    this.log(type, text, { at: event.at, kind: type === 'gap' ? 'gap' : 'event', full: JSON.stringify(event) });
  }

  log(type, text, { at = new Date().toISOString(), kind = 'here', full = text } = {}) {
    const line = node('li', node('time', at.slice(11, 23)), node('b', type), node('span', text));
    line.dataset.kind = kind;
    line.title = full;
    this.f.log.prepend(line);
    while (this.f.log.childElementCount > 80) this.f.log.lastElementChild.remove();
  }

  async clicked(button) {
    if (!button) return;
    if (button.dataset.do === 'reopen') return this.pipe.open();
    const [method, params] = COMMANDS[button.dataset.do](this);
    const asked = `${method} ${params ? short(JSON.stringify(params), 60) : ''}`.trim();
    const from = performance.now();
    const show = (is, text) => {
      this.f.reply.dataset.is = is;
      this.f.reply.textContent = `${asked} → ${text} · ${ms(performance.now() - from)}`;
    };
    try {
      const result = await this.call(method, params);
      show('ok', say(result));
      if (method === 'client.move') this.inRoom(result.to ?? params.room);
      if (method === 'client.ping') this.rtt = result.rtt_ms;
    } catch (error) {
      show('failed', `${error.message}${error.data?.code ? ` (${error.data.code})` : ''}`);
    }
  }

  inRoom(room) {
    this.room = room;
    this.f.room.textContent = room;
    this.panel.querySelector('[data-do="move"]').textContent = room === this.home ? 'Move to another room' : 'Move back';
  }

  async eachSecond() {
    const quiet = performance.now() - this.lastFrame;
    this.panel.toggleAttribute('data-quiet', this.lastFrame > 0 && quiet > 1000);
    if (quiet > 1000 && this.lastFrame) this.f.measure.textContent = `nothing for ${Math.round(quiet / 1000)} s`;
    if (!this.ready) return;
    const ticket = this.tickets.sibling;
    if (!ticket.renewing && Date.parse(ticket.expires_at) - Date.now() < 60_000) {
      ticket.renewing = true; // once per ticket: if it is refused, it is refused
      this.renew('sibling').catch(() => {});
    }
    try { this.counters(await this.call('pair.get')); } catch { /* the line about the sibling tells why */ }
  }

  counters(state) {
    // The contract names what is counted, not how it nests: frames_in beside frames_out, or frames {in, out}.
    const counts = state.counters ?? state;
    const both = (what, write) => ['in', 'out'].map((way) => counts[`${what}_${way}`] ?? counts[what]?.[way])
      .map((n) => (n === undefined ? '–' : write(n))).join(' / ');
    const all = (what) => Object.entries(typeof counts[what] === 'object' ? counts[what] : counts)
      .filter(([name]) => typeof counts[what] === 'object' || name.startsWith(what))
      .map(([name, n]) => (name.endsWith('bytes') ? size(n) : `${n} ${name.replace(what, '').replace('_', '')}`)).join(', ');
    const paused = Object.entries(state.paused || {}).filter(([, how]) => how);
    const shown = {
      frames: both('frames', (n) => n.toLocaleString('en')), bytes: both('bytes', size),
      queued: all('queued') || '–', dropped: all('dropped') || '–', epoch: state.epoch ?? '–',
      rtt: ms(state.rtt_ms ?? this.rtt), trip: ms(this.trip),
      paused: paused.map(([way, how]) => `${way}: ${how.policy ?? how}`).join(', ') || 'no',
    };
    for (const [name, text] of Object.entries(shown)) this.f[name].textContent = text;
    if (state.room) this.inRoom(state.room);
  }

  // --- the client socket: what arrives in it
  arrived(bytes) {
    const frame = decode(bytes);
    if (frame?.kind === 'pushed') return this.screen.pushed(frame.dots);
    if (!frame || this.name === 'camera') return this.remark(`${bytes.length} bytes from someone else in the room: “${short(new TextDecoder().decode(bytes).trim(), 80)}”`);
    this.show(frame, `${ms(performance.now() - frame.sentAt)} through the pipe`);
    root.dataset.frames = ++this.count;
    if (root.dataset.state !== 'moving') become('moving', 'Moving');
  }

  show(frame, measure) {
    this.screen.show(frame.dots);
    this.lastFrame = performance.now();
    this.f.caption.textContent = `frame ${frame.number}, ${frame.bytes} bytes`;
    this.f.measure.textContent = measure;
  }

  remark(text) {
    this.f.note.textContent = text;
    this.f.note.hidden = !text;
  }

  // --- what became of either connection
  linkChanged(which, state, { code, reason, delay }) {
    const closed = code ? `${code}${reason ? ` ${reason}` : ''}` : '';
    const words = { open: 'open', connecting: 'connecting…', closed: `closed ${closed}`, waiting: `lost (${closed}), back in ${((delay ?? 0) / 1000).toFixed(1)} s` };
    this.f[which].dataset.is = state;
    this.f[which].querySelector('b').textContent = words[state];
    if (which === 'sibling' && state !== 'open') {
      this.ready = false; // until `ready` is heard again
      this.f.controls.disabled = true;
      for (const settle of [...this.calls.values()]) settle({ error: { message: 'the connection was lost before the reply' } });
    }
    if (state === 'closed' || state === 'waiting') this.log(which === 'pipe' ? 'client socket' : 'sibling', words[state]);
    if (which === 'pipe') {
      // The same button, so that the keyboard's focus stays where it is.
      const button = this.panel.querySelector('[data-do="close"], [data-do="reopen"]');
      button.dataset.do = state === 'closed' ? 'reopen' : 'close';
      button.textContent = state === 'closed' ? 'Reopen' : 'Close';
    }
    if (code >= 3500 && code < 4000) {
      this.remark(`${which === 'pipe' ? 'The client socket' : 'The sibling'} was closed: ${REFUSALS[code] ?? reason}`);
      if ([3501, 3503, 3504, 3516].includes(code)) fail(`The ${this.name} could not connect (${code})`, [REFUSALS[code], reason && `The server said: ${reason}`]);
      else document.getElementById('run').textContent = 'Start over';
    } else if (state === 'open') this.remark('');
  }
}

// --- The page --------------------------------------------------------------------------------------------------------
function become(state, text) {
  root.dataset.state = state;
  document.getElementById('state').textContent = text;
  if (state === 'moving') document.getElementById('problem').hidden = true;
}

function fail(title, sentences, hints = []) {
  const again = node('button', 'Start over with new pairs');
  again.type = 'button';
  again.onclick = () => location.reload();
  const box = document.getElementById('problem');
  box.replaceChildren(node('h2', title), ...sentences.filter(Boolean).map((text) => node('p', text)));
  if (hints.length) box.append(node('ul', ...hints.map((text) => node('li', text))));
  box.append(again);
  box.hidden = false;
  become('error', 'Stopped');
}

async function makePair(room) {
  for (;;) {
    // The linger is the time in which “Reopen” works after “Close”.
    const body = JSON.stringify({ room, format: 'binary', linger: 120 });
    const response = await fetch('/v1/pairs', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    if (response.status !== 429 && response.status !== 503) throw Object.assign(new Error(answer.detail ?? answer.title), { status: response.status, answer });
    const wait = Number(response.headers.get('Retry-After')) || 2;
    become('starting', `The server is busy, trying again in ${wait} s…`);
    await sleep(1000 * wait);
  }
}

function refused({ status, message, answer = {} }) {
  if (!status) return fail('The server did not answer', [message, 'POST /v1/pairs on this origin got no answer.']);
  const said = message && `The server said: ${message}`;
  const trace = [answer.code && `code ${answer.code}`, answer.trace_id && `trace ${answer.trace_id}`].filter(Boolean).join(', ');
  if (status !== 401 && status !== 403) return fail(`No pair was made (HTTP ${status})`, [said, trace]);
  fail('This server gives no tickets to anonymous visitors', ['The page asks for two pairs in a room of its own, without a token, and was refused. One of these would let it in:', said, trace], [
    'sibling serve --dev, the development server: anonymous pairs on, every room public',
    'SIBLING_ANONYMOUS=on, where anonymous pairs are switched off',
    'SIBLING_DEFAULT_PUBLIC=on, where a secret is set and rooms without a specification are therefore not public; or a specification for demo-* with public = true',
  ]);
}

function terminal(viewer) {
  const box = document.getElementById('terminal');
  const fill = () => {
    const lines = {
      pipe: `sibling pipe ${viewer.home} --url ${location.origin}`,
      attach: `sibling attach ${viewer.pair.pair} --ticket ${viewer.tickets.sibling.ticket} --url ${location.origin}`,
      command: 'client.pause {"direction":"out","policy":"buffer"}',
    };
    for (const [name, text] of Object.entries(lines)) box.querySelector(`[data-line="${name}"]`).textContent = text;
    const until = new Date(viewer.tickets.sibling.expires_at);
    document.getElementById('until').textContent = until.toLocaleTimeString();
  };
  box.addEventListener('click', async ({ target }) => {
    const code = target.closest('button')?.previousElementSibling;
    if (!code) return;
    // Without https or localhost there is no clipboard: then the line is selected, one key from being copied.
    getSelection().selectAllChildren(code);
    await navigator.clipboard?.writeText(code.textContent).catch(() => {});
  });
  viewer.onTicket = fill;
  fill();
  box.hidden = false;
}

async function start() {
  // getRandomValues and not randomUUID: the latter is missing on plain http from another machine.
  const room = `demo-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
  const pairs = await Promise.all([makePair(room), makePair(room)]);
  const [camera, viewer] = ['camera', 'viewer'].map((name, i) => new Side(name, pairs[i]));
  terminal(viewer);

  let running = true, number = 0;
  document.getElementById('run').onclick = ({ target }) => {
    running = !running;
    target.textContent = running ? 'Stop the camera' : 'Start the camera';
  };
  setInterval(() => {
    if (!running) return;
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
