//! `sibling pipe`: a client socket on standard input and output.

use std::process::ExitCode;

use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Stdin};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};

use super::{
    FAILED, USAGE,
    wire::{open, segment},
};
use crate::protocol::RoomName;

/// What to open.
#[derive(Debug, Args)]
pub(super) struct PipeArgs {
    /// The room
    room: String,
    /// The gateway
    #[arg(long, env = "SIBLING_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// What to speak: text and json send a frame a line, binary sends bytes as they come [default: what the room
    /// speaks, text in a new one]
    #[arg(long)]
    format: Option<String>,
    /// Open the client socket of a pair that exists
    #[arg(long, requires = "ticket")]
    pair: Option<String>,
    /// Its client ticket; without a pair, a token
    #[arg(long, env = "SIBLING_TICKET", hide_env_values = true)]
    ticket: Option<String>,
    /// The largest binary frame to send, in bytes
    #[arg(long, default_value_t = 16 << 10)]
    chunk: usize,
    /// Stay open when standard input ends
    #[arg(long, short = 'n')]
    no_close: bool,
    /// Say nothing on standard error
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(args: PipeArgs) -> ExitCode {
    if let Err(bad) = args.room.parse::<RoomName>() {
        eprintln!("sibling: {bad}");
        return ExitCode::from(USAGE);
    }
    let query = args.format.as_ref().map(|format| format!("?format={format}")).unwrap_or_default();
    let path = match &args.pair {
        Some(pair) => format!("/v1/pairs/{pair}/client{query}"),
        None => format!("/v1/rooms/{}/client{query}", segment(&args.room)),
    };
    let (socket, headers) = match open(&args.url, &path, args.ticket.as_deref()).await {
        Ok(opened) => opened,
        Err(refused) => {
            eprintln!("sibling: {}", refused.why);
            return ExitCode::from(FAILED);
        }
    };
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let (false, Some(pair), Some(ticket)) = (args.quiet, header("sibling-pair"), header("sibling-ticket")) {
        eprintln!("sibling: this pipe's sibling: sibling attach {pair} --url {} --ticket {ticket}", args.url);
    }
    let binary = args.format.as_deref() == Some("binary");
    let mut input = Input { stdin: BufReader::new(tokio::io::stdin()), binary, chunk: args.chunk.max(1) };
    let (mut sink, mut stream) = socket.split();
    let send = async {
        loop {
            match input.next().await {
                Ok(Some(message)) => {
                    if sink.send(message).await.is_err() {
                        // The other half knows why.
                        std::future::pending::<()>().await;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    let why = if error.kind() == std::io::ErrorKind::InvalidData {
                        "a line is not UTF-8: send bytes with --format binary".into()
                    } else {
                        error.to_string()
                    };
                    drop(sink.send(Message::Close(None)).await);
                    return why;
                }
            }
        }
        if args.no_close {
            std::future::pending::<()>().await;
        }
        let bye = CloseFrame { code: 1000.into(), reason: "".into() };
        drop(sink.send(Message::Close(Some(bye))).await);
        std::future::pending::<String>().await
    };
    let receive = async {
        let mut stdout = tokio::io::stdout();
        while let Some(message) = stream.next().await {
            let written = match message {
                Ok(Message::Text(text)) => stdout.write_all(format!("{text}\n").as_bytes()).await,
                Ok(Message::Binary(bytes)) => stdout.write_all(&bytes).await,
                Ok(Message::Close(frame)) => return Some(frame),
                Ok(_) => continue,
                Err(_) => return None,
            };
            if written.is_err() || stdout.flush().await.is_err() {
                return Some(None);
            }
        }
        None
    };
    let ended = tokio::select! {
        why = send => {
            eprintln!("sibling: {why}");
            return ExitCode::from(FAILED);
        }
        ended = receive => ended,
    };
    match ended {
        Some(None) => ExitCode::SUCCESS,
        Some(Some(frame)) if u16::from(frame.code) == 1000 => ExitCode::SUCCESS,
        Some(Some(frame)) => {
            eprintln!("sibling: closed: {} {}", u16::from(frame.code), frame.reason);
            ExitCode::from(FAILED)
        }
        None => {
            eprintln!("sibling: the connection broke");
            ExitCode::from(FAILED)
        }
    }
}

struct Input {
    stdin: BufReader<Stdin>,
    binary: bool,
    chunk: usize,
}

impl Input {
    async fn next(&mut self) -> std::io::Result<Option<Message>> {
        if self.binary {
            let mut chunk = vec![0; self.chunk];
            let read = self.stdin.read(&mut chunk).await?;
            chunk.truncate(read);
            return Ok((read > 0).then(|| Message::binary(chunk)));
        }
        let mut line = String::new();
        let read = self.stdin.read_line(&mut line).await?;
        let text = line.strip_suffix('\n').map_or(&*line, |line| line.strip_suffix('\r').unwrap_or(line));
        Ok((read > 0).then(|| Message::text(text.to_owned())))
    }
}
