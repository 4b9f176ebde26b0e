//! Answers of the DNS authority in a second of its processor's time, with the limit of each network on; and how long one
//! answer takes.

use crate::admin::Admin;
use crate::bench::need_files;
use crate::clock::now_ns;
use crate::figures::Figures;
use crate::machine::{Facts, Steal, processor};
use crate::table::scatter;
use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// An edge that takes so long for one answer hangs (chosen: it takes a tenth of a millisecond).
const HANGS: Duration = Duration::from_secs(20);
/// How long an answer is waited for before it counts as lost, when many ask.
const LOST: Duration = Duration::from_millis(200);
/// Questions one after another for the time of one answer.
const ALONE: u64 = 1_000;
/// The aim: answers in a second of processor time.
const AIM: f64 = 100_000.0;
/// Types that are asked for: what a browser asks for each name (A, AAAA, HTTPS).
const KINDS: [u16; 3] = [1, 28, 65];
const SUFFIX: &str = "sprites.test";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Seconds of the measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Networks (/24) that ask, each with a socket of its own: so many that none meets its limit.
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u16).range(1..=16_384))]
    networks: u16,
    /// Questions a socket has on their way at a time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    window: u8,
    /// Threads that answer, each with a socket.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Answers each network may have in a second.
    #[arg(long, default_value_t = 500)]
    limit: u32,
    /// Exit with 1 below 100,000 answers in a second of processor time.
    #[arg(long)]
    check: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    facts: Facts,
    /// Whole answers that came back.
    answers: u64,
    /// Answers that were cut because their network was above its limit.
    cut: u64,
    /// Questions without an answer.
    lost: u64,
    seconds: f64,
    /// Processor time of the whole edge meanwhile.
    processor_s: f64,
    answers_per_second: f64,
    answers_per_processor_second: f64,
    processor_us_per_answer: f64,
    /// One question at a time, nothing else going on.
    alone: Figures,
    steal_percent: f64,
}

/// True when the aim was met or none was to be.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let facts = Facts::now();
    need_files(u64::from(arguments.networks) + 100)?;
    let directory = tempfile::Builder::new().prefix("loadtest-").tempdir()?;
    let (child, at) = start(directory.path(), &arguments).await?;
    let id = child.id().context("the edge has ended")?;
    let steal = Steal::begin();
    // Threads of ours that wait for the edge block: this one has nothing else to do.
    let sockets = sockets(at, arguments.networks)?;
    let alone = alone(&sockets, at)?;
    for socket in &sockets {
        socket.set_read_timeout(Some(LOST))?;
    }
    let mut crowd = Crowd { sockets, window: arguments.window, asked: 0, answers: 0, cut: 0, lost: 0 };
    crowd.ask_for(Duration::from_millis(500))?;
    (crowd.answers, crowd.cut, crowd.lost) = (0, 0, 0);
    let (began, before) = (Instant::now(), processor(id)?);
    crowd.ask_for(Duration::from_secs(arguments.seconds))?;
    let (seconds, processor_s) = (began.elapsed().as_secs_f64(), (processor(id)? - before).as_secs_f64());
    let Crowd { answers, cut, lost, .. } = crowd;
    let report = Report {
        facts,
        answers,
        cut,
        lost,
        seconds,
        processor_s,
        answers_per_second: answers as f64 / seconds,
        answers_per_processor_second: answers as f64 / processor_s,
        processor_us_per_answer: processor_s * 1e6 / answers as f64,
        alone,
        steal_percent: steal.percent(),
    };
    drop(child);
    if arguments.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(!arguments.check || (report.answers_per_processor_second >= AIM && report.cut == 0))
}

fn print(report: &Report) {
    println!("{}", report.facts.text());
    println!("  {} answers in {:.2} s: {:.0} a second", report.answers, report.seconds, report.answers_per_second);
    println!(
        "  {:.0} in a second of the edge's processor time, {:.2} us each (it took {:.2} s)",
        report.answers_per_processor_second, report.processor_us_per_answer, report.processor_s
    );
    println!("  {} cut by the limit, {} lost; steal {:.1} %\n", report.cut, report.lost, report.steal_percent);
    println!("{}", Figures::head("one question at a time"));
    println!("{}", report.alone.row("answer"));
}

/// The edge beside this program, with DNS; it ends when it is dropped.
async fn start(directory: &Path, arguments: &Arguments) -> anyhow::Result<(Child, SocketAddr)> {
    let program = std::env::current_exe()?.with_file_name("edge-proxy");
    ensure!(program.is_file(), "{} is not built: cargo build --release -p edge-proxy", program.display());
    let file = directory.join("edge.toml");
    let Arguments { threads, limit, .. } = arguments;
    let text = format!(
        "data_dir = {directory:?}\n[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\nworkers = {threads}\n\
         [names]\nsuffixes = [\"{SUFFIX}\"]\n[dns]\nlisten = [\"127.0.0.1:0\"]\nanswers_per_second = {limit}\n\
         addresses = [\"192.0.2.1\", \"2001:db8::1\"]\nname_servers = [{{ name = \"ns.elsewhere.example\" }}]\n"
    );
    std::fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(file).env("RUST_LOG", "warn");
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()?;
    let status = Admin::new(directory.join("admin.sock")).started().await?;
    let at = status["dns"]["listen"][0].as_str().context("it answers no DNS")?;
    Ok((child, at.parse()?))
}

/// A socket in each of so many networks of this machine's own (127.x.y.0/24).
fn sockets(to: SocketAddr, networks: u16) -> anyhow::Result<Vec<UdpSocket>> {
    let socket = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 1 + high, low, 1), 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(HANGS))?;
        Ok(socket)
    };
    (0..networks).map(socket).collect()
}

/// Round trips one after another.
fn alone(sockets: &[UdpSocket], at: SocketAddr) -> anyhow::Result<Figures> {
    let (mut message, mut answer, mut taken) = (Vec::new(), [0; 2_048], Vec::new());
    for number in 0..ALONE {
        write_question(number, &mut message);
        // Each from another network, so that none meets its limit.
        let socket = &sockets[number as usize % sockets.len()];
        let began = now_ns();
        socket.send(&message)?;
        socket.recv(&mut answer).with_context(|| format!("no answer from {at}"))?;
        taken.push(now_ns() - began);
    }
    Figures::of(taken).context("nothing was asked")
}

/// All who ask.
struct Crowd {
    sockets: Vec<UdpSocket>,
    window: u8,
    asked: u64,
    answers: u64,
    cut: u64,
    lost: u64,
}

impl Crowd {
    /// Each socket asks as many questions as may be on their way, and takes their answers; again and again.
    fn ask_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        let (mut message, mut answer) = (Vec::new(), [0; 2_048]);
        // So many sockets are ahead of the one whose answers are read, so that the edge is never without a question.
        let ahead = 32.min(self.sockets.len() - 1).max(1);
        let count = self.sockets.len();
        let mut waiting = vec![0; count];
        for turn in 0.. {
            let (asks, reads) = (turn % count, (turn + count - ahead) % count);
            if Instant::now() >= end {
                break;
            }
            for _ in 0..self.window {
                write_question(self.asked, &mut message);
                self.sockets[asks].send(&message)?;
                self.asked += 1;
                waiting[asks] += 1;
            }
            self.take(reads, &mut waiting, &mut answer);
        }
        (0..count).for_each(|socket| self.take(socket, &mut waiting, &mut answer));
        Ok(())
    }

    fn take(&mut self, socket: usize, waiting: &mut [u64], answer: &mut [u8]) {
        while waiting[socket] > 0 {
            match self.sockets[socket].recv(answer) {
                Ok(length) if length > 12 && answer[2] & 0x02 == 0 => self.answers += 1,
                Ok(_) => self.cut += 1,
                Err(_) => {
                    self.lost += waiting[socket];
                    waiting[socket] = 0;
                    return;
                }
            }
            waiting[socket] -= 1;
        }
    }
}

/// A question for a name nobody has asked for before, with EDNS.
fn write_question(number: u64, message: &mut Vec<u8>) {
    message.clear();
    message.extend((number as u16).to_be_bytes());
    message.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    let label = format!("brave-otter-{:x}", scatter(number as usize) >> 36);
    for label in std::iter::once(label.as_str()).chain(SUFFIX.split('.')) {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(KINDS[number as usize % KINDS.len()].to_be_bytes());
    message.extend([0, 1]);
    message.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
}
