//! Generates the manual pages and shell completions of `harkd` and `hark` from their command
//! lines: `hark-manuals FOLDER`. Packages contain them.

// Included, because a program is no library; only its command line is used.
#[allow(dead_code, unreachable_pub, clippy::all)]
#[path = "../../../client/src/bin/hark/args.rs"]
mod hark;

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use hark_server::config::Cli;

/// Shells with completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("expected the folder to write to: hark-manuals FOLDER")?;
    generate(Path::new(&folder))
}

/// Writes `man/*.1` and `completions/*` to a folder.
fn generate(folder: &Path) -> anyhow::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    for command in [Cli::command(), hark::CommandLine::command()] {
        let name = command.get_name().to_owned();
        for shell in SHELLS {
            clap_complete::generate_to(shell, &mut command.clone(), &name, &completions)?;
        }
        // Without the values of this process.
        let command = command.mut_args(|argument| argument.hide_env_values(true));
        clap_mangen::generate_to(hidden_values(command), &man)?;
    }
    Ok(())
}

/// Hides the values of environment variables in all sub-commands.
fn hidden_values(command: Command) -> Command {
    let names: Vec<_> = command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, |sub| {
            hidden_values(sub.mut_args(|argument| argument.hide_env_values(true)))
        })
    })
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn every_command_has_a_page_and_completions() {
        let folder = tempfile::tempdir().unwrap();
        generate(folder.path()).unwrap();
        for (page, text) in [
            ("harkd.1", "max\\-frame"),
            ("harkd-admin-suspend.1", "suspend"),
            ("hark.1", "Exit codes"),
            ("hark-admin-top.1", "fullest inboxes"),
        ] {
            let page = fs::read_to_string(folder.path().join("man").join(page)).unwrap();
            assert!(page.contains(text), "{page}");
        }
        for file in ["harkd.bash", "_harkd", "harkd.fish", "hark.bash"] {
            let file = folder.path().join("completions").join(file);
            assert!(fs::read_to_string(file).unwrap().contains("--"));
        }
    }
}
