// A relay as many are: what a socket says is published in Redis, and what Redis delivers goes to all sockets. Nothing is
// compressed (the default). Who opens /sender gets nothing.
const { createClient } = require("redis");
const { WebSocketServer } = require("ws");

(async () => {
  const publisher = createClient({ url: process.env.REDIS });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const receivers = new Set();
  const server = new WebSocketServer({ port: Number(process.env.PORT), host: "127.0.0.1" });
  server.on("connection", (socket, request) => {
    if (request.url !== "/sender") receivers.add(socket);
    socket.on("close", () => receivers.delete(socket));
    socket.on("message", (data) => publisher.publish("bench:ws", data));
  });
  const deliver = (data) => {
    for (const socket of receivers) socket.send(data, { binary: true });
  };
  await subscriber.subscribe("bench:ws", deliver, true);
})();
