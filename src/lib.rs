//! A WebSocket gateway that keeps each *client socket* a pure pipe and gives it a *sibling socket* for commands.
//!
//! A client socket carries the payload of its room and nothing else. Beside it runs any number of sibling sockets,
//! bound to exactly that client socket (together they are a *pair*): they hear its events and act for it (move it to
//! another room, pause it, push a frame into it, close it), from any node of the cluster, and may come and go.
//!
//! # Two invariants
//! 1. **The pipe is pure.** No payload frame of a client socket is added, removed, reordered, parsed or re-typed. In
//!    band there is nothing but WebSocket control frames.
//! 2. **Control never waits for data, and data never for control.** A jammed pipe answers its sibling at once; a
//!    sibling or a broker that is gone leaves the pipe open.
//!
//! # The house
//! ```text
//!  floor 5   cli        serve, pipe, attach, ticket, token, keys, bench: what a terminal starts
//!  floor 4   http       the front door: upgrades, routes, event streams, refusals, the page
//!  floor 3   socket     one actor per socket
//!  floor 2   node       where hub and broker meet; everything that runs is spawned here
//!  floor 1   hub        this node's memory    |    broker   the other nodes    (these two never meet)
//!  floor 0   protocol   values that cross a wire: no I/O, no tasks, no clock
//!  roof      config, telemetry
//! ```
//! A module imports its own floor's folder and floors below: `tests/tidy.rs` keeps that. What must rise, rises as mail
//! through a channel whose type the lower floor owns: the broker's [`Delivery`](broker::Delivery), the node's
//! [`ClientMail`](node::ClientMail), the hub's [`Heard`](hub::Heard).
//!
//! Frames of one burst are one [`Run`](protocol::Run) from the sender's socket to the receivers': encoded once, shared
//! by reference count, written together. Reading and writing frames is ours: what was encoded once need not be encoded
//! again, control frames go where we put them, and an idle socket has no buffers. What few sockets come to need is boxed
//! when it is first changed ([`Seldom`](hub::Seldom)).
//!
//! # The three flows
//! **A frame.** On the sender's node: `socket::client` reads it → `Client::hear` joins it with what else has
//! arrived → [`Node::publish`](node::Node::publish) → `Room::fan_out` into the outboxes of members here, and one
//! publish for all other nodes, if there are any. There: `node::inbound` → `Room::fan_out` → outbox. A postman
//! ([`Postmen`](hub::Postmen)) goes from outbox to outbox → `socket::write` → wire. The receivers' actors sleep on, unless
//! a wire does not take it all: then its own actor waits for it.
//!
//! **A command.** `socket::sibling` decodes it → `Calls::answer` checks grant and params →
//! [`Node::ask`](node::Node::ask) finds the node that has the client socket → its `node::inbound` (or nobody, if it is
//! this one) → `Client::obey` → [`Node::reply`](node::Node::reply) after the effect → `pending` of the asking node →
//! wire. Many are in flight at a time, and none waits for another. Mail that gets no reply is sent again, and not
//! carried out again. A command with a key is noted in the registry before it is carried out (`node::once`), so that
//! sending it again is safe.
//!
//! **A mark** is a command with a place among the frames. It waits in the sender's actor until its frame has been read
//! (`socket::marks`; the burst is split there), goes the way of the frames ([`Node::publish_mark`](node::Node::publish_mark))
//! and stands between them in each outbox ([`Outbox`](hub::Outbox)). Nobody computes its place: it is how many frames
//! have been taken when its turn comes, so that drops, pauses and moves can't make it wrong. Then the receiver's actor
//! raises its event.
//!
//! **An event.** The client's actor raises it in its [`Story`](node::Story), where what it says is written once
//! ([`Event`](protocol::Event)): all others carry that text → `Broker::append`: one atomic step that
//! keeps the entry and publishes the same entry under the same position → `node::inbound` of every node with a
//! listener → [`Follower`](node::Follower) → [`Feed`](node::Feed) → sibling → wire. A command's reply leaves after its
//! event stands.
//! Waking up and having missed something are one thing: subscribe, read what follows the last position, go on live.
//! `node::replay` admits an entry only behind the one that it names as its predecessor, so nothing is skipped in
//! silence; a look at the newest position every two seconds finds a last event that was lost on the way, and a history
//! that lost its tail. `tests/model_replay.rs` shows this in every order of steps, with the code that is shipped.
//!
//! A pair's story is two histories: its own, and the *talk* of the room where it is
//! ([`Topic::Talk`](protocol::Topic::Talk)), in which every signal and every member that comes or goes is one entry,
//! however many are there. A feed merges them by the times of their events; the pair's own say where it came to a room's
//! talk and where it left it ([`Stand`](protocol::Stand)). A cursor names the last entry of the pair's own history, and in
//! the room's talk the last one that was told, or where the pair came to the room: that follows from what is kept and not
//! from what came to whom when, so that an event has the same cursor for everyone who was told the same before it. It is
//! sealed, since it names a room. Who enters or leaves is told by the very step that adds or removes it
//! ([`Registry::join`](broker::Registry::join)), so that a burial by several nodes tells it once; in a crowd that step notes
//! it, and whoever noted something has it told, with all else that was noted, a moment later (`node::talk`). To how many a signal
//! was told is counted by the nodes that it reaches (`node::signals`).
//!
//! # Who may
//! Whoever opens something with a ticket gets a [`Pass`](node::Pass), and holds it for as long as it is open. It
//! rings before the ticket expires and when it has; and the sockets whose ticket is revoked, and no others, are told
//! by it. Revocations are entries of one history of the cluster (`node::chronicle`) that each node reads when it
//! starts and follows live. They only add up, so that they take effect in whatever order they come, and a broker
//! that lost them is told again. What is revoked is in each node's memory (`node::revoked`): to ask it costs no
//! round trip, and works while the broker is away.
//!
//! # Who owns what
//! The registry lets one node at a time hold a pair, under a fence (epoch and nonce) that goes up with each client
//! socket. Nobody is pushed aside there: a newer socket asks the one that holds the pair to yield (`node::take`), which
//! gives it up together with its `client.closed`, in one step ([`Registry::release`](broker::Registry::release),
//! `node::parting`). Every event is appended under the fence ([`Broker::append`](broker::Broker::append)), so who has
//! lost the pair can tell nothing more. What must not happen twice, because an answer was lost, carries a nonce or a
//! token: entries, claims, keys (`node::once`), and mail between nodes (`node::asked`).
//!
//! A node that falls silent loses its lease. Another one *condemns* it, which it can't undo by coming back, releases
//! what it held under the fences that it had, adopts the pairs that it was to end, and buries it (`node::burial`). Only
//! who has seen the broker answer for a whole lease may judge: after an outage everyone's lease has run out. A node that
//! comes back looks up what it still has, and takes out of the hub what is not its own any more, before its lease holds
//! again: whoever is not there says nothing and obeys nobody ([`Node::publish`](node::Node::publish),
//! [`Node::may_obey`](node::Node::may_obey)), long before its actor hears of it.
//! `tests/model_ownership.rs` walks through all of this in every order of steps, and says what each part is good for.
//!
//! # What holds in a room
//! A specification is a rule in the registry ([`Registry::lay_down`](broker::Registry::lay_down)), under the version that
//! it replaces; the same step settles what the room speaks from then on. `node::owners` writes it and tells every node
//! with members, on the room's own topic, that there is another. Each looks it up itself and hands it to its clients'
//! actors, so that it does not matter which notice was lost: after an interruption all rooms are looked at. Who enters a
//! room joins its group under the rule that it read, in a step that returns the rule in force and counts the members
//! (`node::rooms`); if that is another one it begins anew. `socket::terms` is what an actor makes of the rule, its pair's
//! own choices and the node's settings.
//!
//! # Rooms that keep their frames
//! There the frame's way is another. On the sender's node: `Client::hear` → `socket::sending`, which appends what has come
//! in meanwhile to the room's history, one batch at a time ([`Node::contribute`](node::Node::contribute)) → on every node
//! with members the entry comes out of the one task that follows that history (`node::past`) → `Room::fan_out`. Who opens
//! a socket begins deaf to that: `socket::kept` reads what it has missed from the history, as fast as its peer takes it,
//! until it stands where its node stands, and hears from then on. Where it is to begin is worked out from an anchor in the
//! pair's facts (`node::trace`): a pipe's count and the room's total go up together, so nothing is written for a receiver
//! while frames flow. Each entry carries that total ([`Tally`](broker::Tally)).
//!
//! A pipe is handed over (`socket::switch`) from one frame on: what comes then waits for the next socket, in the history
//! or in an outbox that keeps its seat (`node::parked`) and crosses to another node, if that is where the next socket opens: the
//! broker gives a room's messages to all nodes in one order, so that two messages of the nodes' own cut it at the same
//! place for both (`node::crossing`).
//!
//! # When the broker fails
//! Actors never wait for it: their events wait in their [`Story`](node::Story), and those of sockets that are gone in
//! their [`Parting`](node::Parting). Deliveries that may have been lost are announced as
//! [`Delivery::Lost`](broker::Delivery::Lost): feeds read again, and stories look whether their last entry still stands.
//! If a fail-over took it back, they append again what they remember of it, and it gets the same places. A broker that
//! came back empty is told again by those who hold something ([`Registry::restore`](broker::Registry::restore)); what a
//! fail-over brought back that was long given up is given up again (`node::sweep`).
//! Redis Cluster and Sentinel are several *lanes* and a lookout of `broker::redis`; nobody above knows of them.
//!
//! # What is not here
//! No task runs that a drain does not wait for (but Redis' client library keeps one a connection). No queue, map or
//! retry is unbounded that a stranger can grow. No payload is parsed. No ticket, token or query string is logged.
//!
//! # Departures from convention
//! Feeds and replay live in `node`, not in `socket`, because event streams over HTTP use them too. Broker deliveries
//! come out of one channel per node, so that their order is one order.

pub mod broker;
pub mod cli;
pub mod config;
pub mod http;
pub mod hub;
pub mod node;
pub mod protocol;
pub mod socket;
pub mod telemetry;
