//! The routes of the last run, in a file: what is served at start until a store speaks.
//!
//! One line `cursor EPOCH VERSION`, then one line `NAME ROW` per route. It is replaced as a
//! whole, so a crash leaves the old file or the new one. It is a cache and no source: the
//! applier replaces what it says as soon as it knows better. It has no signatures: its rows were believed when
//! they came, and whoever can write it can read this machine's keys beside it.

use crate::names::SpriteName;
use crate::placement::Proof;
use crate::route::Route;
use crate::rows::{ROW_VERSION, SPRITE_PREFIX, SpriteRow};
use crate::store::Cursor;
use crate::table::{Lookup, RouteTable};
use std::io::{BufRead, BufReader, BufWriter, Error, ErrorKind, Result, Write};
use std::path::Path;

/// What the first line begins with.
const HEADER: &str = "cursor ";

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
    let numbers = line.strip_prefix(HEADER).and_then(|rest| rest.split_once(' '));
    let cursor = numbers
        .and_then(|(epoch, version)| Some(Cursor { epoch: epoch.parse().ok()?, version: version.parse().ok()? }));
    cursor.ok_or_else(|| Error::new(ErrorKind::InvalidData, "no file of last-known-good routes"))
}

/// A route, and the number of its row within its generation.
type Known = (SpriteName, Route, u64);

/// The routes in the file, and how many of its lines were none.
pub(crate) fn read(path: &Path) -> Result<(Vec<Known>, usize)> {
    read_lines(path, |name, row| {
        let (name, row) = SpriteRow::decode(&format!("{SPRITE_PREFIX}{name}"), row).ok()?;
        Some((name, row.route(), row.proof.serial))
    })
}

/// What `decode` makes of each line of the file, and how many it made nothing of.
pub(crate) fn read_lines<T>(path: &Path, decode: impl Fn(&str, &[u8]) -> Option<T>) -> Result<(Vec<T>, usize)> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let mut lines = text.lines();
    parse_header(lines.next().unwrap_or(""))?;
    let (mut rows, mut wrong) = (Vec::new(), 0);
    for line in lines {
        match line.split_once(' ').and_then(|(name, row)| decode(name, row.as_bytes())) {
            Some(row) => rows.push(row),
            None => wrong += 1,
        }
    }
    Ok((rows, wrong))
}

/// Replaces the file with what the table holds, which is at least the state at `cursor`.
pub(crate) fn write(table: &RouteTable, cursor: Cursor, path: &Path) -> Result<()> {
    let rows = table.names().into_iter().filter_map(|name| match table.lookup(&name) {
        Lookup::Found(route) => {
            let row = row_of(&route, table.serial(&name)).encode();
            Some((name, row))
        }
        Lookup::Unknown | Lookup::NotReady => None,
    });
    write_lines(rows, cursor, path)
}

/// Replaces the file with these names and rows.
pub(crate) fn write_lines<N: std::fmt::Display>(
    rows: impl Iterator<Item = (N, Vec<u8>)>,
    cursor: Cursor,
    path: &Path,
) -> Result<()> {
    // Beside it and by its own name: the files of routes and of domains are written at the same time.
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = std::path::PathBuf::from(next);
    let mut file = BufWriter::new(std::fs::File::create(&next)?);
    writeln!(file, "{HEADER}{} {}", cursor.epoch, cursor.version)?;
    for (name, row) in rows {
        write!(file, "{name} ")?;
        file.write_all(&row)?;
        file.write_all(b"\n")?;
    }
    file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_data()?;
    std::fs::rename(&next, path)
}

/// What routing needs of a row; the rest is the store's business.
fn row_of(route: &Route, serial: u64) -> SpriteRow {
    SpriteRow {
        version: ROW_VERSION,
        tenant: String::new(),
        generation: route.generation,
        host: route.host,
        ports: route.ports.to_vec(),
        access: route.access.clone(),
        wake: route.wake.as_deref().cloned().unwrap_or_default(),
        deleted: route.deleted,
        proof: Proof { serial, ..Proof::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::route::{Generation, HostId};

    const CURSOR: Cursor = Cursor { epoch: u64::MAX, version: 9 };

    fn written() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (path, table) = (dir.path().join("routes.last-known-good"), RouteTable::new());
        for (name, deleted) in [("a", false), ("b", true)] {
            let route = Route {
                generation: Generation(3),
                tenant: crate::route::Tenant::default(),
                host: HostId(2),
                access: Access::Public,
                wake: None,
                ports: [80].into(),
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
        let (mut routes, wrong) = read(&path).unwrap();
        routes.sort_by(|one, other| one.0.cmp(&other.0));
        assert_eq!((routes.len(), wrong), (2, 0));
        assert_eq!((routes[0].0.as_str(), routes[0].1.deleted), ("a", false));
        assert_eq!((routes[1].0.as_str(), routes[1].1.deleted), ("b", true));
        assert_eq!((routes[0].2, routes[1].2), (0, 7));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_line_that_is_no_route_costs_that_route_only() {
        let (_dir, path) = written();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}c {{\nnonsense\n")).unwrap();
        let (routes, wrong) = read(&path).unwrap();
        assert_eq!((routes.len(), wrong), (2, 2));
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
