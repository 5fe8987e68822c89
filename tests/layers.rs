//! Checks the module structure: every import in `src` is allowed by the table in `docs/architecture.md`, and no two
//! files import each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The modules that each top-level module may import.
type Table = BTreeMap<String, BTreeSet<String>>;

/// An import in `file`, as a path from the crate root: `server::mmsg::Batch`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Import {
    file: PathBuf,
    line: usize,
    path: Vec<String>,
}

/// Iterates over the names in backticks in a cell.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn parse_table(document: &str) -> Table {
    let rows = document.lines().filter(|line| line.starts_with("| `src/"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [place, holds, imports] = cells.as_slice() else { panic!("three cells: {row}") };
        assert!(!holds.is_empty() && !imports.is_empty(), "an empty cell: {row}");
        assert!(*imports == "nothing" || imports.contains('`'), "a cell without names: {row}");
        let place = quoted(place).next().unwrap().trim_start_matches("src/").trim_end_matches(['/']);
        (place.trim_end_matches(".rs").to_owned(), quoted(imports).map(str::to_owned).collect())
    })
    .collect()
}

/// Returns the module path of a file: `server/mmsg.rs` is `server::mmsg`.
fn module_of(file: &Path) -> Vec<String> {
    let mut module: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib")) {
        module.pop();
    }
    module
}

/// Returns every path in a file that starts with `crate::` or `super::`, as a path from the crate root. Groups in
/// braces are expanded.
fn imports(file: &Path, text: &str) -> Vec<Import> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or("").to_owned() + "\n").collect();
    let module = module_of(file);
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':')) {
                continue;
            }
            let mut rest = &code[at..];
            let mut path = Vec::new();
            if let Some(after) = rest.strip_prefix("crate::") {
                rest = after;
            } else {
                path = module.clone();
                while let Some(after) = rest.strip_prefix("super::") {
                    rest = after;
                    path.pop();
                }
            }
            let line = code[..at].matches('\n').count() + 1;
            for path in paths(rest, &path) {
                found.push(Import { file: file.to_owned(), line, path });
            }
        }
    }
    found
}

/// Expands the path at the start of `text`: `a::{b, c::D}` becomes `a::b` and `a::c::D`.
fn paths(text: &str, prefix: &[String]) -> Vec<Vec<String>> {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let (mut depth, mut starts, mut end) = (0, vec![0], group.len());
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    end = at;
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => starts.push(at + 1),
                _ => {}
            }
        }
        let ends = starts.iter().skip(1).map(|next| next - 1).chain([end]);
        let members = starts.iter().zip(ends).map(|(start, end)| group[*start..end].trim());
        return members.filter(|member| !member.is_empty()).flat_map(|member| paths(member, prefix)).collect();
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let mut path = prefix.to_vec();
    if !name.is_empty() && name != "self" {
        path.push(name.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') => paths(rest, &path),
        _ => vec![path],
    }
}

/// Returns the imports that the table does not allow.
fn forbidden(table: &Table, imports: &[Import]) -> Vec<String> {
    let mut all = Vec::new();
    for import in imports {
        let own = module_of(&import.file).first().cloned().unwrap_or_default();
        let Some(other) = import.path.first() else { continue };
        // The crate root and the binary may import everything.
        if own.is_empty() || own == "main" || own == *other || !table.contains_key(other) {
            continue;
        }
        if !table.get(&own).is_some_and(|allowed| allowed.contains(other)) {
            let path = import.path.join("::");
            all.push(format!("src/{}:{}: {own} may not import {path}", import.file.display(), import.line));
        }
    }
    all
}

/// Returns the pairs of files that import each other. A folder's `mod.rs` does not count, because it declares items
/// that the files in the folder share.
fn cycles(files: &BTreeSet<PathBuf>, imports: &[Import]) -> BTreeSet<(PathBuf, PathBuf)> {
    let mut edges = BTreeSet::new();
    for import in imports {
        // The longest prefix of the path that names a file.
        let target = (1..=import.path.len()).rev().find_map(|length| {
            let file = import.path[..length].iter().collect::<PathBuf>().with_extension("rs");
            files.get(&file)
        });
        if let Some(target) = target.filter(|target| **target != import.file) {
            edges.insert((import.file.clone(), target.clone()));
        }
    }
    edges.iter().filter(|(a, b)| a < b && edges.contains(&(b.clone(), a.clone()))).cloned().collect()
}

fn sources(folder: &Path, root: &Path, all: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, root, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.insert(path.strip_prefix(root).unwrap().to_owned(), std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_import_follows_the_table_and_no_two_files_import_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = parse_table(&std::fs::read_to_string(root.join("docs/architecture.md")).unwrap());
    let mut files = BTreeMap::new();
    sources(&root.join("src"), &root.join("src"), &mut files);
    let modules: BTreeSet<String> = files.keys().filter_map(|file| module_of(file).first().cloned()).collect();
    let rows: BTreeSet<String> = table.keys().cloned().chain(["main".to_owned()]).collect();
    assert_eq!(modules, rows, "each module has a row in docs/architecture.md");
    let all: Vec<Import> = files.iter().flat_map(|(file, text)| imports(file, text)).collect();
    assert!(all.len() > 300, "{} imports found", all.len());
    let wrong = forbidden(&table, &all);
    assert!(wrong.is_empty(), "imports that docs/architecture.md does not allow:\n{}", wrong.join("\n"));
    let cycles = cycles(&files.into_keys().collect(), &all);
    assert!(cycles.is_empty(), "files that import each other: {cycles:?}");
    // The table itself must not allow two modules to import each other.
    for (module, allowed) in &table {
        for other in allowed {
            assert!(!table[other].contains(module), "{module} and {other} may import each other");
        }
    }
}

#[test]
fn forbidden_imports_are_found() {
    let table = parse_table("| `src/wire/` | octets | nothing |\n| `src/zone/` | names | `wire` |\n");
    let cases = [
        ("an allowed import", "zone/mod.rs", "use crate::wire::Name;", 0),
        ("a forbidden import", "wire/name.rs", "use crate::zone::Zone;", 1),
        (
            "forbidden imports in a group",
            "wire/name.rs",
            "use crate::{\n    wire::Header,\n    zone::{Zone, Seed},\n};",
            2,
        ),
        ("a path in the code", "wire/name.rs", "fn f() { crate::zone::tld::is_public(\"com\"); }", 1),
        ("a path through parent modules", "wire/name.rs", "use super::super::zone::Zone;", 1),
        ("a comment", "wire/name.rs", "// use crate::zone::Zone;", 0),
        ("a module that is not in the table", "wire/name.rs", "use crate::elsewhere::Thing;", 0),
    ];
    for (case, file, text, expected) in cases {
        assert_eq!(forbidden(&table, &imports(Path::new(file), text)).len(), expected, "{case}");
    }
}

#[test]
fn two_files_that_import_each_other_are_found() {
    let files: BTreeSet<PathBuf> = ["server/udp.rs", "server/deferred.rs", "server/mod.rs"].map(PathBuf::from).into();
    let udp = imports(Path::new("server/udp.rs"), "use super::deferred::Deferred;\nuse super::Counters;");
    let deferred = imports(Path::new("server/deferred.rs"), "use crate::server::udp::{BATCH, send_all};");
    assert_eq!(cycles(&files, &udp).len(), 0);
    assert_eq!(cycles(&files, &[udp, deferred].concat()).len(), 1);
}
