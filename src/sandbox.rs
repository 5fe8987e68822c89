//! Gives up what the server does not need, before its first thread starts: whoever takes it over gets little.
//!
//! There is no seccomp filter here. A wrong one would end a cluster's DNS, and the runtime's default with an empty image
//! does that work.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// What every server reads: trust stores and resolver files, credentials of pods, and the kernel's own files. Without
/// the system call for random numbers, libraries read a device, and end the process if they cannot.
const ALWAYS: [&str; 11] = [
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/etc",
    "/usr/share/ca-certificates",
    "/usr/lib/ssl",
    "/usr/local/share/ca-certificates",
    "/var/run/secrets",
    "/run/secrets",
    "/proc",
    "/sys",
];

/// Files and folders of trust stores that distributions link to places of their own.
const TRUST_STORES: [&str; 6] = [
    "/etc/ssl/certs",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/tls/cert.pem",
];

/// The newest Landlock version whose file rights are handled; older kernels handle fewer.
const LANDLOCK: ABI = ABI::V3;

/// The files that a server needs.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Files and folders that it reads. Of a file, the whole folder may be read, because files are replaced there.
    pub read: Vec<PathBuf>,
    /// Files that it replaces, with their folders.
    pub write: Vec<PathBuf>,
}

/// Gives up privileges that the process does not have yet but could get, and core dumps. With `keys`, also hides its
/// memory from other processes of the user.
pub fn drop_privileges(keys: bool) {
    // A failure leaves things as they were.
    let _ = rustix::thread::set_no_new_privs(true);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if keys {
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// Limits this thread, and those that it starts, to these files, by Landlock. Returns whether the kernel enforces it.
///
/// # Errors
/// The kernel has Landlock but refuses the rules.
pub fn confine(files: &Files) -> Result<bool, RulesetError> {
    let (reads, all) = (AccessFs::from_read(LANDLOCK), AccessFs::from_all(LANDLOCK));
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(all)?.create()?;
    let read = files.read.iter().flat_map(|path| places(path));
    let listed = files.read.iter().filter_map(|path| path.read_dir().ok()).flatten().flatten();
    let listed: Vec<PathBuf> = listed.filter_map(|entry| entry.path().canonicalize().ok()).collect();
    let linked = listed.iter().flat_map(|path| places(path));
    let store: Vec<PathBuf> = trust_store().chain(TRUST_STORES.iter().map(PathBuf::from)).collect();
    let store = store.iter().flat_map(|path| places(path));
    let read = ALWAYS.iter().map(PathBuf::from).chain(read).chain(linked).chain(store);
    let rules =
        read.map(|path| (path, reads)).chain(files.write.iter().flat_map(|path| places(path)).map(|path| (path, all)));
    // Of a path that does not exist, nothing can be read.
    let rules = rules.filter_map(|(path, access)| {
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
        PathFd::new(path).ok().map(|path| Ok::<_, RulesetError>(PathBeneath::new(path, access)))
    });
    let status = ruleset.add_rules(rules)?.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// The folders that hold a file: its own, and that of the file it links to. A folder is returned as it is.
fn places(path: &Path) -> impl Iterator<Item = PathBuf> {
    let real = path.canonicalize().ok();
    let folder = |path: &Path| match path.is_dir() {
        true => Some(path.to_owned()),
        false => path.parent().map(|parent| if parent.as_os_str().is_empty() { ".".into() } else { parent.to_owned() }),
    };
    [folder(path), real.as_deref().and_then(folder)].into_iter().flatten()
}

/// Where the environment says that the trust store is.
fn trust_store() -> impl Iterator<Item = PathBuf> {
    ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(|name| std::env::var_os(name).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_thread_reads_what_is_named_and_writes_less() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [read, write, other] = folders.each_ref().map(|folder| folder.path().join("file"));
        for path in [&read, &write, &other] {
            std::fs::write(path, "text").unwrap();
        }
        let files = Files { read: vec![read.clone()], write: vec![write.clone()] };
        // Only this thread is confined.
        let confined = std::thread::spawn(move || {
            let is_enforced = confine(&files).unwrap();
            assert!(std::fs::File::open("/dev/urandom").is_ok(), "libraries need random numbers");
            let can_read = |path: &Path| std::fs::read(path).is_ok();
            let can_write = |path: &Path| std::fs::write(path.with_extension("new"), "text").is_ok();
            let found = [&read, &write, &other].map(|path| (can_read(path), can_write(path)));
            (is_enforced, found)
        });
        let (is_enforced, found) = confined.join().unwrap();
        let expected = if is_enforced { [(true, false), (true, true), (false, false)] } else { [(true, true); 3] };
        assert_eq!(found, expected, "enforced: {is_enforced}");
    }
}
