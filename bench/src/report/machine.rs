//! The description of the machine in the report.

use std::fs;
use std::path::Path;

/// Describes the machine in one sentence.
pub(crate) fn description(folder: &Path) -> String {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let model = first("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory_kib = first("/proc/meminfo", "MemTotal")
        .and_then(|text| {
            text.split_whitespace()
                .next()
                .and_then(|number| number.parse::<u64>().ok())
        })
        .unwrap_or_default();
    let files = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(0, |(_, hard)| hard);
    format!(
        "{processors} processors ({model}), {} GiB of memory, Linux {}, files on {}, at most {files} open files a \
         process",
        memory_kib >> 20,
        kernel.trim(),
        file_system(folder).unwrap_or_else(|| "an unknown file system".to_owned()),
    )
}

/// Returns the value of the first line of a file with this name.
fn first(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Returns the type of the file system of a folder, from the longest mount point above it.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let above = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (point, kind) = (words.next()?, words.next()?);
        folder.starts_with(point).then_some((point.len(), kind))
    });
    above
        .max_by_key(|(length, _)| *length)
        .map(|(_, kind)| kind.to_owned())
}
