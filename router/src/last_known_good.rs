//! The routes of the last run, in a file: what is served at start until a store speaks.
//!
//! One line `cursor EPOCH VERSION FORMAT`, then one line `NAME TENANT ROW` per route, the tenant as the eight
//! hexadecimal digits a route knows it by. Format 1 said neither format nor tenant; it is read still, and what it
//! has is nobody's until the store speaks. The file is replaced as a whole, so a crash leaves the old one or the new one.
//! It is a cache and no source: the applier replaces what it says as soon as it knows better. It has no signatures:
//! its rows were believed when they came, and whoever can write it can read this machine's keys beside it.

use crate::placement::Proof;
use crate::route::{Route, Tenant};
use crate::rows::{ROW_VERSION, SpriteRow};
use crate::store::Cursor;
use crate::table::{Lookup, RouteTable};
use std::io::{BufRead, BufReader, BufWriter, Error, ErrorKind, Read, Result, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What the first line begins with.
const HEADER: &str = "cursor ";
/// What it ends with; a later one is not guessed at.
const FORMAT: u32 = 2;
/// Hexadecimal digits of a tenant.
const TENANT_DIGITS: usize = 8;
/// So much of a file is read at a time (chosen: some thousand lines).
const BLOCK: u64 = 256 * 1024;
/// Most threads that read one file (chosen: it is of use for a second, at the start).
const THREADS_MAX: usize = 8;

/// Which state of which store the file at `path` is from; `None` when there is no such file.
pub(crate) fn cursor(path: &Path) -> Result<Option<Cursor>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut line = String::new();
    BufReader::new(file).read_line(&mut line)?;
    parse_header(line.trim_end()).map(Some)
}

fn parse_header(line: &str) -> Result<Cursor> {
    let mut words = line.strip_prefix(HEADER).unwrap_or_default().split(' ');
    let mut number = || words.next().map(str::parse::<u64>);
    match (number(), number(), number(), number()) {
        (Some(Ok(epoch)), Some(Ok(version)), None, None) => Ok(Cursor { epoch, version }),
        (Some(Ok(epoch)), Some(Ok(version)), Some(Ok(format)), None) if (1..=FORMAT.into()).contains(&format) => {
            Ok(Cursor { epoch, version })
        }
        _ => Err(Error::new(ErrorKind::InvalidData, "no file of last-known-good routes that is known here")),
    }
}

/// Whether the first line of a file is a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    WithCursor,
    WithRow,
}

/// Gives name and row of each line of the file to `take`, which says `None` of what is no row; how many
/// those were. A big file is read by several threads at once, in no order. No file is an empty one.
///
/// # Errors
/// It cannot be read, or is none of ours.
pub(crate) fn for_each(path: &Path, begins: Begins, take: impl Fn(&str, &[u8]) -> Option<()> + Sync) -> Result<usize> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let threads = match file.metadata()?.len() {
        0..=BLOCK => 1,
        _ => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX),
    };
    let mut file = BufReader::new(file);
    if begins == Begins::WithCursor {
        let mut header = Vec::new();
        (&mut file).take(BLOCK).read_until(b'\n', &mut header)?;
        parse_header(str::from_utf8(&header).unwrap_or_default().trim_end())?;
    }
    let file = Mutex::new(file);
    let take_all = || {
        let (mut block, mut wrong) = (Vec::new(), 0);
        while next_block(&file, &mut block)? {
            let lines = block.strip_suffix(b"\n").unwrap_or(&block).split(|&byte| byte == b'\n');
            wrong += lines.filter(|line| take_line(line, &take).is_none()).count();
        }
        Ok(wrong)
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(take_all)).collect();
        let own: Result<usize> = take_all();
        others.into_iter().fold(own, |wrong, other| {
            let other = other.join().unwrap_or_else(|_| Err(Error::other("a thread that read it has panicked")));
            Ok(wrong? + other?)
        })
    })
}

/// Reads whole lines, [`BLOCK`] bytes and the rest of the last line; `false` at the end.
fn next_block(file: &Mutex<BufReader<std::fs::File>>, block: &mut Vec<u8>) -> Result<bool> {
    block.clear();
    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
    (&mut *file).take(BLOCK).read_to_end(block)?;
    if block.last().is_some_and(|&byte| byte != b'\n') {
        file.read_until(b'\n', block)?;
    }
    Ok(!block.is_empty())
}

fn take_line(line: &[u8], take: impl Fn(&str, &[u8]) -> Option<()>) -> Option<()> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    take(str::from_utf8(&line[..space]).ok()?, &line[space + 1..])
}

/// Replaces the file with what the table holds, which is at least the state at `cursor`.
pub(crate) fn write(table: &RouteTable, cursor: Cursor, path: &Path) -> Result<()> {
    let rows = table.names().into_iter().filter_map(|name| match table.lookup(&name) {
        Lookup::Found(route) => {
            let row = encode(&route, table.serial(&name));
            Some((name, row))
        }
        Lookup::Unknown | Lookup::NotReady => None,
    });
    write_lines(rows, Some(cursor), path)
}

/// Replaces the file with these names and rows, below the cursor if there is one.
pub(crate) fn write_lines<N: std::fmt::Display>(
    rows: impl Iterator<Item = (N, Vec<u8>)>,
    cursor: Option<Cursor>,
    path: &Path,
) -> Result<()> {
    // Beside it and by its own name: the files of routes and of domains are written at the same time.
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = std::path::PathBuf::from(next);
    let mut file = BufWriter::new(std::fs::File::create(&next)?);
    if let Some(Cursor { epoch, version }) = cursor {
        writeln!(file, "{HEADER}{epoch} {version} {FORMAT}")?;
    }
    for (name, row) in rows {
        write!(file, "{name} ")?;
        file.write_all(&row)?;
        file.write_all(b"\n")?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_data()?;
    std::fs::rename(&next, path)
}

/// Tenant and row. What routing needs of a row; the rest is the store's business.
fn encode(route: &Route, serial: u64) -> Vec<u8> {
    let row = SpriteRow {
        version: ROW_VERSION,
        // A route has no more of it than stands before the row.
        tenant: String::new(),
        generation: route.generation,
        host: route.host,
        ports: route.ports.to_vec(),
        access: route.access.clone(),
        wake: route.wake.as_deref().cloned().unwrap_or_default(),
        client_certificate: route.client_certificate.as_deref().cloned(),
        deleted: route.deleted,
        proof: Proof { serial, ..Proof::default() },
    };
    let mut line = format!("{:0TENANT_DIGITS$x} ", route.tenant.hash()).into_bytes();
    line.extend(row.encode());
    line
}

/// The route of what stands behind a name, and the number of its row; `None` when it is none.
pub(crate) fn decode(line: &[u8]) -> Option<(Route, u64)> {
    // A row begins with a brace, which is no digit.
    let (tenant, row) = match line.split_at_checked(TENANT_DIGITS + 1) {
        Some((tenant, row)) if tenant[0] != b'{' => {
            let digits = str::from_utf8(tenant).ok()?.strip_suffix(' ')?;
            (Some(Tenant::from_hash(u32::from_str_radix(digits, 16).ok()?)), row)
        }
        _ => (None, line),
    };
    let row = SpriteRow::decode_value(row).ok()?;
    let route = row.route();
    Some((Route { tenant: tenant.unwrap_or(route.tenant), ..route }, row.proof.serial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::client_certificate::{ClientCertificate, ClientMode};
    use crate::names::SpriteName;
    use crate::route::{Generation, HostId};
    use std::sync::Arc;

    const CURSOR: Cursor = Cursor { epoch: u64::MAX, version: 9 };

    /// A name, its route, and the number of its row.
    type Row = (SpriteName, Route, u64);

    /// The routes in the file, by name, the numbers of their rows, and how many of its lines were none.
    fn read(path: &Path) -> Result<(Vec<Row>, usize)> {
        let routes = Mutex::new(Vec::new());
        let wrong = for_each(path, Begins::WithCursor, |name, row| {
            let (route, serial) = decode(row)?;
            routes.lock().unwrap().push((SpriteName::parse(name).ok()?, route, serial));
            Some(())
        })?;
        let mut routes = routes.into_inner().unwrap();
        routes.sort_by(|one, other| one.0.cmp(&other.0));
        Ok((routes, wrong))
    }

    fn written() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (path, table) = (dir.path().join("routes.last-known-good"), RouteTable::new());
        for (name, deleted) in [("a", false), ("b", true)] {
            let route = Route {
                generation: Generation(3),
                tenant: Tenant::from(name),
                host: HostId(2),
                access: Access::Public,
                wake: None,
                ports: [80].into(),
                client_certificate: Some(Arc::new(ClientCertificate { mode: ClientMode::Pass, ca_pem: String::new() })),
                deleted,
            };
            table.apply_put(&SpriteName::parse(name).unwrap(), route);
            table.set_serial(&SpriteName::parse(name).unwrap(), u64::from(deleted) * 7);
        }
        write(&table, CURSOR, &path).unwrap();
        (dir, path)
    }

    #[test]
    fn what_was_written_reads_back_tombstones_included() {
        let (dir, path) = written();
        assert_eq!(cursor(&path).unwrap(), Some(CURSOR));
        let (routes, wrong) = read(&path).unwrap();
        assert_eq!((routes.len(), wrong), (2, 0));
        assert_eq!((routes[0].0.as_str(), routes[0].1.deleted), ("a", false));
        assert_eq!((routes[1].0.as_str(), routes[1].1.deleted), ("b", true));
        assert_eq!((routes[0].2, routes[1].2), (0, 7));
        assert_eq!([routes[0].1.tenant, routes[1].1.tenant], [Tenant::from("a"), Tenant::from("b")]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_of_the_format_without_tenants_is_read_and_one_of_a_later_format_is_not() {
        let (_dir, path) = written();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("{HEADER}{} 9 2\n", u64::MAX)), "{text}");
        let first = text.lines().nth(1).unwrap();
        let (name, row) = (&first[..1], first.splitn(3, ' ').nth(2).unwrap());
        std::fs::write(&path, format!("cursor 3 4\n{name} {row}\n")).unwrap();
        assert_eq!(cursor(&path).unwrap(), Some(Cursor { epoch: 3, version: 4 }));
        let (routes, wrong) = read(&path).unwrap();
        assert_eq!((routes.len(), wrong), (1, 0));
        assert_eq!(routes[0].1.tenant, Tenant::from(""));
        for header in ["cursor 3 4 3", "cursor 3 4 0", "cursor 3", "cursor 3 4 2 1"] {
            std::fs::write(&path, format!("{header}\n{first}\n")).unwrap();
            assert_eq!(cursor(&path).unwrap_err().kind(), ErrorKind::InvalidData, "{header}");
            assert!(read(&path).is_err(), "{header}");
        }
    }

    #[test]
    fn a_line_that_is_no_route_costs_that_route_only() {
        let (_dir, path) = written();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}c {{\nnonsense\nd 0000000g {{}}\ne 00000001\n")).unwrap();
        let (routes, wrong) = read(&path).unwrap();
        assert_eq!((routes.len(), wrong), (2, 4));
    }

    #[test]
    fn of_a_file_of_many_blocks_each_line_is_taken_once() {
        const LINES: usize = 20_000;
        let (_dir, path) = written();
        let row = std::fs::read_to_string(&path).unwrap();
        let row = row.lines().nth(1).unwrap().split_once(' ').unwrap().1;
        let lines = (0..LINES).map(|number| match number % 10 {
            0 => format!("wrong{number}\n"),
            _ => format!("s{number} {row}\n"),
        });
        let text: String = std::iter::once("cursor 1 1\n".to_owned()).chain(lines).collect();
        assert!(text.len() as u64 > 4 * BLOCK);
        // The last line may be without its end.
        for text in [text.as_str(), text.trim_end()] {
            std::fs::write(&path, text).unwrap();
            let (routes, wrong) = read(&path).unwrap();
            assert_eq!((routes.len(), wrong), (LINES / 10 * 9, LINES / 10));
            assert!(routes.windows(2).all(|two| two[0].0 != two[1].0));
        }
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_a_missing_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert!(read(&path).unwrap().0.is_empty() && cursor(&path).unwrap().is_none());
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(cursor(&path).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
