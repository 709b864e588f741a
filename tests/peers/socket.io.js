// Socket.IO as its documentation sets it up: WebSocket only, so that nothing is upgraded later; no compression (the
// default). With REDIS in the environment, with the Redis streams adapter.
const { createServer } = require("node:http");
const { Server } = require("socket.io");

async function adapter() {
  if (!process.env.REDIS) return undefined;
  const { createClient } = require("redis");
  const { createAdapter } = require("@socket.io/redis-streams-adapter");
  const client = createClient({ url: process.env.REDIS });
  await client.connect();
  return createAdapter(client);
}

adapter().then((adapter) => {
  const http = createServer();
  // Nobody is pinged while it is measured, as with all the others.
  const io = new Server(http, { transports: ["websocket"], pingInterval: 3600000, adapter });
  io.on("connection", (socket) => {
    socket.on("join", () => {
      socket.join("bench");
      socket.emit("joined");
    });
    socket.on("message", (text) => socket.to("bench").emit("message", text));
  });
  http.listen(Number(process.env.PORT), "127.0.0.1");
});
