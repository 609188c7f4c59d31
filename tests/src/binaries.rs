//! The binaries of this workspace, as commands without the user's settings.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Size of a log segment, in MiB. Small segments are created and filled sooner.
const SEGMENT_MIB: u32 = 4;

/// Environment variable that sets this size.
const SEGMENT_SIZE_VARIABLE: &str = "HARKD_SEGMENT_SIZE";

/// Environment variable that names the folder of up-to-date binaries. Otherwise
/// the binaries are built; since one package enables fewer features than the
/// workspace with its tests, that compiles most of the dependencies once more.
const BINARIES_VARIABLE: &str = "HARK_TEST_BINARIES";

/// Returns the path of a binary of this workspace. Builds it unless
/// `HARK_TEST_BINARIES` names the folder of up-to-date binaries.
///
/// # Panics
/// If it cannot be built, or is not in that folder.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let build = || build(&["--package=hark-server", "--package=hark-client", "--bins"]);
    existing(
        FOLDER
            .get_or_init(|| up_to_date().unwrap_or_else(build))
            .join(name),
    )
}

/// Returns the path of an example of a library, as [`binary`] does.
///
/// # Panics
/// As [`binary`].
#[must_use]
pub fn example(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        build(&[
            "--package=hark-protocol",
            "--package=hark-client",
            "--examples",
        ])
    };
    existing(
        FOLDER
            .get_or_init(|| up_to_date().unwrap_or_else(build))
            .join("examples")
            .join(name),
    )
}

fn up_to_date() -> Option<PathBuf> {
    std::env::var_os(BINARIES_VARIABLE).map(PathBuf::from)
}

fn existing(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "there is no {}", path.display());
    path
}

/// Returns a command for `hark` without the user's settings.
///
/// # Panics
/// If `hark` cannot be built.
#[must_use]
pub fn hark(state: &Path) -> Command {
    let mut command = Command::new(binary("hark"));
    clear_settings(&mut command);
    command.env("XDG_STATE_HOME", state).env("HOME", state);
    command
}

/// Returns a command for `harkd` without the user's settings and with small segments.
///
/// # Panics
/// If `harkd` cannot be built.
#[must_use]
pub fn harkd() -> Command {
    let mut command = Command::new(binary("harkd"));
    set_environment(&mut command);
    command
}

/// Creates an account in a closed store, by `harkd user add`.
///
/// # Panics
/// If that is refused.
pub fn add_user(store: &Path, user: &str, password: Option<&str>) {
    let mut command = harkd();
    command
        .args(["user", "add", user])
        .env("HARKD_STORE", store);
    match password {
        Some(password) => command.env("HARKD_PASSWORD", password),
        None => command.arg("--no-password"),
    };
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Removes the user's settings, and sets the size of segments.
pub(crate) fn set_environment(command: &mut Command) {
    clear_settings(command);
    command.env(SEGMENT_SIZE_VARIABLE, SEGMENT_MIB.to_string());
}

fn clear_settings(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HARK") {
            command.env_remove(variable);
        }
    }
}

/// Builds the targets in the profile of the tests, and returns the folder of the
/// profile.
fn build(targets: &[&str]) -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--quiet"]).args(targets);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // The variables that Cargo sets for a test would make the build script of
    // `ring` run again.
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&variable);
        }
    }
    assert!(
        cargo.status().expect("cargo").success(),
        "the binaries cannot be built"
    );
    // A test is target/PROFILE/deps/NAME.
    let test = std::env::current_exe().expect("the path of the test");
    test.parent()
        .and_then(Path::parent)
        .expect("the folder of the profile")
        .to_owned()
}
