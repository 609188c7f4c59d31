//! No crate has unsafe code.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn every_crate_forbids_unsafe_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let workspace = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    assert!(
        workspace.contains("[workspace.lints.rust]\nunsafe_code = \"forbid\"\n"),
        "{workspace}"
    );
    let mut crates = Vec::new();
    find(root, &mut crates);
    let lax: Vec<_> = crates.iter().filter(|path| !forbids(path)).collect();
    assert!(lax.is_empty(), "{lax:?}");
    assert!(crates.len() > 9, "{crates:?}");
}

/// Whether a crate has the lints of the workspace, or this one itself.
fn forbids(path: &Path) -> bool {
    let manifest = fs::read_to_string(path.join("Cargo.toml")).unwrap();
    let lints = [
        "[lints]\nworkspace = true\n",
        "[lints.rust]\nunsafe_code = \"forbid\"\n",
    ];
    lints.iter().any(|lints| manifest.contains(lints))
}

/// The folders with a package, below this one. What is not ours begins with a
/// dot, or is called `target`.
fn find(folder: &Path, crates: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            let manifest = path.join("Cargo.toml");
            if manifest.exists() && fs::read_to_string(manifest).unwrap().contains("[package]") {
                crates.push(path.clone());
            }
            find(&path, crates);
        }
    }
}
