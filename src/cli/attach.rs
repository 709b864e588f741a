//! `sibling attach`: a sibling in the terminal. A line is a command and its params, or a whole JSON-RPC message.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, Stdin};
use tokio_tungstenite::tungstenite::Message;

use super::{
    FAILED, USAGE, say,
    wire::{Socket, open},
};

/// The longest pause between two attempts to come back.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Whose sibling to be.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// The pair
    pair: String,
    /// A command to give instead of reading them from standard input
    command: Option<String>,
    /// Its params, as JSON
    params: Option<String>,
    /// The gateway
    #[arg(long, env = "SIBLING_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// A sibling ticket of the pair
    #[arg(long, env = "SIBLING_TICKET", hide_env_values = true)]
    ticket: Option<String>,
    /// Hear everything after this cursor first; "start" is all that is kept
    #[arg(long)]
    cursor: Option<String>,
}

enum Ended {
    /// Nothing more to do.
    Done(ExitCode),
    /// Lost: come back.
    Lost(String),
}

pub(super) async fn run(mut args: AttachArgs) -> ExitCode {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut pause = Duration::from_millis(250);
    loop {
        let query = args.cursor.as_ref().map(|cursor| format!("?cursor={cursor}")).unwrap_or_default();
        let path = format!("/v1/pairs/{}/sibling{query}", args.pair);
        let lost = match open(&args.url, &path, args.ticket.as_deref()).await {
            Ok((socket, _)) => {
                pause = Duration::from_millis(250);
                match attached(socket, &mut args, &mut lines).await {
                    Ended::Done(code) => return code,
                    Ended::Lost(why) => why,
                }
            }
            Err(refused) if refused.again && args.command.is_none() => refused.why,
            Err(refused) => {
                eprintln!("sibling: {}", refused.why);
                return ExitCode::from(FAILED);
            }
        };
        eprintln!("sibling: {lost}; coming back");
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn attached(mut socket: Socket, args: &mut AttachArgs, lines: &mut Lines<BufReader<Stdin>>) -> Ended {
    let mut id = 0;
    let once = args.command.clone();
    if let Some(method) = &once
        && let Err(ended) = give(&mut socket, &mut id, method, args.params.as_deref().unwrap_or(""), true).await
    {
        return ended;
    }
    let mut reading = once.is_none();
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let value: Value = serde_json::from_str(&text).unwrap_or_default();
                    let event = &value["params"];
                    if once.is_some() {
                        // Alone, only the answer matters.
                        if !value["id"].is_null() {
                            let failed = value.get("error").is_some();
                            say(&(if failed { &value["error"] } else { &value["result"] }).to_string());
                            return Ended::Done(ExitCode::from(u8::from(failed)));
                        }
                        continue;
                    }
                    say(&text);
                    // What is about the connection comes at a place that was told already.
                    if let (Some(cursor), Some(kind)) = (event["cursor"].as_str(), event["type"].as_str()) {
                        args.cursor = Some(cursor.into());
                        if kind == "pair.ended" {
                            eprintln!("sibling: the pair has ended");
                        }
                    }
                }
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) = frame.map_or((1005, String::new()), |f| (f.code.into(), f.reason.to_string()));
                    let why = format!("closed: {code} {reason}");
                    if code == 1000 || (3500..4000).contains(&code) {
                        eprintln!("sibling: {why}");
                        return Ended::Done(ExitCode::from(u8::from(code != 1000)));
                    }
                    return Ended::Lost(why);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Ended::Lost(error.to_string()),
                None => return Ended::Lost("the connection broke".into()),
            },
            line = lines.next_line(), if reading => match line {
                Ok(Some(line)) => {
                    let line = line.trim();
                    if line.starts_with('{') || line.starts_with('[') {
                        if let Err(error) = socket.send(Message::text(line.to_owned())).await {
                            return Ended::Lost(error.to_string());
                        }
                        continue;
                    }
                    let (method, params) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
                    if !method.is_empty() && let Err(ended) = give(&mut socket, &mut id, method, params, false).await {
                        return ended;
                    }
                }
                // No more commands: go on listening.
                _ => reading = false,
            },
        }
    }
}

/// Sends a command; params that are no JSON are said so and not sent.
async fn give(socket: &mut Socket, id: &mut u64, method: &str, params: &str, alone: bool) -> Result<(), Ended> {
    let params = if params.trim().is_empty() { Ok(json!({})) } else { serde_json::from_str::<Value>(params) };
    let params = match params {
        Ok(params) => params,
        Err(error) => {
            eprintln!("sibling: the params are no JSON: {error}; write, say: client.pause {{\"direction\":\"out\"}}");
            // Alone, there is nothing else to do; from standard input the next line may be better.
            return if alone { Err(Ended::Done(ExitCode::from(USAGE))) } else { Ok(()) };
        }
    };
    *id += 1;
    let request = json!({"jsonrpc": "2.0", "id": *id, "method": method, "params": params});
    socket.send(Message::text(request.to_string())).await.map_err(|error| Ended::Lost(error.to_string()))
}
